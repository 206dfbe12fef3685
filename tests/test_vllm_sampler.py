"""Sampling with vLLM's offline engine: a stand-in with its interface (of 0.22 to 0.29), with a tiny policy."""

import os
import sys
import types
from dataclasses import dataclass

import pytest
import torch
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from vl_reward import ResponseSampler, SamplingParameters
from vl_reward.data.encoding import tokenize
from vl_reward.inference.vllm_sampler import VLLMSampler


@dataclass
class SamplingParams:
    n: int = 1
    seed: int | None = None
    max_tokens: int | None = 16
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0


class LLM:
    """`LLM.generate` of rendered prompts with one placeholder per image, by the policy in the folder."""

    def __init__(
        self,
        model,
        *,
        revision,
        dtype,
        max_num_seqs,
        mm_processor_kwargs,
        generation_config,
        distributed_executor_backend=None,
    ):
        assert (distributed_executor_backend == "external_launcher") == (int(os.environ.get("WORLD_SIZE", 1)) > 1)
        self.policy = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=dtype)
        self.processor = AutoProcessor.from_pretrained(model)
        self.processor.image_processor.size = mm_processor_kwargs["size"]
        self.seen = []

    def generate(self, prompts, sampling_params):
        self.seen += sampling_params
        return [self.answer(*row) for row in zip(prompts, sampling_params, strict=True)]

    def answer(self, prompt, asked):
        images = prompt.get("multi_modal_data", {}).get("image", [])
        inputs = tokenize(self.processor, [prompt["prompt"]], [images], padding_side="left")
        torch.manual_seed(asked.seed)
        sampling = {"do_sample": True, "temperature": asked.temperature, "top_p": asked.top_p, "top_k": asked.top_k}
        tokens = self.policy.generate(
            **inputs,
            num_return_sequences=asked.n,
            max_new_tokens=asked.max_tokens,
            repetition_penalty=asked.repetition_penalty,
            eos_token_id=(eos := self.processor.tokenizer.eos_token_id),
            **(sampling if asked.temperature > 0 else {"do_sample": False}),
        )[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
        outputs = [
            types.SimpleNamespace(text=text, finish_reason="stop" if eos in row else "length")
            for text, row in zip(texts, tokens.tolist(), strict=True)
        ]
        return types.SimpleNamespace(prompt_token_ids=inputs["input_ids"][0].tolist(), outputs=outputs)


@pytest.fixture
def vllm(monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", types.SimpleNamespace(LLM=LLM, SamplingParams=SamplingParams))


def columns(rows):
    return [row["prompt"] for row in rows], [row["images"] for row in rows]


def test_greedy_responses_are_those_of_transformers(vllm, policy_path, policy, processor, mixed_pairs, image_pairs):
    prompts, images = columns(mixed_pairs[:6])
    prompts += [image_pairs[0]["prompt"] + [{"role": "assistant", "content": "Two"}]]
    images += [image_pairs[0]["images"]]
    greedy = SamplingParameters(max_new_tokens=6, temperature=0.0)
    sampler = VLLMSampler(str(policy_path), processor, greedy, dtype="float32")
    assert sampler(prompts, images) == ResponseSampler(policy, processor, greedy)(prompts, images)


def test_every_parameter_is_given_and_seeds_decide(vllm, policy_path, processor, image_pairs):
    prompts, images = columns(image_pairs[:2])
    settings = {"temperature": 0.7, "top_p": 0.9, "top_k": 5, "repetition_penalty": 1.1}
    sampler = VLLMSampler(
        str(policy_path), processor, SamplingParameters(max_new_tokens=4, **settings), dtype="float32"
    )
    torch.manual_seed(0)
    first = sampler(prompts, images, 3)
    seeds = [asked.seed for asked in sampler.llm.seen]
    assert sampler.llm.seen == [SamplingParams(n=3, max_tokens=4, seed=seed, **settings) for seed in seeds]
    assert len(set(seeds)) == 2 and [len(row) for row in first[0]] == [3, 3]
    torch.manual_seed(0)
    assert sampler(prompts, images, 3) == first
    torch.manual_seed(1)
    assert sampler(prompts, images, 3) != first


def test_an_engine_that_sees_other_tokens_is_refused(vllm, policy_path, processor, image_pairs):
    sampler = VLLMSampler(str(policy_path), processor, SamplingParameters(max_new_tokens=4), dtype="float32")
    sampler.llm.processor.image_processor.size = {"shortest_edge": 112 * 112, "longest_edge": 112 * 112}
    with pytest.raises(ValueError, match="prompt 0 has .* tokens in vLLM and .* in training and scoring"):
        sampler(*columns(image_pairs[:2]))


def test_the_fingerprint_follows_the_weights_and_the_settings(vllm, policy, policy_path, processor, tmp_path):
    policy.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    load = {"processor": processor, "parameters": SamplingParameters(max_new_tokens=4), "dtype": "float32"}
    first = VLLMSampler(str(policy_path), **load).fingerprint(seed=0)
    assert VLLMSampler(str(tmp_path), **load).fingerprint(seed=0) == first
    assert VLLMSampler(str(tmp_path), **load).fingerprint(seed=1) != first
    other = load | {"parameters": SamplingParameters(max_new_tokens=4, top_p=0.5)}
    assert VLLMSampler(str(tmp_path), **other).fingerprint(seed=0) != first
    policy.lm_head.weight.data[0, 0] += 1
    policy.save_pretrained(tmp_path)
    assert VLLMSampler(str(tmp_path), **load).fingerprint(seed=0) != first


def test_without_vllm_the_error_says_what_to_install(monkeypatch, processor):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ImportError, match="vl-reward\\[vllm\\]"):
        VLLMSampler("policy", processor, SamplingParameters())
