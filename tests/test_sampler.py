"""Sampling: every parameter takes effect, and a cut-off response is known as one."""

from pathlib import Path
from threading import Semaphore

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from vl_reward import ResponseSampler, SamplingParameters
from vl_reward.inference import transformers_sampler
from vl_reward.inference.ahead import computed_ahead


def columns(rows):
    return [row["prompt"] for row in rows], [row["images"] for row in rows]


def test_greedy_equals_a_loop_by_hand(policy, processor, image_pairs):
    prompts, images = columns(image_pairs[:3])
    responses, _ = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=5, temperature=0.0))(
        prompts, images
    )
    for prompt, row_images, response in zip(prompts, images, responses, strict=True):
        content = [{"type": "image"}] * len(row_images) + [{"type": "text", "text": prompt[0]["content"]}]
        text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
        inputs = processor(text=[text], images=[row_images], return_tensors="pt")
        start = inputs["input_ids"].shape[1]
        for _ in range(5):
            with torch.no_grad():
                token = policy(**inputs).logits[:, -1:].argmax(-1)
            inputs["input_ids"] = torch.cat([inputs["input_ids"], token], 1)
            for key, value in (("attention_mask", 1), ("mm_token_type_ids", 0)):
                inputs[key] = torch.nn.functional.pad(inputs[key], (0, 1), value=value)
        assert processor.decode(inputs["input_ids"][0, start:], skip_special_tokens=True) == response[0]


def test_shapes_and_finish_reasons(policy, processor, image_pairs, text_pairs):
    rows = image_pairs[:2] + text_pairs[:3]
    sampler = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=4, batch_size=4))
    responses, finish_reasons = sampler(*columns(rows), num_generations=3)
    assert [len(row) for row in responses] == [len(row) for row in finish_reasons] == [3] * 5
    # Make the end token certain, then impossible.
    hidden = policy.config.text_config.hidden_size
    head = torch.nn.Linear(hidden, policy.config.text_config.vocab_size, bias=True)
    torch.nn.init.zeros_(head.weight)
    policy.lm_head = head
    for bias, expected in ((100.0, "stop"), (-100.0, "length")):
        torch.nn.init.zeros_(head.bias)
        head.bias.data[processor.tokenizer.eos_token_id] = bias
        responses, finish_reasons = sampler(*columns(rows), num_generations=2)
        assert finish_reasons == [[expected] * 2] * 5
        assert (responses == [["", ""]] * 5) == (expected == "stop")


def test_checkpoints_own_generation_config_is_not_used(policy, processor, image_pairs):
    """Qwen2.5-VL's sets `top_k=1`: all samples would be equal."""
    own = {"top_k": 1, "temperature": 1e-6, "repetition_penalty": 1.05, "no_repeat_ngram_size": 1, "num_beams": 2}
    for name, value in own.items():
        setattr(policy.generation_config, name, value)
    torch.manual_seed(0)
    sampler = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=8))
    responses, _ = sampler(*columns(image_pairs[:1]), num_generations=8)
    assert len(set(responses[0])) == 8
    config, _ = policy._prepare_generation_config(sampler.generation_config)
    assert (config.temperature, config.top_p, config.top_k, config.repetition_penalty) == (1.0, 1.0, 0, 1.0)
    assert (config.no_repeat_ngram_size, config.num_beams) == (0, 1)
    assert {name: getattr(policy.generation_config, name) for name in own} == own  # and left as it was


def test_two_samplers_on_one_model_do_not_overwrite_each_other(policy, processor, image_pairs):
    prompts, images = columns(image_pairs[:2])
    greedy = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=6, temperature=0.0))
    expected = greedy(prompts, images)
    hot = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=3, temperature=5.0, top_k=7))
    assert greedy(prompts, images) == expected
    assert hot(prompts, images)[0] != expected[0]
    assert (greedy.generation_config.do_sample, hot.generation_config.do_sample) == (False, True)


def test_temperature_scales_the_logits(policy, processor, image_pairs):
    """First tokens at temperature 2 follow the softmax of half the logits."""
    torch.manual_seed(0)
    prompts, images = columns(image_pairs[:1])
    policy.lm_head.weight.data *= 3
    sampler = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=1, temperature=2.0, batch_size=2000))
    logits = []
    handle = policy.lm_head.register_forward_hook(lambda module, inputs, output: logits.append(output[0, -1]))
    tokens = policy.generate(
        **sampler_inputs(processor, prompts, images),
        num_return_sequences=2000,
        generation_config=sampler.generation_config,
    )[:, -1]
    handle.remove()
    counts = torch.bincount(tokens, minlength=len(logits[0])) / len(tokens)
    expected = (logits[0] / sampler.generation_config.temperature).softmax(-1)
    assert (counts - expected).abs().max() < 0.05
    assert (counts - logits[0].softmax(-1)).abs().max() > 0.05


def sampler_inputs(processor, prompts, images):
    from vl_reward.data.encoding import encode_prompts

    return encode_prompts(processor, prompts, images, ["prompt 0"])


def test_a_begun_answer_is_continued(processor, image_pairs):
    """Greedy, the continuation of a response's beginning is its end. Its policy can write: tokens are words."""
    path = Path(__file__).parent.parent / "src/vl_reward/tiny/checkpoints/base"
    policy = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype="float32")
    prompts, images = columns(image_pairs[:4])
    sampler = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=24, temperature=0.0))
    whole, _ = sampler(prompts, images)
    begun = [[row[0][: row[0].index(" Answer")]] for row in whole]
    messages = [[*prompt, {"role": "assistant", "content": row[0]}] for prompt, row in zip(prompts, begun, strict=True)]
    rendered = [
        processor.tokenizer.decode(sampler_inputs(processor, [message], [image])["input_ids"][0])
        for message, image in zip(messages, images, strict=True)
    ]
    assert all(text.endswith(row[0]) for text, row in zip(rendered, begun, strict=True))
    ends, _ = sampler(messages, images)
    assert [row[0] + end[0] for row, end in zip(begun, ends, strict=True)] == [row[0] for row in whole]


def test_bad_prompt_is_named(policy, processor):
    sampler = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=4))
    with pytest.raises(ValueError, match="prompt 1: a message holds"):
        sampler(["fine", "<|im_start|>"], [[], []])


def test_the_next_batch_is_encoded_while_the_model_generates(policy, processor, image_pairs, monkeypatch):
    """And nothing else changes: a tokenizer that two threads use at once ends in "Already borrowed"."""
    prompts, images = columns(image_pairs[:12])
    sampler = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=4, batch_size=1, temperature=0.0))
    monkeypatch.setattr(transformers_sampler, "computed_ahead", map)
    expected = sampler(prompts, images)
    monkeypatch.setattr(transformers_sampler, "computed_ahead", computed_ahead)
    encode, generate, begun, generated = transformers_sampler.encode_prompts, policy.generate, Semaphore(0), []

    def encode_and_say_so(*args):
        begun.release()
        return encode(*args)

    def generate_after_it(**inputs):
        if not generated:  # the first of two batches: the second one's encoding begins meanwhile
            generated.append(all(begun.acquire(timeout=60) for _ in range(2)))
        return generate(**inputs)

    monkeypatch.setattr(transformers_sampler, "encode_prompts", encode_and_say_so)
    monkeypatch.setattr(policy, "generate", generate_after_it)
    assert sampler(prompts[:2], images[:2]) == tuple(column[:2] for column in expected)
    monkeypatch.setattr(policy, "generate", generate)
    assert sampler(prompts, images) == expected
    assert generated == [True]
