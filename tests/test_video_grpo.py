"""GRPO on rows with videos, images and text: what is sampled on, and what the policy's samples are scored by."""

import copy

import pytest
import torch
from datasets import Dataset
from PIL import Image
from test_hand_over import CHECKPOINTS, POLICY
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import GRPOConfig
from video_files import frames

from vl_reward import share_prefixes
from vl_reward.data.encoding import encode_prompts
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.data.videos.stored_videos import STORED
from vl_reward.training.grpo_trainer import VisionGRPOTrainer


LIMITS = {"fps": 4.0, "max_frames": 4, "max_pixels": 6 * 28 * 28}


@pytest.fixture(scope="module", params=[POLICY, str(CHECKPOINTS / "qwen3_vl/policy")], ids=["qwen2_5_vl", "qwen3_vl"])
def world(tmp_path_factory, request):
    """A processor with small limits, and rows. Three have the same tokens: frames in order, reversed, and some."""
    folder = tmp_path_factory.mktemp("grpo")
    processor = AutoProcessor.from_pretrained(request.param)
    FrameLimits.keep(processor, **LIMITS)
    paths = []
    for number, picture in enumerate(frames(4)):
        paths.append(str(folder / f"{number}.png"))
        picture.save(paths[-1])
    forward, backward = ([{"bytes": None, "path": path} for path in order] for order in (paths, paths[::-1]))
    video = {"bytes": None, "path": None, "fps": None}
    shown = [
        ([], [video | {"frames": forward}]),
        ([], [video | {"frames": backward}]),
        ([Image.open(paths[1])], [video | {"frames": backward[:2]}, video | {"frames": forward}]),
        ([Image.open(paths[2])], []),
        ([], []),
        ([], [video | {"frames": backward[:3]}]),
    ]
    rows = []
    for number, (images, videos) in enumerate(shown):
        parts = [{"type": "image"}] * len(images) + [{"type": "video"}] * len(videos)
        parts += [{"type": "text", "text": "Which came first?"}]
        rows.append({"id": str(number), "prompt": [{"role": "user", "content": parts}], "images": images})
        rows[-1]["videos"] = videos
    dataset = Dataset.from_list(rows)
    features = copy.copy(dataset.features)
    features["videos"] = STORED
    return request.param, processor, dataset.cast(features)


def plain_log_probs(policy, processor, row, completion):
    """Of a completion's tokens, by transformers, for one row alone."""
    batch = encode_prompts(processor, [row["prompt"]], [row["images"]], ["row"], [row["videos"]])
    n_prompt = batch["input_ids"].shape[1]
    batch["input_ids"] = torch.cat([batch["input_ids"], completion[None]], 1)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["mm_token_type_ids"] = torch.cat([batch["mm_token_type_ids"], torch.zeros_like(completion)[None]], 1)
    with torch.no_grad():
        logits = policy(**batch).logits[0, n_prompt - 1 : -1]
    return logits.log_softmax(-1).gather(1, completion[:, None])[:, 0]


@pytest.mark.parametrize("shared", [True, False])
def test_samples_are_scored_with_their_rows_videos(world, tmp_path, monkeypatch, shared):
    path, processor, dataset = world
    plain, policy = (AutoModelForImageTextToText.from_pretrained(path, dtype="float32") for _ in range(2))
    if shared:
        share_prefixes(policy)
    asked, scored, rewarded = [], [], []

    def reward(prompts, completions, images, videos, id, **kwargs):
        rewarded.extend(zip(id, completions, strict=True))
        return [float(len(one[0]["content"])) for one in completions]

    generate, log_probs = policy.generate, VisionGRPOTrainer._get_per_token_logps_and_entropies

    def spied(*args, **kwargs):
        asked.append(kwargs)
        return generate(*args, **kwargs)

    def spied_log_probs(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs):
        found = log_probs(self, model, input_ids, attention_mask, logits_to_keep, *args, **kwargs)
        scored.append((input_ids, attention_mask, logits_to_keep, found[0].detach()))
        return found

    monkeypatch.setattr(policy, "generate", spied)
    monkeypatch.setattr(VisionGRPOTrainer, "_get_per_token_logps_and_entropies", spied_log_probs)
    args = GRPOConfig(
        output_dir=str(tmp_path), max_steps=3, per_device_train_batch_size=4, gradient_accumulation_steps=1,
        steps_per_generation=3, num_generations=2, max_completion_length=5, beta=0.1, use_cpu=True, bf16=False,
        report_to="none", save_strategy="no", learning_rate=0.0, gradient_checkpointing=False, temperature=1.0,
    )  # fmt: skip
    trainer = VisionGRPOTrainer(policy, args, reward_funcs=reward, train_dataset=dataset, processing_class=processor)
    trainer.train()

    (given,) = asked  # once for all six prompts
    rows = [dataset[int(number)] for number, _ in rewarded]
    columns = [[row[key] for row in rows] for key in ("prompt", "images", "videos")]
    expected = encode_prompts(processor, columns[0], columns[1], ["row"] * len(rows), columns[2])
    assert {key for key in given if key != "generation_config"} == expected.keys()
    for key, value in expected.items():
        assert torch.equal(given[key], value), key
    assert {processor.image_token_id, processor.video_token_id} <= {*given["generation_config"].suppress_tokens}

    tokens = {}
    for row in dataset:
        encoded = encode_prompts(processor, [row["prompt"]], [row["images"]], ["row"], [row["videos"]])
        tokens[row["id"]] = (encoded["input_ids"][0].tolist(), row)
    checked = []
    for input_ids, attention_mask, n_completion, found in scored:
        for ids, mask, row_found in zip(input_ids, attention_mask, found, strict=True):
            completion = ids[-n_completion:][mask[-n_completion:].bool()]
            prompt = ids[:-n_completion][mask[:-n_completion].bool()].tolist()
            alike = [id for id, (known, _) in tokens.items() if known == prompt]
            values = [plain_log_probs(plain, processor, tokens[id][1], completion) for id in alike]
            gaps = [(value - row_found[: len(completion)]).abs().max() for value in values]
            assert min(gaps) < 1e-4 and (len(gaps) == 1 or max(gaps) > 1e-3)
            checked.append((alike[gaps.index(min(gaps))], len(alike), tuple(completion.tolist())))
    # Each sample before training (one call, in chunks), under the reference, and in three steps, in another order.
    assert sorted(checked[:12]) == sorted(checked[12:24]) == sorted(checked[24:])
    assert {id for id, _, _ in checked} == set("012345")
    assert {(id, alike) for id, alike, _ in checked if id in "015"} == {("0", 3), ("1", 3), ("5", 3)}
    assert [id for id, _, _ in checked[:12]] != [id for id, _, _ in checked[24:]]


def test_videos_and_trls_vllm_do_not_go_together(world, tmp_path, monkeypatch):
    """TRL itself wants a server for `use_vllm`, so its own beginning is left out."""
    path, processor, dataset = world

    def begin(self, model, args, **given):
        self.train_dataset = given["train_dataset"]

    monkeypatch.setattr("vl_reward.training.guards.TrainerGuards.__init__", begin)
    args = GRPOConfig(output_dir=str(tmp_path), max_steps=1, use_cpu=True, bf16=False, report_to="none", use_vllm=True)
    with pytest.raises(ValueError, match="The rows have `videos`, and TRL gives its vLLM images alone"):
        VisionGRPOTrainer(None, args, reward_funcs=len, train_dataset=dataset, processing_class=processor)
