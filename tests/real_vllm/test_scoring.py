"""Scores of a real vLLM, offline and served, against those of `RewardScorer`; and servers that are wrong."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from servers import CHECKPOINTS, ENGINE, PATIENCE, POOLING
from test_sampling import video_rows
from transformers import AutoModelForImageTextToText, AutoProcessor
from video_files import frames

from vl_reward import (
    Qwen3VLForSequenceClassification,
    ResponseSampler,
    RewardScorer,
    SamplingParameters,
    ServerScorer,
)
from vl_reward.data.encoding import load_images, render
from vl_reward.data.messages import as_messages
from vl_reward.inference.probes import Probes
from vl_reward.inference.vllm_sampler import VLLMSampler
from vl_reward.models.exported_checkpoint import ExportedCheckpoint
from vl_reward.tiny.digits import compose, compose_text
from vl_reward.tiny.preferences import corrupted_pairs


pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def conversations():
    """200 prompts, answers and lists of none, one or two images."""
    rows = [*corrupted_pairs(compose("test", 0), 80, 0), *corrupted_pairs(compose_text(0), 20, 0)]
    return [(row["prompt"], row[side], row["images"]) for row in rows for side in ("chosen", "rejected")]


@pytest.fixture(scope="module")
def released(trained_path, tmp_path_factory):
    """A model with a value head and a bias, as LLaMA-Factory writes it, in its own layout and exported for vLLM."""
    folder = tmp_path_factory.mktemp("released")
    for path in trained_path.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    head = {"weight": torch.randn(1, 128, generator=torch.Generator().manual_seed(0)), "bias": torch.tensor([0.75])}
    save_file({f"v_head.summary.{name}": tensor for name, tensor in head.items()}, folder / "value_head.safetensors")
    exported = tmp_path_factory.mktemp("released_vllm")
    ExportedCheckpoint(str(folder), "vllm").write(exported)
    Probes.measured_by(RewardScorer.from_pretrained(str(folder)), "float32").save(exported)
    return folder, exported


def classified(folder, processor, conversations):
    """Scores of vLLM's offline engine."""
    from vllm import LLM

    llm = LLM(model=str(folder), runner="pooling", dtype="float32", **ENGINE)
    prompts = []
    for i, (prompt, answer, images) in enumerate(conversations):
        images = load_images(f"row {i}", images)
        text = render(processor, f"row {i}", as_messages(prompt, answer), images)
        prompts.append({"prompt": text, **({"multi_modal_data": {"image": images}} if images else {})})
    return [output.outputs.probs[0] for output in llm.classify(prompts, use_tqdm=False)]


def test_scores_are_those_of_the_reward_scorer(reward_path, exported, reward_server, conversations):
    here = RewardScorer.from_pretrained(str(reward_path))
    columns = [list(column) for column in zip(*conversations, strict=True)]
    expected = here(*columns)
    assert torch.tensor(expected).std() > 0.5
    assert ServerScorer(reward_server.url, str(exported), patience=PATIENCE)(*columns) == pytest.approx(
        expected, abs=1e-4
    )
    assert RewardScorer.from_pretrained(str(exported))(*columns) == pytest.approx(expected, abs=1e-6)
    assert classified(exported, here.processor, conversations) == pytest.approx(expected, abs=1e-4)


def test_videos_are_scored_as_the_reward_scorer_scores_them(reward_path, exported, reward_server, tmp_path):
    """Several responses to each prompt: the second finds its prompt, and a single video, in the server's cache."""
    prompts, images, videos = video_rows(tmp_path)
    answers = ["I see 4 and 5. Answer: 9", "I see 7 and 1. Answer: 8", "Answer: 3"]
    rows = [{"prompt": prompts[i], "images": images[i], "videos": videos[i], "responses": answers} for i in range(7)]
    here, there = RewardScorer.from_pretrained(str(reward_path)), ServerScorer(reward_server.url, str(exported))
    expected = here.score_responses(rows[:6])
    assert min(max(scores) - min(scores) for scores in expected) > 0.01
    for _ in range(2):
        for scores, right in zip(there.score_responses(rows[:6]), expected, strict=True):
            assert scores == pytest.approx(right, abs=1e-4)
    backwards = [rows[3] | {"videos": [{"frames": frames(5)[::-1], "fps": 1.5}] * 2}]
    assert there.score_responses(backwards)[0] == pytest.approx(here.score_responses(backwards)[0], abs=1e-4)
    with pytest.raises(ValueError, match="response 0 of row 6: a video is .* vLLM would put the text after it"):
        there.score_responses([rows[6] | {"id": 6}])


def test_a_value_head_with_a_bias_is_served(released, serve, conversations):
    folder, exported = released
    here, columns = (
        RewardScorer.from_pretrained(str(folder)),
        [list(column) for column in zip(*conversations, strict=True)],
    )
    expected = here(*columns)
    server = serve(exported, *POOLING).wait()
    assert ServerScorer(server.url, str(exported), patience=PATIENCE)(*columns) == pytest.approx(expected, abs=1e-4)
    server.kill()
    assert classified(exported, here.processor, conversations) == pytest.approx(expected, abs=1e-4)


def test_several_servers_share_the_work(reward_server, exported, serve, conversations):
    other = serve(exported, *POOLING, "--served-model-name", str(exported)).wait()
    columns = [list(column) for column in zip(*conversations[:40], strict=True)]
    scorer = ServerScorer([reward_server.url, other.url], str(exported), patience=PATIENCE)
    assert scorer(*columns) == pytest.approx(
        ServerScorer(reward_server.url, str(exported), patience=PATIENCE)(*columns), abs=1e-4
    )
    counts = [server.log.read_text().count("POST /classify") for server in (reward_server, other)]
    assert min(counts) > 5
    other.kill()  # the one that is left does the rest
    assert scorer(*columns) == pytest.approx(
        ServerScorer(reward_server.url, str(exported), patience=PATIENCE)(*columns), abs=1e-4
    )


def without_head(folder):
    weights = load_file(folder / "model.safetensors")
    weights = {name: tensor for name, tensor in weights.items() if ".score." not in name}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_template(folder):
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<|im_end|>", " <|im_end|>"))


@pytest.mark.parametrize(
    ("change", "flags", "reason"),
    [
        (without_head, [], "head is lost"),
        (None, ["--pooler-config", '{"use_activation": true}', "--hf-overrides", '{"problem_type": "x"}'], "sigmoid"),
        (None, ["--mm-processor-kwargs", '{"size": {"shortest_edge": 3136, "longest_edge": 200704}}'], "pixel budget"),
        (with_another_template, [], "chat template is another"),
        (None, ["--dtype", "bfloat16"], "another dtype"),
    ],
    ids=["head", "sigmoid", "pixels", "template", "dtype"],
)
def test_a_wrong_server_is_refused(change, flags, reason, exported, serve, copied):
    folder = copied(exported)
    if change is not None:
        change(folder)
    server = serve(folder, *POOLING, *flags).wait()
    with pytest.raises(ValueError, match=reason):
        ServerScorer(server.url, str(exported))
    server.kill()


def test_qwen3_vl_is_served_and_sampled(serve, tmp_path, conversations):
    source, native, exported = CHECKPOINTS / "qwen3_vl/policy", tmp_path / "native", tmp_path / "exported"
    model = Qwen3VLForSequenceClassification.from_pretrained(source, dtype="float32")
    model.score.weight.data.normal_(0, 0.3, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(native)
    processor = AutoProcessor.from_pretrained(source)
    processor.save_pretrained(native)
    ExportedCheckpoint(str(native), "vllm").write(exported)
    here = RewardScorer.from_pretrained(str(exported))
    Probes.measured_by(here, "float32").save(exported)
    columns = [list(column) for column in zip(*conversations, strict=True)]
    expected = here(*columns)
    assert torch.tensor(expected).std() > 0.5
    server = serve(exported, *POOLING).wait()
    assert ServerScorer(server.url, str(exported), patience=PATIENCE)(*columns) == pytest.approx(expected, abs=1e-4)
    server.kill()
    policy = AutoModelForImageTextToText.from_pretrained(source, dtype="float32")
    greedy = SamplingParameters(max_new_tokens=12, temperature=0.0)
    prompts, images = [row[0] for row in conversations[::4]], [row[2] for row in conversations[::4]]
    sampled = VLLMSampler(str(source), processor, greedy, dtype="float32", engine_kwargs=ENGINE)(prompts, images)
    assert sampled == ResponseSampler(policy, processor, greedy)(prompts, images)
