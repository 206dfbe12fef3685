"""The commands of the README and of a page in docs, run in an empty folder, in their order."""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from launches import ENVIRONMENT, ROOT
from report_page import table
from run_costs import STEP, pair_operations, weights
from run_costs import table as table_of_costs
from warm_python import warm_bin

from vl_reward.tiny.digits import compose
from vl_reward.tiny.preferences import corrupted_pairs


PATH = f"{Path(sys.executable).parent}:{ENVIRONMENT['PATH']}"


def commands_of(page):
    return "".join(re.findall(r"^```bash\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE))


def run(script, folder, **environment):
    environment = ENVIRONMENT | {"PATH": f"{warm_bin()}:{PATH}"} | environment
    command = ["bash", "-c", "set -eu\n" + script]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr[-4000:]


def test_the_readme_trains_on_own_pairs_and_scores_an_image(tmp_path):
    """Its commands as they are, but for the number of steps, and its Python on what they trained."""
    for number, row in enumerate(corrupted_pairs(compose("sft", 0), 24, 0)):
        names = [f"{number}_{place}.png" for place in range(len(row["images"]))]
        for name, image in zip(names, row["images"], strict=True):
            image.save(tmp_path / name)
        with open(tmp_path / "pairs.jsonl", "a") as file:
            file.write(
                json.dumps({key: row[key] for key in ("prompt", "chosen", "rejected")} | {"images": names}) + "\n"
            )
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    script = commands_of("README.md")
    start, end = script.index("python -m vl_reward.tiny --models_only"), script.index(" --max_steps 200\n")
    run(script[start:end] + " --max_steps 2\n", tmp_path, PATH=PATH)  # each process a fresh one, as a user's
    (python,) = re.findall(r"^```python\n(.*?)^```$", (ROOT / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "0_0.png").rename(tmp_path / "digits.png")
    trained = python.replace("outputs/tiny/reward_stage2", "outputs/mine") + "assert scores[0] != scores[1], scores\n"
    (tmp_path / "score.py").write_text(trained)
    run("python score.py", tmp_path, PATH=PATH)


def test_the_speed_of_the_report_is_that_of_its_file():
    kept = json.loads((ROOT / "docs/report/chromium.json").read_text())
    assert table(kept) in (ROOT / "docs/report.md").read_text()


def test_the_costs_of_the_7b_run_are_those_of_their_file():
    kept = json.loads((ROOT / "docs/run_7b/costs.json").read_text())
    page = (ROOT / "docs/run_7b.md").read_text()
    assert table_of_costs(kept) in page
    assumed = argparse.Namespace(**kept["assumed"])
    counted = weights()
    assert 8.29e9 < counted["all"] < 8.3e9  # what the hub says of Qwen2.5-VL-7B
    pair = pair_operations(assumed, counted, assumed.image_tokens, STEP, STEP, STEP)
    mpo = next(row for row in kept["steps"] if row["step"] == "mpo")
    a_second = assumed.gpus * assumed.peak_tflops * 1e12 * assumed.utilisation
    assert mpo["hours"] == pytest.approx(assumed.prompts * pair / a_second / 3600)


def test_a_benchmark_is_measured_from_scores_alone(tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    row = {"query": "Which?", "response": ["this", "that one"], "image": None, "judge": "", "query_source": ""}
    ids = ["wildvision_1", "RLAIF-V-1", "mathverse_1"]
    rows = [row | {"id": id, "human_ranking": ranking} for id in ids for ranking in ([0, 1], [1, 0])]
    scores = [{"row": number, "scores": [1.0, 0.5]} for number in range(len(rows))]
    for name, lines in {"vl_rewardbench": rows, "scores": scores}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run(commands_of("docs/benchmarks.md"), tmp_path)
    results = json.loads((tmp_path / "outputs/vl_rewardbench/results.json").read_text())
    assert (results["n"], results["overall"], results["macro"]) == (6, 0.5, 0.5)


def test_curation_and_its_second_round(tmp_path):
    """The page's commands as they are, but for the size of the world and the number of steps."""
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    sizes = ("n_questions", "n_policy_questions", "n_text_questions", "n_prompts", "n_test", "n_test_prompts")
    small = " ".join(f"--{name} 30" for name in sizes)
    script = commands_of("docs/curation.md").replace("--max_steps 500", "--max_steps 2")
    script = script.replace("python -m vl_reward.tiny\n", f"python -m vl_reward.tiny {small}\n")
    assert small in script and "--max_steps 2" in script
    run(script, tmp_path)
    out = tmp_path / "outputs/tiny"
    assert "near-duplicates" in (out / "prepare_preferences/audit.md").read_text()
    one, two = (json.loads((out / f"round_{number}/audit.json").read_text())["steps"][-1]["out"] for number in (1, 2))
    assert 0 < two < one  # the surrogate doubts some
    assert (out / "curated/model.safetensors").exists()


def test_own_pictures_and_jsonl_to_a_policy_with_more_reward(tmp_path):
    run(commands_of("docs/own_data.md"), tmp_path, RECIPES=str(ROOT / "recipes"))
    accuracy = json.loads((tmp_path / "accuracy/results.json").read_text())
    assert accuracy["n"] == 100 and accuracy["overall"] > 0.5
    labels = json.loads((tmp_path / "labels/labels.json").read_text())
    assert labels["pairs"] > labels["labelled"] > labels["prompts"] / 3
    before, after = (
        json.loads((tmp_path / f"evaluated/{policy}/results.json").read_text())
        for policy in ("models/policy", "better_policy")
    )
    assert before["n_prompts"] == after["n_prompts"] > 90
    # Accuracy rises, too, but by less than its error on so few prompts.
    assert after["greedy_reward"] > before["greedy_reward"]
