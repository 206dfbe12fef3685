"""recipes/evaluate_reward.py on benchmarks: from scores alone, and with a model on a benchmark made of digits."""

import itertools
import json
import random
import shutil
import sys

import pytest
from datasets import Dataset
from test_configs import ROOT
from test_recipes import run

from vl_reward import Qwen2_5_VLForSequenceClassification
from vl_reward.tiny.digits import compose, respond
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, corrupt, preference_row


RECIPE = str(ROOT / "recipes/evaluate_reward.py")


def evaluate(folder, *arguments, fails=False):
    return run([sys.executable, RECIPE, *map(str, arguments)], folder, fails)


def vl_rows(n):
    """Rows in VL-RewardBench's schema, their images not there."""
    rng = random.Random(0)
    ids = itertools.cycle(["RLAIF-V-1", "mathverse_2", "wildvision-battle-3", "mmmu_4"])
    return [
        {"id": id, "query": f"question {i}", "response": ["a" * rng.randint(1, 9), "b" * rng.randint(1, 9)]}
        | {"human_ranking": rng.choice([[0, 1], [1, 0]]), "image": f"images/{i}.png", "judge": "human"}
        for i, id in enumerate(itertools.islice(ids, n))
    ]


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_results_from_scores_need_neither_model_nor_images(tmp_path):
    rows = vl_rows(40)
    rng = random.Random(1)
    scores = [[round(rng.random(), 1), round(rng.random(), 1)] for _ in rows]
    files = [write_lines(tmp_path / "rows.jsonl", rows)]
    files += [write_lines(tmp_path / "s.jsonl", [{"row": i, "scores": pair} for i, pair in enumerate(scores)])]
    arguments = ["--benchmark", "vl_rewardbench", "--data_files", files[0], "--scores_file"]
    output = evaluate(tmp_path, *arguments, files[1], "--output_dir", tmp_path / "out")
    results = json.loads((tmp_path / "out/results.json").read_text())

    right = [
        pair[row["human_ranking"].index(0)] > pair[row["human_ranking"].index(1)]
        for row, pair in zip(rows, scores, strict=True)
    ]
    groups = {"hallucination": right[0::4], "general": right[2::4], "reasoning": right[1::4] + right[3::4]}
    assert results["n"] == 40 and results["overall"] == sum(right) / 40
    assert results["ties"] == sum(a == b for a, b in scores) > 0
    accuracies = {name: sum(of_group) / len(of_group) for name, of_group in groups.items()}
    assert {name: subset["accuracy"] for name, subset in results["subsets"].items()} == accuracies
    assert results["macro"] == pytest.approx(sum(accuracies.values()) / 3, abs=1e-12)
    assert "Skywork-VL Reward | 66.0 | 80.0 | 61.0 | 73.1 | 69.0" in (tmp_path / "out/table.md").read_text()
    assert (tmp_path / "out/table.md").read_text() in output

    # Every number comes again from the per-pair file.
    evaluate(tmp_path, *arguments, tmp_path / "out/scores.jsonl", "--output_dir", tmp_path / "again")
    again = json.loads((tmp_path / "again/results.json").read_text())
    assert {**again, "model": results["model"]} == results
    assert (tmp_path / "again/scores.jsonl").read_bytes() == (tmp_path / "out/scores.jsonl").read_bytes()


def test_scores_that_do_not_fit_stop_the_run(tmp_path):
    write_lines(tmp_path / "rows.jsonl", vl_rows(3))
    write_lines(tmp_path / "s.jsonl", [{"row": i, "scores": [1.0, 2.0]} for i in range(2)])
    arguments = ["--benchmark", "vl_rewardbench", "--data_files", "rows.jsonl", "--scores_file", "s.jsonl"]
    output = evaluate(tmp_path, *arguments, "--output_dir", "out", fails=True)
    assert "s.jsonl has 2 lines, and the benchmark's file 3 rows" in output
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="session")
def world(policy_path, processor, tmp_path_factory):
    """A reward model, and MM-RLHF-RewardBench made of digits: 40 pairs, two per image, on disk with their images."""
    folder = tmp_path_factory.mktemp("world")
    shutil.copytree(ROOT / "src/vl_reward/tiny/checkpoints/base", folder / "model")
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(folder / "model", dtype="float32")
    model.save_pretrained(folder / "model")

    rng, rows, training = random.Random(0), [], []
    composed = (row for row in compose("test", 0) if len(row["images"]) == 1)
    for number, row in enumerate(itertools.islice(composed, 20)):
        category = ("mcq", "long", "short", "safety")[number % 4]
        (folder / category).mkdir(exist_ok=True)
        row["images"][0].save(folder / f"{category}/{number}.png")
        chosen = respond(row["first"], row["second"], row["answer"])
        for _ in range(2):
            rejected = corrupt(row, rng)[1]
            rows.append(
                {"id": str(number), "prompt": row["question"], "chosen": chosen, "rejected": rejected}
                | {"image": f"{category}/{number}.png", "chosen_reason": "right"}
            )
        if number < 3:
            training.append(preference_row(row, "image/misread", rejected))
    write_lines(folder / "rows.jsonl", rows)
    Dataset.from_list(training, PREFERENCE_FEATURES).save_to_disk(folder / "training/train")
    (folder / "training/dataset_dict.json").write_text('{"splits": ["train"]}')
    return folder


def arguments_of(world, output_dir):
    arguments = ["--benchmark", "mm_rlhf_rewardbench", "--data_files", "rows.jsonl", "--model_name_or_path", "./model"]
    return [*arguments, "--training_dataset", "training", "--output_dir", str(output_dir)]


@pytest.fixture(scope="session")
def alone(world):
    evaluate(world, *arguments_of(world, world / "alone"))
    return world / "alone"


def written(folder):
    return [(folder / name).read_bytes() for name in ("results.json", "scores.jsonl", "table.md")]


def test_a_reward_model_is_measured_on_images(alone):
    results = json.loads((alone / "results.json").read_text())
    lines = [json.loads(line) for line in open(alone / "scores.jsonl")]
    right = [line["scores"][0] > line["scores"][1] for line in lines]
    assert results["n"] == len(lines) == 40 and results["n_prompts"] == 20
    assert results["overall"] == sum(right) / 40
    assert results["acc_plus"] == sum(a and b for a, b in zip(right[::2], right[1::2], strict=True)) / 20
    assert results["missing_subsets"] == ["video"]
    without = results["without_training_rows"]
    assert (without["removed"], without["n"]) == ({"image": 6}, 34)
    assert without["overall"] == sum(right[6:]) / 34
    assert results["baselines"]["first_is_better"]["accuracy"] == 1.0
    # The image is seen: the same response to the same question has other scores.
    assert len({line["scores"][0] for line in lines[::2]}) == 20


def test_2_processes_write_the_same_bytes(world, alone, tmp_path):
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]
    launch += [str(ROOT / "accelerate_configs/cpu_2_processes.yaml"), RECIPE]
    run(launch + arguments_of(world, tmp_path / "two"), world)
    assert written(tmp_path / "two") == written(alone)
    shards = [
        {path.name: path.read_bytes() for path in (out / "scores").rglob("*.jsonl")}
        for out in (alone, tmp_path / "two")
    ]
    assert shards[0] == shards[1] and len(shards[0]) == 3


def test_own_preferences_with_paths_and_without_images(world, tmp_path):
    """A set without splits, its images as paths or null: scored, and once more with blank images of their sizes."""
    rows = [
        {"id": f"p{i}", "prompt": "What is the first digit?", "chosen": "Answer: 7", "rejected": "Answer: 12"}
        | {"images": [str(world / "mcq/0.png")] if i else None}
        for i in range(3)
    ]
    Dataset.from_list(rows).save_to_disk(tmp_path / "own")
    options = ["--dataset_name", tmp_path / "own", "--model_name_or_path", "./model", "--output_dir", tmp_path / "out"]
    evaluate(world, *options)
    lines = [json.loads(line) for line in open(tmp_path / "out/scores.jsonl")]
    assert [line["id"] for line in lines] == ["p0", "p1", "p2"]
    assert lines[0]["blank_scores"] == pytest.approx(lines[0]["scores"], abs=1e-5)  # nothing to be blank
    assert lines[1]["scores"] == pytest.approx(lines[2]["scores"], abs=1e-5)
    assert abs(lines[1]["blank_scores"][0] - lines[1]["scores"][0]) > 1e-4
    rows[2]["images"] = [str(tmp_path / "none.png")]
    Dataset.from_list(rows).save_to_disk(tmp_path / "bad")
    output = evaluate(world, *options, "--dataset_name", tmp_path / "bad", fails=True)
    assert "row 2 (p2): " in output and "none.png could not be decoded" in output
