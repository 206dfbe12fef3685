"""The demo's bookkeeping, and the results kept in the repo. The steps themselves run in test_recipes.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from test_configs import ROOT, dataclasses_of

from table import ROWS, table
from vl_reward import RecipeParser
from vl_reward.tiny import demo


RUNS = {
    family: [json.loads(path.read_text()) for path in sorted((ROOT / "results/tiny" / folder).glob("seed_*.json"))]
    for family, folder in {"qwen2_5_vl": "", "qwen3_vl": "qwen3_vl"}.items()
}


@pytest.fixture
def run_demo(monkeypatch, tmp_path):
    """Run the demo with steps that write what the real ones write, and note which ones ran."""
    ran = []

    def step(command, **kwargs):
        out = Path(command[command.index("--output_dir") + 1])
        ran.append(out.name if "recipes" in command[1] else "world")
        if ran[-1] == run.failing:
            return subprocess.CompletedProcess(command, 1)
        out.mkdir(parents=True, exist_ok=True)
        results = {
            "evaluate_reward": {
                "overall": 0.9,
                "n": 10,
                "blank_image_subsets": {"image/misread": {"accuracy": 0.5}},
                "baselines": {"shorter_is_better": {"accuracy": 0.25}},
            },
            "evaluate_policy": {"greedy_accuracy": 0.6, "blank_image_accuracy": 0.1, "mean_at_n": 0.5}
            | {"best_of_n_accuracy": 0.75, "pass_at_n": 0.9, "n": 8, "n_prompts": 600},
            "evaluate_mpo": {"greedy_accuracy": 0.7},
        }
        if ran[-1] in results:
            (out / "results.json").write_text(json.dumps(results[ran[-1]]))
        return subprocess.CompletedProcess(command, 0)

    def run(*arguments, failing=None):
        run.failing = failing
        monkeypatch.setattr(sys, "argv", ["demo", "--output_dir", str(tmp_path / "out"), *arguments])
        demo.main()
        return json.loads((tmp_path / "out/results.json").read_text())

    monkeypatch.setattr(demo.subprocess, "run", step)
    run.ran = ran
    return run


STEPS = ["world", "reward_stage1", "reward_stage2", "evaluate_reward", "sample_responses", "label_preferences"]
STEPS += ["mpo", "evaluate_policy", "evaluate_mpo"]


def test_results_have_the_fixed_keys(run_demo, tmp_path):
    results = run_demo()
    assert run_demo.ran == STEPS
    assert results.keys() == {"reward", "policy", "seconds", "versions"}
    assert results["reward"] == {
        "heldout_pair_accuracy": 0.9,
        "blank_image_pair_accuracy": 0.5,
        "shorter_is_better_accuracy": 0.25,
        "n_pairs": 10,
    }
    assert results["policy"] == {
        "base_accuracy": 0.6,
        "blind_accuracy": 0.1,
        "random_of_n_accuracy": 0.5,
        "best_of_n_accuracy": 0.75,
        "pass_at_n": 0.9,
        "mpo_accuracy": 0.7,
        "n": 8,
        "n_prompts": 600,
    }
    assert list(results["seconds"]) == STEPS
    commands = json.loads((tmp_path / "out/demo.json").read_text())["commands"]
    assert list(commands) == STEPS
    assert commands["mpo"].startswith(
        "python recipes/mpo.py --config recipes/configs/tiny/mpo.yaml --model_name_or_path "
    )
    assert results["versions"]["trl"].startswith("1.16.")


def test_a_failed_step_is_run_again_and_those_before_are_not(run_demo):
    with pytest.raises(SystemExit, match="mpo failed"):
        run_demo(failing="mpo")
    assert run_demo.ran == STEPS[: STEPS.index("mpo") + 1]
    run_demo.ran.clear()
    run_demo()
    assert run_demo.ran == STEPS[STEPS.index("mpo") :]
    run_demo.ran.clear()
    run_demo()
    assert run_demo.ran == []


def test_another_seed_in_the_same_folder_is_refused(run_demo):
    run_demo()
    with pytest.raises(SystemExit, match="holds a run with seed 0"):
        run_demo("--seed", "1")
    with pytest.raises(SystemExit, match="with seed 0 and family qwen2_5_vl. Choose"):
        run_demo("--family", "qwen3_vl")


def test_every_command_of_the_demo_parses(tmp_path):
    for step, command in demo.steps(tmp_path, seed=3, family="qwen3_vl").items():
        if step == "world":
            assert command[-2:] == ["--family", "qwen3_vl"]
            continue
        recipe = ROOT / command[1]
        types = dataclasses_of(recipe)
        on_cpu = ["--use_cpu", "true"] if step in ("reward_stage1", "reward_stage2", "mpo") else []
        arguments = [str(ROOT / part) if part.startswith("recipes/") else part for part in command[2:]]
        parsed = RecipeParser(types, str(recipe), ()).parse_args_and_config([*arguments, *on_cpu])
        values = {key: value for namespace in parsed for key, value in vars(namespace).items()}
        assert values["output_dir"] == str(tmp_path / step)
        assert values["model_name_or_path"].startswith(str(tmp_path))
        if step not in ("evaluate_reward", "label_preferences"):
            assert values["seed"] == 3


def test_the_pages_show_the_kept_results():
    pages = {"README.md": ["qwen2_5_vl"], "docs/embedded_world.md": ["qwen2_5_vl", "qwen3_vl"]}
    for page, families in pages.items():
        for family in families:
            shown = table(RUNS[family])
            assert shown in (ROOT / page).read_text() and len(shown.splitlines()) == len(ROWS) + 3


@pytest.mark.parametrize("family", RUNS)
def test_kept_results_show_a_loop_that_helps(family):
    assert len(RUNS[family]) == 3
    for run in RUNS[family]:
        reward, policy = run["reward"], run["policy"]
        assert reward["heldout_pair_accuracy"] >= 0.90
        assert reward["blank_image_pair_accuracy"] <= 0.58
        assert policy["best_of_n_accuracy"] >= policy["base_accuracy"] + 0.10
        assert policy["best_of_n_accuracy"] >= policy["random_of_n_accuracy"] + 0.10
        assert policy["mpo_accuracy"] >= policy["base_accuracy"] + 0.08
    if family == "qwen2_5_vl":  # the others ran beside other work
        assert all(sum(run["seconds"].values()) < 15 * 60 for run in RUNS[family])
