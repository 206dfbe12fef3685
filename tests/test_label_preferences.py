"""recipes/label_preferences.py: its rules, its report, and fifty kills at random moments."""

import json
import shutil
import subprocess
import sys
from collections import Counter

import pytest
from datasets import Dataset, Features, Image, List, Value, load_from_disk
from test_configs import ROOT
from test_recipes import ENVIRONMENT, run

from vl_reward.labelling.pair_rules import Candidate, best_against_worst, unusable
from vl_reward.tiny.digits import compose, extract_answer
from vl_reward.tiny.preferences import corrupted_pairs


RECIPE = ROOT / "recipes/label_preferences.py"
CANDIDATES = Features(
    {"id": Value("string"), "prompt": List({"role": Value("string"), "content": Value("string")})}
    | {"images": List(Image()), "answer": Value("string")}
    | {"responses": List(Value("string")), "finish_reasons": List(Value("string"))}
)
# Import once, then be killed fifty times, each time a little after the start.
KILLS = """
import importlib.util, os, random, signal, sys, time
spec = importlib.util.spec_from_file_location("recipe", sys.argv[1])
recipe = importlib.util.module_from_spec(spec)
sys.modules["recipe"] = recipe
spec.loader.exec_module(recipe)
parser = recipe.RecipeParser((recipe.LabelArguments, recipe.ModelConfig), sys.argv[1], recipe.INPUTS)
arguments, rng, killed = parser.parse_args_and_config(sys.argv[2:]), random.Random(0), 0
for attempt in range(50):
    child = os.fork()
    if child == 0:
        recipe.main(*arguments)
        os._exit(0)
    time.sleep(rng.uniform(0.1, 1.0))
    os.kill(child, signal.SIGKILL)
    killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
print("killed", killed)
recipe.main(*arguments)
"""


@pytest.fixture(scope="module")
def world(policy_path, tmp_path_factory):
    """A reward model with a random head, and 160 prompts with four or five responses each."""
    from vl_reward import Qwen2_5_VLForSequenceClassification

    folder = tmp_path_factory.mktemp("labelling")
    shutil.copytree(policy_path, folder / "model")
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(folder / "model", dtype="float32")
    model.score.weight.data.normal_()
    model.save_pretrained(folder / "model")
    rows = []
    for number, row in enumerate(corrupted_pairs(compose("sft", 3), 160, 3)):
        right, wrong = (row[side][0]["content"] for side in ("chosen", "rejected"))
        responses = [right, wrong, right, "I see nothing.", *([""] if number % 3 == 0 else [])]
        reasons = ["stop", "stop", "stop", "length" if number % 2 else "stop", *["stop"] * (len(responses) - 4)]
        rows.append({key: row[key] for key in ("id", "prompt", "images")} | {"answer": extract_answer(right)})
        rows[-1] |= {"responses": responses, "finish_reasons": reasons}
    Dataset.from_list(rows, CANDIDATES).save_to_disk(folder / "candidates")
    return folder


def arguments(world, out, *more):
    paths = ["--model_name_or_path", str(world / "model"), "--dataset_name", str(world / "candidates")]
    return [*paths, "--output_dir", str(out), "--min_gap", "0", "--max_pairs", "2", *more]


@pytest.fixture(scope="module")
def labelled(world):
    run([sys.executable, str(RECIPE), *arguments(world, world / "clean")], world)
    return world / "clean"


def result(folder):
    """The bytes of all that labelling writes, but for the log, whose order may differ, and names of folders."""
    files = [folder / "scores.jsonl", *sorted((folder / "preferences").glob("*.arrow"))]
    labels = json.loads((folder / "labels.json").read_text())
    labels["settings"].pop("output_dir")
    return [path.read_bytes() for path in files], labels


def test_fifty_kills_give_the_bytes_of_one_clean_run(world, labelled, tmp_path):
    command = [sys.executable, "-c", KILLS, str(RECIPE), *arguments(world, tmp_path / "killed")]
    output = subprocess.run(command, cwd=world, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert output.returncode == 0, output.stdout[-2000:] + output.stderr[-2000:]
    killed = int(output.stdout.split("killed ")[1].split()[0])
    assert killed >= 10, output.stdout[-2000:]  # the later ones may find all done
    assert result(tmp_path / "killed") == result(labelled)
    lines = [json.loads(line) for line in (tmp_path / "killed/score_log/process_00000.jsonl").read_text().splitlines()]
    assert len({line["key"] for line in lines}) == len(lines) == 160  # nothing twice, nothing lost


def test_scores_and_pairs_are_those_of_the_candidates(world, labelled):
    candidates, pairs = load_from_disk(world / "candidates"), load_from_disk(labelled / "preferences")
    lines = [json.loads(line) for line in open(labelled / "scores.jsonl")]
    report = json.loads((labelled / "labels.json").read_text())
    assert [line["id"] for line in lines] == candidates["id"][:]
    expected, refused = [], Counter()
    for row, line in zip(candidates, lines, strict=True):
        assert [score is None for score in line["scores"]] == [not text for text in row["responses"]]
        assert line["scores"][0] == line["scores"][2]  # equal responses are scored once
        found = [
            Candidate(text, score, reason == "stop")
            for text, score, reason in zip(row["responses"], line["scores"], row["finish_reasons"], strict=True)
        ]
        made, reasons = best_against_worst(found, 2, 0.0, "")
        expected += [(row["id"], one.text, other.text, one.score, other.score) for one, other in made]
        refused.update({f"best_against_worst: {reason}": n for reason, n in reasons.items()})
        refused.update(unusable(found))
    columns = [
        (row["id"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        + (row["score_chosen"], row["score_rejected"])
        for row in pairs
    ]
    assert columns == expected and len(pairs) == report["pairs"] > 160
    assert report["pairs_by_rule"] == {"best_against_worst": len(pairs)}
    assert report["refused"] == {**+refused, "over max_shorter_share": 0}
    assert report["labelled"] + sum(report["prompts_without_pairs"].values()) == 160
    assert report["labelled"] == len(set(pairs["id"][:])) and report["prompts"] == 160
    card = (labelled / "README.md").read_text()
    assert f"{len(pairs)} pairs of {report['labelled']} of 160 prompts" in card and report["reward_fingerprint"] in card


def test_rules_are_chosen_in_the_yaml_and_scores_are_not_made_again(world, labelled):
    log = (labelled / "score_log/process_00000.jsonl").read_bytes()
    out = world / "verified"
    shutil.copytree(labelled, out)
    rules = ["--rules", "right_against_wrong", "best_of_right", "--max_shorter_share", "0.5"]
    run([sys.executable, str(RECIPE), *arguments(world, out, *rules)], world)
    assert (out / "score_log/process_00000.jsonl").read_bytes() == log
    pairs, report = load_from_disk(out / "preferences"), json.loads((out / "labels.json").read_text())
    # A digit misread in one response may leave the answer right: then there are two right ones.
    assert report["pairs_by_rule"].keys() == {"right_against_wrong", "best_of_right"}
    answers = {row["id"]: row["answer"] for row in load_from_disk(world / "candidates")}
    for row in pairs:
        chosen, rejected = (extract_answer(row[side][0]["content"]) for side in ("chosen", "rejected"))
        assert chosen == answers[row["id"]] and rejected is not None
        assert (rejected == chosen) == (row["rule"] == "best_of_right")
    lengths = [[len(row[side][0]["content"]) for side in ("chosen", "rejected")] for row in pairs]
    assert 0 < sum(chosen < rejected for chosen, rejected in lengths) <= len(pairs) / 2


def test_a_changed_model_does_not_take_the_old_scores(world, labelled):
    from vl_reward import Qwen2_5_VLForSequenceClassification

    shutil.copytree(world / "model", world / "other_model")
    model = Qwen2_5_VLForSequenceClassification.from_pretrained(world / "model", dtype="float32")
    model.score.weight.data *= 2
    model.save_pretrained(world / "other_model")
    shutil.copytree(labelled, world / "other")
    more = ["--model_name_or_path", str(world / "other_model")]
    run([sys.executable, str(RECIPE), *arguments(world, world / "other", *more)], world)
    first, second = (
        [score for line in open(folder / "scores.jsonl") for score in json.loads(line)["scores"] if score is not None]
        for folder in (labelled, world / "other")
    )
    assert [2 * score for score in first] == pytest.approx(second, rel=1e-4)
    lines = (world / "other/score_log/process_00000.jsonl").read_text().splitlines()
    assert len(lines) == 320
