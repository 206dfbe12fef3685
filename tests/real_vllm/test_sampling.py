"""Samples of a real vLLM against those of transformers: its offline engine, and its server."""

import copy
import itertools
from collections import Counter

import pytest
import torch
from scipy.stats import chi2
from servers import ENGINE, PATIENCE
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from video_files import frames, write_video

from vl_reward import ResponseSampler, SamplingParameters
from vl_reward.data.encoding import encode_prompts, render_prompts, tokenize
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.data.videos.vllm_videos import places_without_videos
from vl_reward.inference.server_sampler import ServerSampler
from vl_reward.inference.vllm_sampler import VLLMSampler, as_request
from vl_reward.labelling.verifiers import final_answer
from vl_reward.models.repeated_visuals import repeated
from vl_reward.tiny.digits import compose, compose_text


pytestmark = pytest.mark.vllm
GREEDY = SamplingParameters(max_new_tokens=12, temperature=0.0)
DRAWN = SamplingParameters(max_new_tokens=24, temperature=1.0)
ENGINES = ["offline", "server"]


@pytest.fixture(scope="module")
def model(trained_path):
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(trained_path, dtype="float32").eval()


@pytest.fixture(scope="module")
def trained_processor(trained_path):
    return AutoProcessor.from_pretrained(trained_path)


@pytest.fixture(scope="module")
def policy_server(serve, trained_path):
    images = ["--limit-mm-per-prompt", '{"image": 2, "video": 2}']
    return serve(trained_path, "--served-model-name", str(trained_path), *images).wait()


@pytest.fixture(scope="module")
def engine(trained_path, trained_processor):
    """One engine for all tests: only what is asked of it differs."""
    sampler = VLLMSampler(str(trained_path), trained_processor, GREEDY, dtype="float32", engine_kwargs=ENGINE)
    return sampler.llm


@pytest.fixture
def sampler(trained_path, trained_processor, request, monkeypatch):
    """A sampler of the engine that the test is for."""

    def make(parameters):
        if request.param == "server":
            url = request.getfixturevalue("policy_server").url
            return ServerSampler(url, str(trained_path), trained_processor, parameters, patience=PATIENCE)
        llm = request.getfixturevalue("engine")
        monkeypatch.setattr("vllm.LLM", lambda **arguments: llm)
        return VLLMSampler(str(trained_path), trained_processor, parameters, dtype="float32")

    return make


def ask(rows):
    return [[{"role": "user", "content": row["question"]}] for row in rows], [row["images"] for row in rows]


@pytest.mark.parametrize("sampler", ENGINES, indirect=True)
def test_greedy_responses_are_those_of_transformers(sampler, model, trained_processor):
    rows = [*itertools.islice(compose("test", 0), 160), *itertools.islice(compose_text(0), 40)]
    prompts, images = ask(rows)
    assert {len(row) for row in images} == {0, 1, 2}
    prompts[0] = [*prompts[0], {"role": "assistant", "content": "I see"}]  # continued, not answered
    expected = ResponseSampler(model, trained_processor, GREEDY)(prompts, images)
    responses, reasons = sampler(GREEDY)(prompts, images)
    assert (responses, reasons) == expected
    assert {reason for row in reasons for reason in row} == {"stop", "length"}


def video_rows(folder):
    """Videos of several lengths, sizes and rates, in a file or as frames, alone, twice, and beside an image."""
    clips = [write_video(folder / "a.mp4", frames(24)), write_video(folder / "b.mp4", frames(9, (64, 128)), fps=3)]
    clips.append({"frames": frames(5), "fps": 1.5})
    long = write_video(folder / "long.mp4", frames(96))
    rows = list(itertools.islice(compose("test", 3), 4))
    shown = [[], [clips[0]], [clips[1], clips[0]], [clips[2], clips[2]], [clips[1], clips[1]], [clips[2]], [long]]
    images = [rows[0]["images"], [], [], rows[1]["images"], [], rows[2]["images"], []]
    return [[{"role": "user", "content": f"Which is larger? {i}"}] for i in range(7)], images, shown


def compare_log_probs(engine, model, processor, prompts, images, videos):
    """The largest difference to transformers in the log-probabilities of each prompt's tokens, which are the same."""
    from vllm import SamplingParams as EngineParameters  # `make test` collects this file, too

    rendered = render_prompts(processor, prompts, images, [f"prompt {i}" for i in range(len(prompts))], videos)
    asked = EngineParameters(max_tokens=1, prompt_logprobs=0)
    with places_without_videos():
        answers = engine.generate([as_request(processor, *row) for row in zip(*rendered, strict=True)], asked)
    worst = []
    for answer, text, *shown in zip(answers, *rendered, strict=True):
        inputs = tokenize(processor, [text], *([one] for one in shown), padding_side="left")
        tokens = inputs["input_ids"][0]
        assert answer.prompt_token_ids == tokens.tolist()
        with torch.no_grad():
            here = model(**repeated(inputs)).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        found = zip(answer.prompt_logprobs[1:], tokens[1:].tolist(), strict=True)
        worst.append((torch.tensor([known[token].logprob for known, token in found]) - here).abs().max().item())
    return worst


@pytest.mark.parametrize("limits", [{"fps": 2.0, "max_frames": 64}, {"fps": 1.1, "max_frames": 4}])
def test_videos_are_seen_as_transformers_sees_them(engine, model, trained_processor, tmp_path, monkeypatch, limits):
    """The tokens of every prompt, the log-probability of each, which time decides, too, and greedy responses."""
    processor = copy.deepcopy(trained_processor)
    FrameLimits.keep(processor, **limits)
    prompts, images, videos = video_rows(tmp_path)
    worst = compare_log_probs(engine, model, processor, prompts, images, videos)
    assert max(worst[:6]) < 1e-3 < 0.1 < worst[6]  # the last has more places in time than its frames in size

    monkeypatch.setattr("vllm.LLM", lambda **arguments: engine)
    sampler = VLLMSampler("unused", processor, GREEDY, dtype="float32")
    responses, reasons = sampler(prompts, images, videos=videos)
    expected = ResponseSampler(model, processor, GREEDY)(prompts[:6], images[:6], videos=videos[:6])
    assert (responses[:6], reasons[:6]) == expected
    assert responses[6] == [] and "vLLM would put the text after it elsewhere than training does" in reasons[6][0]
    assert sampler(prompts[6:], images[6:], videos=videos[6:]) == (responses[6:], reasons[6:])


@pytest.mark.parametrize("limits", [{"fps": 2.0, "max_frames": 64}, {"fps": 1.1, "max_frames": 4}])
def test_a_server_sees_videos_as_transformers_sees_them(
    policy_server, model, trained_path, trained_processor, tmp_path, limits
):
    """The tokens of every prompt, the log-probability of each, and greedy responses."""
    processor = copy.deepcopy(trained_processor)
    FrameLimits.keep(processor, **limits)
    prompts, images, videos = video_rows(tmp_path)
    sampler = ServerSampler(policy_server.url, str(trained_path), processor, GREEDY, patience=PATIENCE)
    asking = {"prompt_logprobs": 0, "return_token_ids": True, "max_tokens": 1}
    for number in range(6):
        row = [prompts[number], images[number], videos[number]]
        answer = sampler._ask("a row", *row, 0, 1, **asking)
        inputs = encode_prompts(processor, [row[0]], [row[1]], ["a row"], [row[2]])
        tokens = inputs["input_ids"][0]
        assert answer["prompt_token_ids"] == tokens.tolist()
        with torch.no_grad():
            here = model(**inputs).logits[0, :-1].log_softmax(-1).gather(1, tokens[1:, None])[:, 0]
        found = zip(answer["prompt_logprobs"][1:], tokens[1:].tolist(), strict=True)
        there = torch.tensor([known[str(token)]["logprob"] for known, token in found])
        assert (there - here).abs().max() < 1e-3

    responses, reasons = sampler(prompts, images, videos=videos)
    expected = ResponseSampler(model, processor, GREEDY)(prompts[:6], images[:6], videos=videos[:6])
    assert (responses[:6], reasons[:6]) == expected
    assert responses[6] == [] and "vLLM would put the text after it elsewhere than training does" in reasons[6][0]
    assert sampler(prompts[6:], images[6:], videos=videos[6:]) == (responses[6:], reasons[6:])


@pytest.mark.parametrize("sampler", ENGINES, indirect=True)
def test_samples_are_distributed_alike(sampler, model, trained_processor):
    prompts, images = ask(list(itertools.islice(compose("test", 1), 40)))
    torch.manual_seed(0)
    here, _ = ResponseSampler(model, trained_processor, DRAWN)(prompts, images, 64)
    there, _ = sampler(DRAWN)(prompts, images, 64)
    statistic, freedom = 0.0, 0
    for ours, theirs in zip(here, there, strict=True):
        counts = [Counter(map(final_answer, responses)) for responses in (ours, theirs)]
        # Answers that are rare in both together are one class: a chi-square test wants five of each.
        common = [answer for answer, n in (counts[0] + counts[1]).items() if n >= 10]
        table = [[n[answer] for answer in common] + [64 - sum(n[answer] for answer in common)] for n in counts]
        for a, b in zip(*table, strict=True):
            statistic += (a - b) ** 2 / (a + b) if a + b else 0.0
        freedom += sum(a + b > 0 for a, b in zip(*table, strict=True)) - 1
    assert freedom >= 40, "the samples differ too little to compare"
    assert chi2.sf(statistic, freedom) > 0.001


@pytest.mark.parametrize("sampler", ENGINES, indirect=True)
def test_seeds_decide_and_one_response_is_a_normal_request(sampler):
    prompts, images = ask(list(itertools.islice(compose("test", 2), 8)))
    parameters = SamplingParameters(max_new_tokens=8, temperature=1.5, top_p=0.95, top_k=50, repetition_penalty=1.1)
    drawn = {}
    for seed, n in ((0, 1), (0, 1), (1, 1), (0, 3)):
        torch.manual_seed(seed)
        drawn.setdefault((seed, n), []).append(sampler(parameters)(prompts, images, n)[0])
    assert drawn[0, 1][0] == drawn[0, 1][1] != drawn[1, 1][0]
    assert [len(row) for row in drawn[0, 1][0]] == [1] * 8 and [len(row) for row in drawn[0, 3][0]] == [3] * 8
    greedy = sampler(GREEDY)(prompts, images, 2)[0]
    assert all(first == second for first, second in greedy)


def test_engine_arguments_reach_the_engine(engine, trained_path, trained_processor):
    assert engine.model_config.max_model_len == 2048
    for given, said in (
        ({"max_modl_len": 512}, "no such argument. Did you mean max_model_len"),
        ({"dtype": "float16"}, "decided by the recipe's own options"),
    ):
        with pytest.raises(ValueError, match=said):
            VLLMSampler(str(trained_path), trained_processor, GREEDY, engine_kwargs=given)


@pytest.mark.parametrize("sampler", ["offline"], indirect=True)
def test_an_engine_that_sees_other_tokens_is_refused_before_it_answers(sampler, trained_processor, monkeypatch):
    asked = sampler(GREEDY)
    another = {"shortest_edge": 112 * 112, "longest_edge": 112 * 112}
    answer, requests = asked.llm.generate, []

    def generate(rows, *rest, **options):
        requests.extend(rows)
        return answer(rows, *rest, **options)

    monkeypatch.setattr(asked.llm, "generate", generate)
    monkeypatch.setattr(trained_processor.image_processor, "size", another)
    with pytest.raises(ValueError, match="prompt 0 has .* tokens in vLLM and .* in training and scoring"):
        asked(*ask(list(itertools.islice(compose("test", 0), 4))))
    assert len(requests) == 1


def test_the_fingerprint_follows_the_weights_and_the_settings(
    engine, model, trained_path, trained_processor, tmp_path, monkeypatch
):
    monkeypatch.setattr("vllm.LLM", lambda **arguments: engine)
    load = {"processor": trained_processor, "parameters": GREEDY, "dtype": "float32"}
    first = VLLMSampler(str(trained_path), **load).fingerprint(seed=0)
    model.save_pretrained(tmp_path)
    assert VLLMSampler(str(tmp_path), **load).fingerprint(seed=0) == first
    assert VLLMSampler(str(tmp_path), **load).fingerprint(seed=1) != first
    assert VLLMSampler(str(tmp_path), **load | {"parameters": DRAWN}).fingerprint(seed=0) != first
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1
        model.save_pretrained(tmp_path)
        model.lm_head.weight[0, 0] -= 1
    assert VLLMSampler(str(tmp_path), **load).fingerprint(seed=0) != first
