"""The study of on-policy training: its commands, what it makes of their output, and the results kept in the repo."""

import json
import math
import sys

import pytest
from datasets import Dataset, DatasetDict
from test_configs import ROOT, dataclasses_of

import study
import study_report
from vl_reward import RecipeParser


STUDIES = [json.loads(path.read_text()) for path in sorted((ROOT / "docs/on_policy").glob("seed_*.json"))]


def policy(accuracy, reward=1.0):
    measures = {"greedy_standard_error": 0.01, "greedy_characters": 20.0, "greedy_reward": reward}
    return {"greedy_accuracy": accuracy, **measures, "gain": accuracy - 0.5, "gain_standard_error": 0.02}


@pytest.fixture
def demo_dir(tmp_path):
    Dataset.from_dict({"id": list(range(100))}).save_to_disk(tmp_path / "label_preferences/preferences")
    return tmp_path


def test_every_command_is_one_of_a_recipe(demo_dir, monkeypatch):
    monkeypatch.chdir(ROOT)
    commands = study.steps(demo_dir, demo_dir / "study", 3)
    assert len(commands) == 39
    for name, (python, recipe, *arguments) in commands.items():
        assert python == sys.executable
        recipe = ROOT / recipe
        parsed = RecipeParser(dataclasses_of(recipe), str(recipe), inputs=()).parse_args_and_config(arguments)
        values = {key: value for part in parsed for key, value in vars(part).items()}
        assert values["output_dir"] == str(demo_dir / "study" / name)
        if recipe.stem == "mpo" and name.startswith(("mpo", *study.LOSSES)):
            assert values["max_steps"] == 4  # 100 pairs by 32
        assert values.get("use_reward_shift", True) == (name != "mpo_without_shift")
        if name in study.LOSSES:
            assert (values["loss_type"], values["loss_weights"]) == study.LOSSES[name]


def test_what_is_made_of_the_output(tmp_path):
    prompts = {"id": ["a", "b"], "answer": ["1", "2"]}
    DatasetDict({"test": Dataset.from_dict(prompts)}).save_to_disk(tmp_path / "prompts")
    samples = {
        "a": {"is_correct": [False, True, *[False] * 30], "scores": [0.0, 1.0, None, *[-1.0] * 29]},
        "b": {"is_correct": [True, False, *[True] * 30], "scores": [0.0, 1.0, 2.0, *[-1.0] * 29]},
    }
    measures = {"greedy_standard_error": 0.01, "greedy_characters": 20.0, "greedy_reward": 0.5}
    for name, answers in (("base", ["1", "3"]), ("long_4", ["1", "2"])):
        folder = tmp_path / f"evaluate_{name}"
        folder.mkdir()
        accuracy = 0.5 if name == "base" else 1.0
        (folder / "results.json").write_text(json.dumps(measures | {"greedy_accuracy": accuracy, "other": 1}))
        greedy = zip(prompts["id"], answers, strict=True)
        lines = [{"id": i, "greedy": f"I see it. Answer: {answer}", **samples[i]} for i, answer in greedy]
        (folder / "responses.jsonl").write_text("\n".join(map(json.dumps, lines)))
    for path in ("label_preferences", "label_random", "label_verifier"):
        (tmp_path / path).mkdir()
        (tmp_path / path / "labels.json").write_text(json.dumps({"pairs": 7}))
    for number, path in enumerate(("sample_responses", "sample_2", "sample_3", "sample_4"), 1):
        (tmp_path / path).mkdir()
        (tmp_path / path / "sampling.json").write_text(json.dumps({"prompts_with_all_responses_equal": number / 10}))
    collected = study.collect(tmp_path, tmp_path, 0)
    assert collected["all_equal_in_round"] == {1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}
    assert collected["policies"] == {
        "base": measures | {"greedy_accuracy": 0.5, "gain": 0, "gain_standard_error": 0},
        "long_4": measures
        | {"greedy_accuracy": 1.0, "gain": 0.5, "gain_standard_error": pytest.approx(0.5 / math.sqrt(2))},
    }
    assert collected["best_of_n"][:3] == [
        {"n": 1, "best_of_n": 0.5, "pass_at_n": 0.5},
        {"n": 2, "best_of_n": 0.5, "pass_at_n": 1.0},
        {"n": 3, "best_of_n": 1.0, "pass_at_n": 1.0},
    ]
    assert collected["pairs"] == {"mpo": 7, "mpo_random_pairs": 7, "mpo_verifier_pairs": 7}


def test_scores_of_the_demo_are_not_made_again(tmp_path, monkeypatch, capsys):
    shard = tmp_path / "label_preferences/scores/fingerprint/000000-0.jsonl"
    shard.parent.mkdir(parents=True)
    shard.write_text("a shard")

    def run_steps(commands, record, done):
        for name in study.PAIRS:
            kept = record.parent / f"label_{name}" / shard.relative_to(tmp_path / "label_preferences")
            assert kept.read_text() == "a shard"

    monkeypatch.setattr(study, "steps", lambda *arguments: {})
    monkeypatch.setattr(study, "run_steps", run_steps)
    monkeypatch.setattr(study, "collect", lambda *arguments: STUDIES[0])
    monkeypatch.setattr(sys, "argv", ["study", "--demo_dir", str(tmp_path)])
    study.main()
    assert json.loads((tmp_path / "study/study.json").read_text()) == STUDIES[0]
    assert study_report.table(STUDIES[:1]) in capsys.readouterr().out


def test_report_of_two_seeds(tmp_path):
    def made_up(seed, accuracy):
        rewards = dict.fromkeys([*study_report.ROWS, "long_4", "long_8"], seed + 2.5) | {"base": seed}
        curve = [{"n": n, "best_of_n": 0.5, "pass_at_n": 0.6} for n in range(1, 33)]
        policies = {name: policy(accuracy, reward) for name, reward in rewards.items()}
        return {"seed": seed, "policies": policies, "best_of_n": curve}

    studies = [made_up(0, 0.5), made_up(1, 0.7)]
    lines = study_report.table(studies).splitlines()
    assert lines[0] == "| | seed 0 | seed 1 | over base | characters | reward, over base |"
    assert lines[2] == "| Base | 0.500 ± 0.020 | 0.700 ± 0.020 |  | 20.0 |  |"
    assert lines[3] == "| SFT on chosen | 0.500 ± 0.020 | 0.700 ± 0.020 | +0.100 ± 0.028 | 20.0 | +2.50 |"
    assert len(lines) == 2 + len(study_report.ROWS)
    assert study_report.over_steps(studies[1]) == [(0, 0.7, 1), (4, 0.7, 3.5), (8, 0.7, 3.5)]
    assert study_report.over_rounds(studies[0]) == [(0, 0.5, 0)] + [(number, 0.5, 2.5) for number in range(1, 5)]
    study_report.plot(studies, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"steps.png", "rounds.png", "best_of_n.png"}


def test_readme_shows_the_kept_studies():
    assert [kept["seed"] for kept in STUDIES] == [0, 1, 2]
    assert study_report.table(STUDIES) in (ROOT / "docs/on_policy.md").read_text()


@pytest.mark.parametrize("kept", STUDIES, ids=lambda kept: f"seed_{kept['seed']}")
def test_kept_studies_reach_their_targets(kept):
    accuracy = {name: policy["greedy_accuracy"] for name, policy in kept["policies"].items()}
    assert accuracy["mpo"] >= accuracy["base"] + 0.08
    assert accuracy["mpo"] >= accuracy["mpo_random_pairs"] + 0.05
