"""Pairs with videos, from a file of one's own to a reward model and a policy, by the recipes and by the trainers."""

import json
import os
import shutil

import pytest
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from test_hand_over import BASE, POLICY, run_recipe
from test_mpo_trainer import mpo_config, token_log_probs
from test_reward_trainer import losses, reward_config
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification, AutoProcessor
from video_files import frames, write_video

from vl_reward import (
    MPOTrainer,
    ResponseSampler,
    RewardScorer,
    SamplingParameters,
    VisionRewardTrainer,
    share_prefixes,
)
from vl_reward.curation.audit import CurationAudit
from vl_reward.curation.conversion import convert
from vl_reward.curation.inspection import PairInspection
from vl_reward.curation.pair_curation import PairCuration
from vl_reward.curation.prompts.prompt_source import NotMeant, own_prompt
from vl_reward.curation.source import PreferenceSource
from vl_reward.curation.sources import trl_format
from vl_reward.data.collators import DataCollatorForMPO, DataCollatorForVisionReward
from vl_reward.data.encoding import encode_conversations
from vl_reward.data.messages import as_messages
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.data.videos.video import blank_video, load_video
from vl_reward.data.videos.vllm_videos import places_without_videos
from vl_reward.inference import transformers_sampler
from vl_reward.inference.fingerprints import row_key
from vl_reward.inference.response_scorer import refuse_videos
from vl_reward.models.repeated_visuals import repeated
from vl_reward.prefix_sharing.share_prefixes import calls_tower_once
from vl_reward.tiny.processor import build_processor
from vl_reward.training.guards import check_one_tower_call


LIMITS = {"fps": 4.0, "max_frames": 4, "max_pixels": 6 * 28 * 28}


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of one's own: a video, a folder of frames, an image, and pairs about them with relative paths."""
    folder = tmp_path_factory.mktemp("own")
    write_video(folder / "a.mp4", frames(12), 8)
    (folder / "clip").mkdir()
    for number, picture in enumerate(frames(4)):
        picture.save(folder / f"clip/{number}.png")
    shown = [{"videos": ["a.mp4"]}, {"video": "clip"}, {"images": ["clip/0.png"]}, {"videos": []}]
    shown += [
        {"videos": [["clip/3.png", "clip/1.png"]]},
        {"videos": [{"frames": ["clip/0.png", "clip/2.png"], "fps": 8}]},
    ]
    shown += [{"images": ["clip/1.png"], "videos": ["clip", "a.mp4"]}]
    sides = {"chosen": "The dark one.", "rejected": "The light one."}
    rows = [{"prompt": f"Which came first? {i}", **sides, **of_row} for i, of_row in enumerate(shown * 3)]
    lines(folder / "pairs.jsonl", rows)
    asked = [{key: row[key] for key in row if key not in sides} | {"answer": "dark"} for row in rows[:7]]
    lines(folder / "prompts.jsonl", asked)
    read = NamedDataset(str(folder / "pairs.jsonl")).split("train")
    DatasetDict({"train": read, "test": read}).save_to_disk(folder / "split")  # what is held out shares an image here
    return folder


@pytest.fixture
def own(processor):
    before = getattr(processor.video_processor, "frame_limits", None)
    FrameLimits.keep(processor, **LIMITS)
    yield processor
    processor.video_processor.frame_limits = before


def test_a_file_of_ones_own(folder):
    rows = NamedDataset(str(folder / "pairs.jsonl")).split("train")
    assert "unreadable" not in rows.column_names and "video" not in rows.column_names
    videos = rows["videos"][:7]
    assert list(map(len, videos)) == [1, 1, 0, 0, 1, 1, 2]
    assert videos[0] == [{"bytes": None, "path": str(folder / "a.mp4"), "frames": None, "fps": None}]
    assert videos[1][0]["path"] == str(folder / "clip") == videos[6][0]["path"]
    assert [frame["path"] for frame in videos[4][0]["frames"]] == [str(folder / f"clip/{i}.png") for i in (3, 1)]
    assert videos[5][0]["fps"] == 8.0 and len(videos[5][0]["frames"]) == 2
    kinds = [[part["type"] for part in turns[0]["content"]] for turns in rows["prompt"][:7]]
    assert kinds[0] == kinds[1] == ["video", "text"] and kinds[2] == ["image", "text"] and kinds[3] == ["text"]
    assert kinds[6] == ["image", "video", "video", "text"]


@pytest.mark.parametrize("suffix", ["parquet", "saved"])
def test_a_table_has_the_same_videos(folder, suffix):
    expected = NamedDataset(str(folder / "pairs.jsonl")).split("train")
    path = str(folder / f"table.{suffix}")
    expected.to_parquet(path) if suffix == "parquet" else expected.save_to_disk(path)
    read = NamedDataset(path).split("train")
    assert read["videos"][:] == expected["videos"][:] and read.features["videos"] == expected.features["videos"]
    written = lines(folder / "again.jsonl", NamedDataset(path).objects("train"))
    again = NamedDataset(written)
    assert again.split("train")["videos"][:] == expected["videos"][:]


def test_videos_in_other_forms_of_tables(folder):
    sides = {"prompt": ["Q?"] * 2, "chosen": ["A"] * 2, "rejected": ["B"] * 2}
    for number, column in enumerate(({"clips": ["a.mp4", None]}, {"clips": [["a.mp4"], []]})):
        path = folder / f"column_{number}.parquet"
        Dataset.from_dict(sides | column).to_parquet(str(path))
        read = NamedDataset(str(path), columns={"videos": "clips"}).split("train")
        assert [[video["path"] for video in row] for row in read["videos"]] == [[str(folder / "a.mp4")], []]
    data = (folder / "a.mp4").read_bytes()
    Dataset.from_dict(sides | {"videos": [[data], []]}).to_parquet(str(folder / "bytes.parquet"))
    dataset = NamedDataset(str(folder / "bytes.parquet"))
    assert [[video["bytes"] for video in row] for row in dataset.split("train")["videos"]] == [[data], []]
    again = NamedDataset(lines(folder / "bytes.jsonl", dataset.objects("train"))).split("train")
    assert again["videos"][0][0]["bytes"] == data


def test_whoever_does_not_see_videos_refuses_them(folder):
    with pytest.raises(ValueError, match="has videos in 15 of 21 rows, and this step reads images alone, so"):
        NamedDataset(str(folder / "pairs.jsonl"), images_only=True)


UNREADABLE = {
    "a number for all": ({"videos": 7}, "`videos` is 7, and a video or a list of videos is needed"),
    "a null": ({"videos": [None]}, "a video is unusable: it is a NoneType"),
    "a number": ({"videos": [[5]]}, "a video is unusable: '5' is neither bytes nor a path"),
    "a URL": ({"videos": ["https://example.org/a.mp4"]}, "a video is unusable: it is a URL"),
    "a rate": ({"videos": [{"frames": ["a.png"], "fps": -1}]}, "a video is unusable: its `fps` is -1"),
    "a place too many": ({"prompt": "<video> <video>", "videos": ["a.mp4"]}, "Number of videos provided (1)"),
    "no video": ({"prompt": "<video> Q?"}, "Number of videos provided (0)"),
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_rows_that_cannot_be_read_are_marked(tmp_path, name):
    row, reason = UNREADABLE[name]
    rows = [{"prompt": "Q?", "chosen": "A", "rejected": "B"} | row, {"prompt": "Q?", "chosen": "A", "rejected": "B"}]
    read = NamedDataset(lines(tmp_path / "pairs.jsonl", rows)).split("train")
    assert read["unreadable"][0].startswith(reason) and read["unreadable"][1] is None


def test_a_blank_video_has_the_same_frames_and_times(folder, own):
    timed = {"frames": [str(folder / "clip/0.png")] * 4, "fps": 2.0}
    for source in (str(folder / "a.mp4"), str(folder / "clip"), timed):
        video, blank = load_video(source, own), load_video(blank_video(source), own)
        assert blank.sampling == video.sampling and blank.frames.shape == video.frames.shape
        assert (blank.frames == 255).all() and not (video.frames == 255).all()


# --- TRAINERS ---


@pytest.fixture
def pairs(folder):
    return NamedDataset(str(folder / "pairs.jsonl")).split("train")


def test_the_reward_trainer_sees_the_videos(pairs, own, reward_model, tmp_path):
    def trainer(rows, model=reward_model):
        args = reward_config(tmp_path / "out", max_steps=2, per_device_train_batch_size=7)
        return VisionRewardTrainer(model, args, processing_class=own, train_dataset=rows, eval_dataset=rows)

    batch = next(iter(trainer(pairs).get_train_dataloader()))
    assert len(batch["video_grid_thw"]) > 0 and (batch["mm_token_type_ids"] == 2).any()
    rows = [pairs[i] for i in range(7)]
    first = DataCollatorForVisionReward(own)(rows)
    conversations = [as_messages(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in rows]
    columns = {key: [row[key] for row in rows] * 2 for key in ("images", "videos")}
    expected = encode_conversations(own, conversations, columns["images"], ["r"] * 14, videos=columns["videos"])
    assert all(torch.equal(first[key], expected[key]) for key in expected) and first.keys() == expected.keys()
    # Sharing changes nothing but the time it takes.
    other = AutoModelForSequenceClassification.from_pretrained(reward_model.name_or_path, dtype="float32").eval()
    other.load_state_dict(reward_model.state_dict())
    plain, shared = trainer(pairs), trainer(pairs, share_prefixes(other))
    plain.train(), shared.train()
    assert losses(plain) == pytest.approx(losses(shared), abs=1e-5)
    assert plain.evaluate()["eval_n_pairs"] == 21
    for name, weight in reward_model.state_dict().items():
        assert torch.allclose(weight, other.state_dict()[name], atol=1e-4), name


def test_mpo_sees_the_videos_and_precomputes_the_same(pairs, own, policy_path, tmp_path):
    def load():
        return AutoModelForImageTextToText.from_pretrained(policy_path, dtype="float32")

    rows = [pairs[i] for i in range(7)]
    batch = DataCollatorForMPO(own)([dict(row) for row in rows])
    assert len(batch["video_grid_thw"]) < len(batch["video_numbers"]) == 12 and (batch["mm_token_type_ids"] == 2).any()
    with torch.no_grad():
        together = token_log_probs(load(), batch)
        for i, row in enumerate(rows):  # each side alone, as transformers encodes it
            for side, number in (("chosen", i), ("rejected", i + 7)):
                messages, shown = as_messages(row["prompt"], row[side]), (row["images"], row["videos"])
                alone = encode_conversations(own, [messages], [shown[0]], ["r"], videos=[shown[1]])
                log_probs = load()(**repeated(alone)).logits.log_softmax(-1)[0, :-1]
                n = len(together[number])
                length = int(alone["attention_mask"].sum()) if row["images"] or row["videos"] else None
                tokens = alone["input_ids"][0][alone["attention_mask"][0].bool()]
                expected = log_probs[: len(tokens) - 1].gather(-1, tokens[1:, None])[-n:, 0]
                assert length in (None, len(tokens)) and torch.allclose(together[number], expected, atol=1e-4)

    def train(share, **changes):
        model, ref_model = load(), load()
        if share:
            share_prefixes(model), share_prefixes(ref_model)
        args = mpo_config(tmp_path / f"out_{share}", max_steps=2, max_length=None, **changes)
        trainer = MPOTrainer(model, ref_model, args, processing_class=own, train_dataset=pairs)
        trainer.train()
        return model.state_dict()

    plain, shared, ahead = train(False), train(True), train(True, precompute_ref_log_probs=True)
    for name, weight in plain.items():
        assert torch.allclose(weight, shared[name], atol=1e-4), name
        assert torch.allclose(ahead[name], shared[name], atol=1e-4), name


def test_one_video_alone_is_seen_too(folder, own, reward_model, tmp_path):
    """A dataset that did not come through [`NamedDataset`] may have `video`, as it may have `image`."""
    sides = {"prompt": "Which?", "chosen": "The dark one.", "rejected": "The light one.", "images": []}
    one, many = sides | {"video": str(folder / "a.mp4")}, sides | {"videos": [str(folder / "a.mp4")]}
    for collator in (DataCollatorForVisionReward(own), DataCollatorForMPO(own)):
        first, second = collator([dict(one)]), collator([dict(many)])
        assert torch.equal(first["pixel_values_videos"], second["pixel_values_videos"])
        third = collator([sides | {"videos": str(folder / "a.mp4")}])
        assert torch.equal(first["pixel_values_videos"], third["pixel_values_videos"])
    rows = Dataset.from_list([one] * 4)
    trainer = VisionRewardTrainer(reward_model, reward_config(tmp_path), processing_class=own, train_dataset=rows)
    assert "pixel_values_videos" in next(iter(trainer.get_train_dataloader()))
    assert row_key("f", one) == row_key("f", many)


def test_a_sharded_model_wants_one_call_of_the_tower(pairs, own, reward_model, tmp_path):
    args = reward_config(tmp_path / "out")
    trainer = VisionRewardTrainer(reward_model, args, processing_class=own, train_dataset=pairs)
    trainer.accelerator.state.distributed_type, before = "DEEPSPEED", trainer.accelerator.state.distributed_type
    try:
        assert not calls_tower_once(reward_model)
        with pytest.raises(ValueError, match="would call the vision tower twice.*Set `share_prefixes: true`"):
            check_one_tower_call(trainer)
        share_prefixes(reward_model)
        check_one_tower_call(trainer)
    finally:
        trainer.accelerator.state.distributed_type = before


def test_a_resumed_run_has_the_limits_it_was_started_with(pairs, own, reward_model, tmp_path):
    args = reward_config(tmp_path / "out", max_steps=2, save_strategy="steps", save_steps=1)
    VisionRewardTrainer(reward_model, args, processing_class=own, train_dataset=pairs).train()
    FrameLimits.keep(own, max_frames=2)
    trainer = VisionRewardTrainer(reward_model, args, processing_class=own, train_dataset=pairs)
    with pytest.raises(ValueError, match="video_limits was .*'max_frames': 4.* and is .*'max_frames': 2"):
        trainer.train(resume_from_checkpoint=str(tmp_path / "out/checkpoint-1"))


# --- RECIPES ---

BUDGET = ["--video_fps", 4, "--video_max_frames", 4, "--video_max_pixels", 6 * 28 * 28]
TRAINING = ["--max_steps", 1, "--per_device_train_batch_size", 4, "--dataloader_num_workers", 0, "--max_length", 400]


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    """A reward model that stage 1 made of one's own pairs."""
    output = tmp_path_factory.mktemp("trained")
    pairs = ["--dataset_name", folder / "split", *BUDGET, *TRAINING]
    run_recipe("reward_stage1", "--model_name_or_path", BASE, *pairs, "--output_dir", output)
    return output


def test_stage_1_trains_on_video_pairs_and_keeps_the_limits(trained, folder):
    told = [json.loads(line) for line in open(trained / "videos_train.jsonl")]
    assert (
        len(told) == 15 and (trained / "videos_eval.jsonl").exists()
    )  # all rows with videos; those of text are not stage 1's
    one = next(row for row in told if row["id"] == "0")["videos"]
    # 1.5 seconds at 4 frames a second are 6 frames, of which 4 are allowed.
    assert one == [
        {"frames": 4, "seconds_per_frame": 0.375, "indices": [0, 4, 7, 11], "total": 12, "fps": 8.0}
        | {"height": 56, "width": 84}
    ]
    scorer = RewardScorer.from_pretrained(str(trained))
    assert FrameLimits.of(scorer.processor) == FrameLimits(**LIMITS)
    assert FrameLimits.of(RewardScorer.from_pretrained(str(trained), video_limits={"fps": 1.0}).processor).fps == 1.0
    forwards, backwards = (load_video([frames(4)[i] for i in order], scorer.processor) for order in ([0, 3], [3, 0]))
    assert not torch.equal(forwards.frames, backwards.frames)


def test_videos_go_through_all_recipes_that_read_them(trained, folder, tmp_path):
    reward = ["--model_name_or_path", trained]
    trained_on = ["--dataset_name", folder / "pairs.jsonl", *BUDGET, *TRAINING]
    run_recipe("mpo", "--model_name_or_path", POLICY, *trained_on, "--output_dir", tmp_path / "mpo")
    assert FrameLimits.of(AutoProcessor.from_pretrained(tmp_path / "mpo")) == FrameLimits(**LIMITS)
    sampled = ["--dataset_name", folder / "prompts.jsonl", "--num_generations", 3, "--temperature", 1.5, *BUDGET]
    run_recipe("sample_responses", "--model_name_or_path", POLICY, *sampled, "--output_dir", tmp_path / "sampled")
    candidates = ["--dataset_name", tmp_path / "sampled/candidates"]
    expected = NamedDataset(str(folder / "prompts.jsonl")).split("train")["videos"][:]
    assert load_from_disk(tmp_path / "sampled/candidates")["videos"][:] == expected
    run_recipe("score_responses", *reward, *candidates, "--output_dir", tmp_path / "scored")
    scored = NamedDataset(str(tmp_path / "scored/scored.jsonl")).split("train")
    assert scored["videos"][:] == expected
    scorer = RewardScorer.from_pretrained(str(trained), dtype="float32")
    rows = [row | {"images": list(row["images"])} for row in scored.remove_columns("scores")]
    assert [s for row in scored["scores"] for s in row] == pytest.approx(
        [s for row in scorer.score_candidates(rows) for s in row], abs=1e-4
    )
    labelled = ["--min_score_margin", 0, "--rules", "best_vs_worst", "--output_dir", tmp_path / "labelled"]
    run_recipe("label_preferences", *reward, *candidates, *labelled)
    pairs = load_from_disk(tmp_path / "labelled/preferences")
    given = dict(zip(scored["id"], scored["videos"], strict=True))
    assert len(pairs) > 0 and all(videos == given[id] for id, videos in zip(pairs["id"], pairs["videos"], strict=True))
    measured = ["--dataset_name", folder / "pairs.jsonl", "--output_dir", tmp_path / "measured"]
    run_recipe("evaluate_reward", *reward, *measured, "--dataset_test_split", "train")
    read = [json.loads(line) for line in open(tmp_path / "measured/scores.jsonl")][:7]
    shows = [line["blank_scores"] != pytest.approx(line["scores"], abs=1e-5) for line in read]
    assert shows == [True, True, True, False, True, True, True]
    answered = ["--dataset_name", folder / "prompts.jsonl", "--dataset_test_split", "train", *BUDGET]
    answered += ["--verifier", "exact", "--reward_model", trained, "--num_generations", 2]
    run_recipe("evaluate_policy", "--model_name_or_path", POLICY, *answered, "--output_dir", tmp_path / "answered")
    assert json.loads((tmp_path / "answered/results.json").read_text())["n_prompts"] == 7
    judged = ["--dataset_name", folder / "pairs.jsonl", "--dataset_test_split", "train", "--max_rows", 2, *BUDGET]
    judged += ["--max_new_tokens", 4, "--output_dir", tmp_path / "judged"]
    run_recipe("evaluate_judge", "--model_name_or_path", BASE, *judged)
    assert len(open(tmp_path / "judged/votes.jsonl").readlines()) == 2


def test_own_video_pairs_are_measured_by_subset(trained, folder, tmp_path):
    """What VideoRewardBench counts: the share of pairs whose chosen response scores higher, of all and by `source`."""
    rows = [json.loads(line) for line in open(folder / "pairs.jsonl")]
    rows = [row | {"source": ("reasoning", "safety")[i % 3 == 0]} for i, row in enumerate(rows) if row.get("videos")]
    given = ["--dataset_name", lines(folder / "by_subset.jsonl", rows), "--dataset_test_split", "train"]
    run_recipe("evaluate_reward", "--model_name_or_path", trained, *given, "--output_dir", tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    scores = [json.loads(line)["scores"] for line in open(tmp_path / "scores.jsonl")]
    for name in ("reasoning", "safety"):
        found = [pair for row, pair in zip(rows, scores, strict=True) if row["source"] == name]
        right = [(chosen > rejected) + 0.5 * (chosen == rejected) for chosen, rejected in found]
        assert results["subsets"][name]["n"] == len(right) > 0
        assert results["subsets"][name]["accuracy"] == pytest.approx(sum(right) / len(right))
    assert results["n"] == len(rows) == 12


def test_grpo_trains_on_videos(folder, tmp_path, trained):
    given = ["--model_name_or_path", POLICY, "--dataset_name", folder / "prompts.jsonl", "--output_dir", tmp_path]
    given += ["--reward_model", trained, *BUDGET, "--max_steps", 2, "--per_device_train_batch_size", 8]
    given += ["--num_generations", 4, "--max_completion_length", 6, "--logging_steps", 1, "--temperature", 3]
    run_recipe("grpo", *given)
    assert FrameLimits.of(AutoProcessor.from_pretrained(tmp_path)) == FrameLimits(**LIMITS)
    told = [json.loads(line) for line in open(tmp_path / "videos_train.jsonl")]
    assert [[video["frames"] for video in row["videos"]] for row in told] == [[4], [4], [2], [2], [4, 4]]
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    assert all(step["grad_norm"] > 0 and step["reward"] != 0 for step in history if "loss" in step)
    weights = [AutoModelForImageTextToText.from_pretrained(path).lm_head.weight for path in (POLICY, tmp_path)]
    assert not torch.equal(*weights)


def test_dropout_continues_responses_without_their_videos(folder, tmp_path):
    response, videos = "I see 4 and 5. Answer: 9", NamedDataset(str(folder / "prompts.jsonl")).split("train")["videos"]
    asked = [json.loads(line) | {"responses": [response]} for line in open(folder / "prompts.jsonl")]
    rows = [row | {"id": str(number)} for number, row in enumerate(asked)]
    greedy = ["--temperature", 0, "--max_new_tokens", 24, "--kept_fraction", 0.3, "--output_dir", tmp_path / "out"]
    candidates = ["--dataset_name", lines(tmp_path / "candidates.jsonl", rows)]
    shutil.copytree(folder / "clip", tmp_path / "clip"), shutil.copy(folder / "a.mp4", tmp_path)
    run_recipe("dropout_negatives", "--model_name_or_path", POLICY, *candidates, *greedy)
    report, pairs = (
        json.loads((tmp_path / "out/negatives.json").read_text()),
        load_from_disk(tmp_path / "out/preferences"),
    )
    assert report["no image or video, or no finished response"] == 1 and report["prompts"] == 7  # one is text alone
    model, processor = AutoModelForImageTextToText.from_pretrained(POLICY), AutoProcessor.from_pretrained(POLICY)
    sampler = ResponseSampler(model, processor, SamplingParameters(temperature=0.0, max_new_tokens=24))
    assert sum(len(row) > 0 for row in pairs["videos"]) >= 3
    for row in pairs:
        turns = [{"role": "user", "content": asked[int(row["id"])]["prompt"].replace("<video>", "")}]
        ((alone,),), _ = sampler([[*turns, {"role": "assistant", "content": "I see"}]], [[]])
        assert len(row["videos"]) == len(videos[int(row["id"])]) and row["chosen"][0]["content"] == response
        assert row["rejected"][0]["content"] == "I see" + alone


def test_a_broken_video_stops_training_before_its_first_step(folder, tmp_path):
    (tmp_path / "cut.mp4").write_bytes((folder / "a.mp4").read_bytes()[:-900])
    rows = [{"prompt": f"Q {i}?", "chosen": "A", "rejected": "B", "videos": ["cut.mp4"]} for i in range(4)]
    given = ["--dataset_name", lines(tmp_path / "pairs.jsonl", rows), *BUDGET, *TRAINING]
    with pytest.raises(ValueError, match="rows cannot be trained on: row .*cut.mp4 could not be read as a video"):
        run_recipe("reward_stage2", "--model_name_or_path", BASE, *given, "--output_dir", tmp_path / "out")
    assert not os.path.exists(tmp_path / "out/model.safetensors")


def test_a_benchmarks_videos_are_videos_or_single_images(folder, trained, tmp_path):
    sides = {"prompt": "Which came first?", "chosen": "The dark one.", "rejected": "The light one."}
    rows = [{"id": "v", "video": "video/clip", **sides}, {"id": "m", "image": "mcq/1.png", **sides}]
    (tmp_path / "video").mkdir(), (tmp_path / "mcq").mkdir()
    shutil.copytree(folder / "clip", tmp_path / "video/clip")
    shutil.copy(folder / "clip/1.png", tmp_path / "mcq/1.png")
    given = ["--model_name_or_path", trained, "--benchmark", "mm_rlhf_rewardbench", "--dataset_name", ""]
    given += ["--data_files", lines(tmp_path / "rows.jsonl", rows)]
    scorer, clip = RewardScorer.from_pretrained(str(trained), dtype="float32"), str(tmp_path / "video/clip")
    picture = str(tmp_path / "mcq/1.png")
    read = {"false": ([[], [picture]], [[clip], []])}
    read["true"] = [[f"{clip}/{i}.png" for i in range(4)], [picture]], [[], []]
    results = {}
    for name, (images, videos) in read.items():
        run_recipe("evaluate_reward", *given, "--frames_as_images", name, "--output_dir", tmp_path / name)
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
        scores = [json.loads(line)["scores"] for line in open(tmp_path / name / "scores.jsonl")]
        for number, side in enumerate(("chosen", "rejected")):
            expected = scorer(["Which came first?"] * 2, [sides[side]] * 2, images=images, videos=videos)
            assert [row[number] for row in scores] == pytest.approx(expected, abs=1e-4)
    assert [results[name]["frames_as_images"] for name in ("false", "true")] == [False, True]
    assert (tmp_path / "false/videos.jsonl").exists() and not (tmp_path / "true/videos.jsonl").exists()


def test_a_model_whose_videos_a_server_fails_on_is_not_asked_about_them():
    engine = "a server of vLLM 0.30"
    with pytest.raises(ValueError, match=f"row 3 has a video, and {engine} cannot be given those of this model"):
        refuse_videos(["row 2", "row 3"], [[], ["a.mp4"]], engine)
    refuse_videos(["row 2"], None, engine)


def test_places_of_videos_that_come_apart_from_their_text():
    """vLLM gives Qwen3-VL's processor its text so. Elsewhere it is refused, and videos that are given are counted."""
    processor = build_processor("qwen3_vl")
    text = "<|vision_start|><|video_pad|><|vision_end|>"
    with places_without_videos():
        assert processor.tokenizer.decode(processor(text=[f"{text}A", "B"])["input_ids"][0]) == f"{text}A"
        with pytest.raises(ValueError, match="2 .*video"):
            processor(text=[text + text], videos=[torch.zeros(2, 3, 64, 64)], do_sample_frames=False)
    for given in ([text], text):
        with pytest.raises(ValueError, match="no videos were passed"):
            processor(text=given)


def test_curation_leaves_pairs_with_videos_out():
    row = {"prompt": "Q?", "chosen": "A", "rejected": "B"}
    batch = {"__index__": [0, 1, 2], **{key: [value] * 3 for key, value in row.items()}}
    batch |= {"videos": [["a.mp4"], [], None], "video": [None, "a.mp4", None]}
    read = convert(batch, trl_format.pairs, "own", None, False)
    assert read["skipped"] == ["videos", "videos", None]
    for column in ({"videos": ["a.mp4"]}, {"video": "a.mp4"}):
        with pytest.raises(NotMeant, match="it is about a video"):
            own_prompt({"prompt": "Q?", **column}, None)


def test_mm_rlhfs_videos_are_written_as_videos_where_the_source_says_it(folder, tmp_path, own):
    shutil.copytree(folder / "clip", tmp_path / "video/clip")
    shutil.copy(folder / "clip/0.png", tmp_path / "a.png")
    sides = {"chosen": "The dark one.", "rejected": "The light one."}
    rows = [{"id": 7, "prompt": "<image>\nWhat is it?", "image": "a.png", **sides}]
    rows += [{"id": "v", "prompt": "<video>\nWhich came first?", "video": "video/clip", **sides}]
    path = lines(tmp_path / "dpo_pairs.jsonl", rows)
    (tmp_path / "work").mkdir()

    def curated(**settings):
        audit = CurationAudit({})
        source = PreferenceSource.from_yaml({"name": "mm_rlhf", "format": "mm_rlhf", "path": path, **settings})
        pairs = source.load(tmp_path / "work", audit)
        curation = PairCuration(pairs, PairInspection(own)(pairs, tmp_path / "work"), audit)
        curation.drop_bad_images(), curation.drop_bad_texts()
        return sorted(curation.datasets(0.0, 0)["train"], key=lambda row: row["prompt"][0]["content"][-1]["text"])

    before, after = curated(), curated(frames_as_images=False)
    assert "videos" not in before[0] and [len(row["images"]) for row in before] == [1, 4]
    assert [(len(row["images"]), len(row["videos"])) for row in after] == [(1, 0), (0, 1)]
    assert [[part["type"] for part in row["prompt"][0]["content"]] for row in after] == [
        ["image", "text"],
        ["video", "text"],
    ]
    frames_of = [frame["path"] for frame in after[1]["videos"][0]["frames"]]
    assert frames_of == [str(tmp_path / f"video/clip/{i}.png") for i in range(4)]
    batch = DataCollatorForVisionReward(own)(after)
    assert batch["video_grid_thw"].tolist() == [[2, 4, 6]] and len(batch["image_grid_thw"]) == 1
    assert batch["video_numbers"].tolist() == batch["image_numbers"].tolist() == [0, 0]


def test_a_judge_sees_a_benchmarks_videos_or_single_images(folder, tmp_path, monkeypatch):
    """The tiny model gives no verdict: what it was shown is looked at, and what it answered is compared."""
    sides = {"prompt": "Which came first?", "chosen": "The dark one.", "rejected": "The light one."}
    rows = [{"id": "v", "video": "video/clip", **sides}, {"id": "m", "image": "mcq/1.png", **sides}]
    rows += [{"id": "s", "video": "video/still", **sides}]
    (tmp_path / "mcq").mkdir(), shutil.copytree(folder / "clip", tmp_path / "video/clip")
    shutil.copy(folder / "clip/1.png", tmp_path / "mcq/1.png")
    (tmp_path / "video/still").mkdir(), shutil.copy(folder / "clip/1.png", tmp_path / "video/still/0.png")
    shutil.copy(folder / "clip/1.png", tmp_path / "video/still/1.png")
    given = ["--model_name_or_path", BASE, "--benchmark", "mm_rlhf_rewardbench", "--dataset_name", "", *BUDGET]
    given += ["--data_files", lines(tmp_path / "rows.jsonl", rows), "--max_new_tokens", 3]
    seen, encode = [], transformers_sampler.encode_prompts

    def looked_at(processor, prompts, images, names, videos):
        seen.append((images, videos))
        return encode(processor, prompts, images, names, videos)

    monkeypatch.setattr(transformers_sampler, "encode_prompts", looked_at)
    results = {}
    for name in ("false", "true"):
        run_recipe("evaluate_judge", *given, "--frames_as_images", name, "--output_dir", tmp_path / name)
        results[name] = json.loads((tmp_path / name / "results.json").read_text())
        (images, videos), seen[:] = [sum(columns, []) for columns in zip(*seen, strict=True)], []
        paths = [[str(path).removeprefix(f"{tmp_path}/") for path in row] for row in images]
        clips = [[str(path).removeprefix(f"{tmp_path}/") for path in row] for row in videos]
        if name == "false":
            assert paths == [[], ["mcq/1.png"], []] * 2 and clips == [["video/clip"], [], ["video/still"]] * 2
        else:
            frames_of = [[f"video/{kind}/{i}.png" for i in range(n)] for kind, n in (("clip", 4), ("still", 2))]
            assert paths == [frames_of[0], ["mcq/1.png"], frames_of[1]] * 2 and clips == [[], [], []] * 2
        assert results[name]["n"] == 3 and results[name]["subsets"]["video"]["n"] == 2
    assert [results[name]["frames_as_images"] for name in ("false", "true")] == [False, True]
    assert "Skywork-VL Reward" in (tmp_path / "true/table.md").read_text()
    told = [json.loads(line) for line in open(tmp_path / "false/videos.jsonl")]
    assert [row["videos"][0]["frames"] for row in told] == [4, 2]


def test_rows_with_videos_of_their_own_have_no_frames_as_images(folder, trained, tmp_path):
    given = ["--model_name_or_path", trained, "--dataset_name", folder / "pairs.jsonl", "--dataset_test_split", "train"]
    with pytest.raises(ValueError, match="`frames_as_images` is for a benchmark whose videos are folders of frames"):
        run_recipe("evaluate_reward", *given, "--frames_as_images", "true", "--output_dir", tmp_path)


def test_video_rewardbench_is_measured_and_judged(folder, trained, tmp_path):
    """Rows of its file, one with a video that is not there: the scores are the scorer's, the rule the paper's."""
    sides = {"chosen": "The dark one.", "rejected": "The light one."}
    dimensions = ["safety", "reasoning", "safety", "knowledge"]
    clips = ["a.mp4", "clip", "none.mp4", "a.mp4"]
    rows = [
        {"question": f"Which came first? {i}", "clip": clip, "dimension": name, **sides}
        for i, (clip, name) in enumerate(zip(clips, dimensions, strict=True))
    ]
    given = ["--benchmark", "video_rewardbench", "--data_files", lines(tmp_path / "rows.jsonl", rows)]
    given += ["--dataset_name", "", "--image_folder", folder, "--max_refused", 0.3]
    given += ["--columns", json.dumps({"prompt": "question", "videos": "clip"})]
    run_recipe("evaluate_reward", "--model_name_or_path", trained, *given, "--output_dir", tmp_path / "measured")
    results = json.loads((tmp_path / "measured/results.json").read_text())
    scores = [json.loads(line)["scores"] for line in open(tmp_path / "measured/scores.jsonl")]
    scorer, kept = RewardScorer.from_pretrained(str(trained), dtype="float32"), [0, 1, 3]
    for number, side in enumerate(("chosen", "rejected")):
        videos = [[str(folder / clips[i])] for i in kept]
        expected = scorer([rows[i]["question"] for i in kept], [sides[side]] * 3, videos=videos)
        assert [scores[i][number] for i in kept] == pytest.approx(expected, abs=1e-4)
    right = [pair is not None and pair[0] > pair[1] for pair in scores]
    assert scores[2] is None and results["refused_rows"] == 1 and results["overall"] == sum(right) / 4
    assert results["subsets"]["safety"]["accuracy"] == right[0] / 2 and results["macro"] is None
    assert "frames_as_images" not in results and "Skywork-VL Reward" in (tmp_path / "measured/table.md").read_text()

    judged = [*given, *BUDGET, "--max_new_tokens", 3, "--output_dir", tmp_path / "judged"]
    run_recipe("evaluate_judge", "--model_name_or_path", BASE, *judged)
    votes = [json.loads(line) for line in open(tmp_path / "judged/votes.jsonl")]
    assert [line["row"] for line in votes] == kept
    assert json.loads((tmp_path / "judged/results.json").read_text())["n"] == 4
    (told,) = [json.loads(line) for line in open(tmp_path / "judged/refused.jsonl")]
    assert told["reason"].startswith(f"there is no video {folder}/none.mp4. Fetch")
    with pytest.raises(
        ValueError, match="`columns` is of `dataset_name` and of video_rewardbench, and `benchmark: rew"
    ):
        run_recipe("evaluate_reward", *given, "--benchmark", "rewardbench")
