"""recipes/label_preferences.py: its rules, its report, and whose scores it takes."""

import json
import shutil
import sys
from collections import Counter

import pytest
from datasets import load_from_disk
from test_configs import ROOT
from test_recipes import run

from vl_reward.labelling.pair_rules import Candidate, best_vs_worst, unusable
from vl_reward.labelling.verifiers import final_answer


RECIPE = ROOT / "recipes/label_preferences.py"


def arguments(world, out, *more):
    paths = ["--model_name_or_path", str(world / "model"), "--dataset_name", str(world / "candidates")]
    return [*paths, "--output_dir", str(out), "--min_score_margin", "0", "--max_pairs", "2", *more]


@pytest.fixture
def world(labelling_world):
    return labelling_world


@pytest.fixture(scope="session")
def labelled(labelling_world):
    run([sys.executable, str(RECIPE), *arguments(labelling_world, labelling_world / "clean")], labelling_world)
    return labelling_world / "clean"


def written(folder):
    """The shards of scores, with the time at which each was written."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (folder / "scores").rglob("*.jsonl")}


def test_scores_and_pairs_are_those_of_the_candidates(world, labelled):
    candidates, pairs = load_from_disk(world / "candidates"), load_from_disk(labelled / "preferences")
    lines = [json.loads(line) for line in open(labelled / "scores.jsonl")]
    report = json.loads((labelled / "labels.json").read_text())
    assert [line["id"] for line in lines] == candidates["id"][:]
    expected, refused = [], Counter()
    for row, line in zip(candidates, lines, strict=True):
        assert [score is None for score in line["scores"]] == [not text for text in row["responses"]]
        assert line["scores"][0] == line["scores"][2]  # equal responses are scored once
        scored = [
            Candidate(text, score, reason == "stop")
            for text, score, reason in zip(row["responses"], line["scores"], row["finish_reasons"], strict=True)
        ]
        made, reasons = best_vs_worst(scored, 2, 0.0, "")
        expected += [(row["id"], one.text, other.text, one.score, other.score) for one, other in made]
        refused.update({f"best_vs_worst: {reason}": n for reason, n in reasons.items()})
        refused.update(unusable(scored))
    columns = [
        (row["id"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        + (row["score_chosen"], row["score_rejected"])
        for row in pairs
    ]
    assert columns == expected and len(pairs) == report["pairs"] > 160
    assert report["pairs_by_rule"] == {"best_vs_worst": len(pairs)}
    assert report["refused"] == {**+refused, "over max_chosen_shorter_fraction": 0}
    assert report["labelled"] + sum(report["prompts_without_pairs"].values()) == 160
    assert report["labelled"] == len(set(pairs["id"][:])) and report["prompts"] == 160
    card = (labelled / "README.md").read_text()
    assert f"{len(pairs)} pairs of {report['labelled']} of 160 prompts" in card and report["reward_fingerprint"] in card


def test_rules_are_chosen_in_the_yaml_and_scores_are_not_made_again(world, labelled):
    shards = written(labelled)
    out = world / "verified"
    shutil.copytree(labelled, out)
    rules = ["--rules", "correct_vs_incorrect", "best_of_correct", "--max_chosen_shorter_fraction", "0.5"]
    run([sys.executable, str(RECIPE), *arguments(world, out, *rules)], world)
    assert written(out) == shards
    pairs, report = load_from_disk(out / "preferences"), json.loads((out / "labels.json").read_text())
    # A digit misread in one response may leave the answer right: then there are two right ones.
    assert report["pairs_by_rule"].keys() == {"correct_vs_incorrect", "best_of_correct"}
    answers = {row["id"]: row["answer"] for row in load_from_disk(world / "candidates")}
    for row in pairs:
        chosen, rejected = (final_answer(row[side][0]["content"]) for side in ("chosen", "rejected"))
        assert chosen == answers[row["id"]] and rejected is not None
        assert (rejected == chosen) == (row["rule"] == "best_of_correct")
    lengths = [[len(row[side][0]["content"]) for side in ("chosen", "rejected")] for row in pairs]
    assert 0 < sum(chosen < rejected for chosen, rejected in lengths) <= len(pairs) / 2


def test_another_verifier_reads_the_answers_anew_and_leaves_the_scores(world, labelled):
    out = world / "mathematical"
    shutil.copytree(labelled, out)
    candidates = load_from_disk(world / "candidates")
    answers = [[0, "zero"] if row["answer"] == "0" else [row["answer"]] for row in candidates]
    candidates.remove_columns("answer").add_column(
        "answer", [[str(one) for one in row] for row in answers]
    ).save_to_disk(world / "lists")
    more = ["--rules", "correct_vs_incorrect", "--verifier", "mathematical", "--dataset_name", str(world / "lists")]
    run([sys.executable, str(RECIPE), *arguments(world, out, *more)], world)
    assert written(out) == written(labelled)
    shards = {path.parent.name for path in (out / "verdicts").rglob("*.jsonl")}
    verdicts = [json.loads(line) for path in sorted((out / "verdicts").rglob("*.jsonl")) for line in open(path)]
    assert len(shards) == 2 and len(verdicts) == 2 * len(candidates)
    assert all(len(row["is_correct"]) == len(row["answers"]) in (4, 5) for row in verdicts)
    assert sum(row["is_correct"][0] is True for row in verdicts) == 2 * len(candidates)
    pairs = load_from_disk(out / "preferences")
    assert set(pairs["rule"][:]) == {"correct_vs_incorrect"} and "0" in [
        final_answer(c[0]["content"]) for c in pairs["chosen"]
    ]


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--rules", "best_against_worst"], "there is no best_against_worst. There are best_vs_worst, correct_vs"),
        (["--config", "none.yaml"], "`rules: None` makes no pairs"),
        (["--config", "verifier.yaml"], "`verifier: exactly`"),
    ],
)
def test_settings_are_checked_before_a_model_is_loaded(world, tmp_path, option, message):
    (tmp_path / "none.yaml").write_text("rules: null\n")
    (tmp_path / "verifier.yaml").write_text("verifier: exactly\n")
    output = run([sys.executable, str(RECIPE), *arguments(tmp_path, tmp_path / "out", *option)], tmp_path, fails=True)
    assert message in output  # there is no model


def test_an_answer_that_names_no_option_is_refused_before_scoring(world, tmp_path):
    more = ["--verifier", "multiple_choice"]
    output = run([sys.executable, str(RECIPE), *arguments(world, tmp_path / "out", *more)], world, fails=True)
    id = load_from_disk(world / "candidates")["id"][0]
    assert f"row {id}: the answer is " in output and not (tmp_path / "out/scores").exists()


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
    assert len(written(world / "other")) == 2 * len(written(labelled)) == 20
