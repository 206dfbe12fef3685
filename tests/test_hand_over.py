"""What each recipe writes is read by each recipe that can take it: all run here, in one process, on small sets."""

import json
import os
import runpy
import sys

import pytest
from datasets import Image, List, load_from_disk
from test_recipes import ROOT

from vl_reward.data.images import load_image
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.tiny.__main__ import CHECKPOINTS
from vl_reward.tiny.public_sets import build_public_sets


POLICY, BASE = str(CHECKPOINTS / "policy"), str(CHECKPOINTS / "base")
TRAINING = ["--max_steps", "1", "--per_device_train_batch_size", "4", "--dataloader_num_workers", "0"]


def run_recipe(name, *arguments):
    """A recipe with its tiny config, in this process: to start another takes most of a run's time."""
    with pytest.MonkeyPatch.context() as patch:
        config = str(ROOT / f"recipes/configs/tiny/{name}.yaml")
        patch.setattr(sys, "argv", [f"{name}.py", "--config", config, *map(str, arguments)])
        runpy.run_path(str(ROOT / f"recipes/{name}.py"), run_name="__main__")


@pytest.fixture(scope="module")
def world(tmp_path_factory, labelling_world):
    """A folder in which each recipe that writes a dataset has run, on what the one before wrote."""
    folder, before = tmp_path_factory.mktemp("hand_over"), os.getcwd()
    os.chdir(folder)
    build_public_sets(folder / "outputs/tiny/public_sets", n=12)
    run_recipe("prepare_preferences", "--model_name_or_path", BASE, "--output_dir", "prepared", "--test_fraction", 0.2)
    few = ["--max_refused", 0.2, "--test_fraction", 0.3]
    run_recipe("prepare_prompts", "--output_dir", "prompts", *few)
    run_recipe("prepare_prompts", "--output_dir", "answered", "--answers_only", "true", *few)
    sampled = ["--dataset_name", "prompts/prompts", "--num_generations", 4, "--temperature", 1.5]
    run_recipe("sample_responses", "--model_name_or_path", POLICY, *sampled, "--output_dir", "sampled")
    candidates, reward = ["--dataset_name", "sampled/candidates"], ["--model_name_or_path", labelling_world / "model"]
    run_recipe("label_preferences", *reward, *candidates, "--output_dir", "labelled", "--min_score_margin", 0)
    run_recipe("dropout_negatives", "--model_name_or_path", POLICY, *candidates, "--output_dir", "dropped")
    run_recipe("score_responses", *reward, *candidates, "--output_dir", "scored")
    yield folder
    os.chdir(before)


@pytest.fixture(scope="module")
def reward_model(labelling_world):
    return labelling_world / "model"


def images_of(rows):
    return [[load_image(image).tobytes() for image in row] for row in rows["images"]]


def test_a_row_stays_the_same_from_prompt_to_pair(world):
    """Id, prompt and images, through sampling, labelling, dropout and scoring."""
    prompts = NamedDataset("prompts/prompts").split("train")
    shown = dict(zip(prompts["id"], zip(prompts["prompt"], images_of(prompts), strict=True), strict=True))
    assert len(shown) == len(prompts) > 20 and {len(images) for _, images in shown.values()} == {0, 1, 2}
    for name in ("sampled/candidates", "labelled/preferences", "dropped/preferences", "scored/scored.jsonl"):
        rows = NamedDataset(name).split("train")
        assert len(rows) > 0, name
        for id, prompt, images in zip(rows["id"], rows["prompt"], images_of(rows), strict=True):
            texts = [[part["text"] or part["type"] for part in turn["content"]] for turn in prompt]
            assert texts == [[part["text"] or part["type"] for part in turn["content"]] for turn in shown[id][0]], name
            assert images == shown[id][1], name
    answers = dict(zip(prompts["id"], prompts["answer"], strict=True))
    assert set(map(type, answers.values())) == {str, type(None)}
    for name in ("sampled/candidates", "scored/scored.jsonl"):
        rows = NamedDataset(name).split("train")
        assert dict(zip(rows["id"], rows["answer"], strict=True)) == answers


PREFERENCES = ("prepared", "labelled", "dropped")


@pytest.mark.parametrize("source", PREFERENCES)
def test_preferences_are_trained_on_and_measured(world, source, tmp_path):
    pairs = ["--dataset_name", f"{source}/preferences"]
    run_recipe("reward_stage2", "--model_name_or_path", BASE, *pairs, "--output_dir", tmp_path / "reward", *TRAINING)
    n = json.loads((tmp_path / "reward/eval_results.json").read_text())["eval_n_pairs"]
    assert 0 < n == len(NamedDataset(f"{source}/preferences").train_and_test("train", "test")[1])
    run_recipe("mpo", "--model_name_or_path", POLICY, *pairs, "--output_dir", tmp_path / "mpo", *TRAINING)
    assert (tmp_path / "mpo/model.safetensors").exists()
    evaluated = ["--model_name_or_path", tmp_path / "reward", *pairs, "--output_dir", tmp_path / "evaluated"]
    run_recipe("evaluate_reward", *evaluated)
    lines = [json.loads(line) for line in open(tmp_path / "evaluated/scores.jsonl")]
    test = NamedDataset(f"{source}/preferences").split("test")
    assert [line["id"] for line in lines] == test["id"][:]
    # Rows of text are scored twice, and in other company: they are packed with other rows, which rounds otherwise.
    same = [line["blank_scores"] == pytest.approx(line["scores"], abs=1e-5) for line in lines]
    assert same == [not images for images in test["images"]]


def test_preferences_are_judged(world, tmp_path):
    judged = ["--dataset_name", "labelled/preferences", "--max_rows", 2, "--max_new_tokens", 4]
    run_recipe("evaluate_judge", "--model_name_or_path", BASE, *judged, "--output_dir", tmp_path)
    assert len(open(tmp_path / "votes.jsonl").readlines()) == 2


def own_prompts(world, tmp_path):
    """Prompts as a person writes them, with columns of other names and answers of several types."""
    rows = NamedDataset("answered/prompts").split("train").select(range(6))
    with open(tmp_path / "own.jsonl", "w") as file:
        for number, row in enumerate(rows):
            names = [f"{number}_{place}.png" for place in range(len(row["images"]))]
            for name, image in zip(names, row["images"], strict=True):
                load_image(image).save(tmp_path / name)
            text = "".join(part["text"] or "" for part in row["prompt"][0]["content"])
            answer = [row["answer"], 9, [row["answer"], 9], True, "7", 0][number]
            file.write(json.dumps({"question": text, "pictures": names, "right": answer}) + "\n")
    columns = {"prompt": "question", "images": "pictures", "answer": "right"}
    return ["--dataset_name", tmp_path / "own.jsonl", "--columns", json.dumps(columns)]


@pytest.mark.parametrize("source", ["prepared", "own"])
def test_prompts_are_sampled_trained_on_and_answered(world, reward_model, source, tmp_path):
    prompts = ["--dataset_name", "answered/prompts"] if source == "prepared" else own_prompts(world, tmp_path)
    policy = ["--model_name_or_path", POLICY]
    evaluated = [*policy, *prompts, "--reward_model", reward_model, "--num_generations", 2, "--output_dir"]
    run_recipe("evaluate_policy", *evaluated, tmp_path / "evaluated")
    lines = [json.loads(line) for line in open(tmp_path / "evaluated/responses.jsonl")]
    answered = NamedDataset("answered/prompts").split("test")
    assert [line["id"] for line in lines] == (answered["id"][:] if source == "prepared" else list("012345"))
    small = ["--per_device_train_batch_size", 8, "--max_steps", 1, "--reward_model", reward_model]
    run_recipe("grpo", *policy, *prompts, *small, "--output_dir", tmp_path / "grpo")
    assert (tmp_path / "grpo/model.safetensors").exists()
    sampled = [*policy, *prompts, "--num_generations", 2, "--temperature", 1.5, "--output_dir", tmp_path / "sampled"]
    run_recipe("sample_responses", *sampled)
    candidates = load_from_disk(tmp_path / "sampled/candidates")
    if source == "own":
        answers, first = candidates["answer"][:], NamedDataset("answered/prompts").split("train")["answer"][:3]
        assert answers == [first[0], 9, [first[2], 9], True, "7", 0] and answers[3] is True
    assert candidates.features["images"] == List(Image()) and len(candidates["responses"][0]) == 2
    labelled = ["--model_name_or_path", reward_model, "--dataset_name", tmp_path / "sampled/candidates"]
    rules = ["--rules", "random_pairs", "correct_vs_incorrect", "--min_score_margin", 0]
    run_recipe("label_preferences", *labelled, *rules, "--output_dir", tmp_path / "labelled")
    assert len(load_from_disk(tmp_path / "labelled/preferences")) > 0


def test_prompts_stop_the_training_of_a_policy(world, tmp_path):
    stopping = ["--verifiable_dataset", "answered/prompts", "--max_new_tokens", 24, "--eval_strategy", "steps"]
    stopping += ["--eval_steps", 1, "--metric_for_best_model", "greedy_accuracy", "--save_strategy", "steps"]
    pairs = ["--dataset_name", "labelled/preferences", "--output_dir", tmp_path, "--save_steps", 1]
    run_recipe("mpo", "--model_name_or_path", POLICY, *pairs, *TRAINING, *stopping)
    final = json.loads((tmp_path / "eval_results.json").read_text())
    history = json.loads((tmp_path / "checkpoint-1/trainer_state.json").read_text())["log_history"]
    (measured,) = [entry["eval_greedy_accuracy"] for entry in history if "eval_greedy_accuracy" in entry]
    assert 0 <= measured <= 1 and final["eval_greedy_accuracy"] == measured  # of the same weights


def test_prompts_alone_measure_a_policy_after_training(world, tmp_path):
    prompts = ["--verifiable_dataset", "answered/prompts", "--max_new_tokens", 24]
    pairs = ["--dataset_name", "labelled/preferences", "--output_dir", tmp_path]
    run_recipe("mpo", "--model_name_or_path", POLICY, *pairs, *TRAINING, *prompts)
    measured = json.loads((tmp_path / "eval_results.json").read_text())
    assert 0 <= measured["eval_greedy_accuracy"] <= 1 and measured["eval_response_characters"] > 0


@pytest.mark.parametrize(
    "options",
    [("--metric_for_best_model", "greedy_accuracy"), ("--load_best_model_at_end", "true", "--eval_strategy", "steps")],
)
def test_a_measure_that_is_never_taken_is_refused(world, options, tmp_path):
    pairs = ["--dataset_name", "labelled/preferences", "--verifiable_dataset", "answered/prompts"]
    command = ["--model_name_or_path", POLICY, *pairs, *TRAINING, *options, "--save_strategy", "steps"]
    with pytest.raises(ValueError, match="is never measured. Set it to `greedy_accuracy`"):
        run_recipe("mpo", *command, "--output_dir", tmp_path)


def test_scored_rows_are_labelled_and_continued(world, reward_model, tmp_path):
    """A JSONL of candidates makes the pairs that the dataset makes."""
    scored = ["--dataset_name", "scored/scored.jsonl"]
    labelled = ["--model_name_or_path", reward_model, *scored, "--min_score_margin", 0]
    run_recipe("label_preferences", *labelled, "--output_dir", tmp_path / "labelled")
    names = ("id", "chosen", "rejected", "score_chosen", "score_rejected")
    expected, pairs = (load_from_disk(path / "labelled/preferences") for path in (world, tmp_path))
    assert all(pairs[name][:] == expected[name][:] for name in names) and images_of(pairs) == images_of(expected)
    run_recipe("dropout_negatives", "--model_name_or_path", POLICY, *scored, "--output_dir", tmp_path / "dropped")
    expected, pairs = (load_from_disk(path / "dropped/preferences") for path in (world, tmp_path))
    assert all(pairs[name][:] == expected[name][:] for name in names[:3])
