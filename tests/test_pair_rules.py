"""The rules that make pairs, each on candidates written out, and the verifiers."""

import json
import os
import shutil

import pytest
from datasets import Dataset, Image, List, load_from_disk

from vl_reward.labelling import verifiers
from vl_reward.labelling.labelled_pairs import LabelledPairs
from vl_reward.labelling.pair_rules import (
    RULES,
    Candidate,
    best_of_correct,
    best_vs_worst,
    check_settings,
    correct_vs_incorrect,
    format_pairs,
    random_pairs,
    unusable,
)


def texts(pairs):
    return [(chosen.text, rejected.text) for chosen, rejected in pairs]


SCORED = [Candidate("a", 1.0), Candidate("b", 5.0), Candidate("c", 3.0), Candidate("d", 4.5), Candidate("b", 5.0)]
SCORED += [Candidate("cut", 9.0, finished=False), Candidate("", None)]


@pytest.mark.parametrize(
    ("max_pairs", "min_score_margin", "expected", "refused", "beyond"),
    [
        (1, 1.0, [("b", "a")], 0, 2),
        (3, 1.0, [("b", "a"), ("b", "c")], 1, 0),  # d is too close
        (3, 0.5, [("b", "a"), ("b", "c"), ("b", "d")], 0, 0),
        (2, 4.1, [], 2, 1),
    ],
)
def test_best_vs_worst(max_pairs, min_score_margin, expected, refused, beyond):
    pairs, reasons = best_vs_worst(SCORED, max_pairs, min_score_margin, "seed")
    assert texts(pairs) == expected
    assert reasons == {"score margin too small": refused, "more than max_pairs": beyond}


def test_what_no_rule_looks_at_is_counted():
    assert unusable(SCORED) == {
        "the response is empty": 1,
        "the response is unfinished": 1,
        "the response is there twice": 1,
    }


def test_a_single_finished_response_makes_no_pair():
    for rule in (best_vs_worst, random_pairs):
        pairs, reasons = rule([SCORED[0], *SCORED[-2:]], 3, 0.0, "seed")
        assert pairs == [] and reasons == {"fewer than two different finished responses": 1}


def test_random_pairs_are_drawn_by_seed_from_all_orders():
    pairs, reasons = random_pairs(SCORED, 3, 0.0, "seed")
    assert random_pairs(SCORED, 3, 0.0, "seed")[0] == pairs and len(set(pairs)) == 3
    assert reasons == {"more than max_pairs": 4 * 3 - 3}
    seen = {pair for seed in range(200) for pair in texts(random_pairs(SCORED, 1, 0.0, str(seed))[0])}
    assert len(seen) == 4 * 3  # four different usable responses, in either order


def answered(text, score, answer, is_correct):
    return Candidate(text, score, answer=answer, is_correct=is_correct)


VERIFIED = [answered("r1", 2.0, "4", True), answered("r2", 3.0, "4", True), answered("w1", 9.0, "5", False)]
VERIFIED += [answered("w2", 1.0, "14", False), answered("none", 4.0, None, False)]


def test_correct_vs_incorrect_leaves_out_answers_that_contain_the_correct_one():
    pairs, reasons = correct_vs_incorrect(VERIFIED, 15, 99.0, "seed")
    assert sorted(texts(pairs)) == [("r1", "w1"), ("r2", "w1")]
    assert +reasons == {"the correct answer is contained in the incorrect one": 2}
    pairs, reasons = correct_vs_incorrect(VERIFIED, 1, 99.0, "seed")
    assert len(pairs) == 1 and reasons["more than max_pairs"] == 1


def test_prompts_all_correct_or_all_incorrect_make_no_pairs():
    assert correct_vs_incorrect(VERIFIED[:2], 15, 0.0, "s") == ([], {"no incorrect answer": 1})
    assert correct_vs_incorrect(VERIFIED[2:], 15, 0.0, "s") == ([], {"no correct answer": 1})
    assert best_of_correct(VERIFIED[2:], 15, 0.0, "s") == ([], {"no correct answer": 1})
    assert format_pairs(VERIFIED[2:], 15, 0.0, "s") == ([], {"no correct answer": 1})


def test_format_pairs_take_what_has_no_answer():
    pairs, reasons = format_pairs(VERIFIED, 15, 0.0, "seed")
    assert sorted(texts(pairs)) == [("r1", "none"), ("r2", "none")] and +reasons == {}
    assert format_pairs(VERIFIED[:4], 15, 0.0, "s") == ([], {"every response has an answer": 1})


def test_what_cannot_be_read_is_on_neither_side():
    unread = Candidate("u", 9.5, answer="a cat", unreadable=True)
    unmarked = Candidate("v", 9.6, unreadable=True)
    pairs, reasons = correct_vs_incorrect([*VERIFIED, unread, unmarked], 15, 0.0, "seed")
    assert sorted(texts(pairs)) == [("r1", "w1"), ("r2", "w1")] and reasons["the answer cannot be read"] == 2
    pairs, reasons = format_pairs([*VERIFIED, unread, unmarked], 15, 0.0, "seed")
    assert sorted(texts(pairs)) == [("r1", "none"), ("r2", "none")] and reasons["the answer cannot be read"] == 2
    pairs, reasons = correct_vs_incorrect([VERIFIED[0], unread], 15, 0.0, "seed")
    assert pairs == [] and reasons == {"no incorrect answer": 1, "the answer cannot be read": 1}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ((["best_against_worst"], 1, 0.0, 1.0), "there is no best_against_worst. There are best_vs_worst, correct_vs"),
        (([], 1, 0.0, 1.0), "makes no pairs. Give a list of one or more of best_vs_worst"),
        ((None, 1, 0.0, 1.0), "makes no pairs. Give a list"),
        (("best_vs_worst", 1, 0.0, 1.0), "makes no pairs. Give a list"),
        (([["best_vs_worst"]], 1, 0.0, 1.0), "there is no .'best_vs_worst'."),
        ((["random_pairs", "random_pairs"], 1, 0.0, 1.0), "names a rule twice"),
        ((["random_pairs"], 0, 0.0, 1.0), "`max_pairs: 0` makes no pairs"),
        ((["random_pairs"], 1, float("nan"), 1.0), "`min_score_margin: nan` is no difference"),
        ((["random_pairs"], 1, 0.0, 1.5), "`max_chosen_shorter_fraction: 1.5` is no fraction"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        check_settings(*settings)
    check_settings([*RULES], 1, 0.0, 1.0)


def test_best_of_correct_goes_by_reward_within_the_correct_answers():
    assert texts(best_of_correct(VERIFIED, 3, 0.5, "s")[0]) == [("r2", "r1")]
    assert best_of_correct(VERIFIED, 3, 1.5, "s") == ([], {"score margin too small": 1, "more than max_pairs": 0})


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("I see 4 and 5. Answer: 9", "9"),
        ("Answer: 3. No.\nFinal Answer: **12**", "12"),
        (r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        (r"\boxed{1} and then \boxed{2}", "2"),
        ("\u7b54\u6848\uff1aB", "B"),
        ("The answer is nine", "nine"),
        ("Answer: ", None),
        (r"\boxed{1", None),
    ],
)
def test_final_answer(response, answer):
    assert verifiers.final_answer(response) == answer


@pytest.mark.parametrize(
    ("verify", "response", "answer", "is_correct"),
    [
        (verifiers.exact, "Answer: Yes.", "yes", True),
        (verifiers.exact, "Answer: 19", "9", False),
        (verifiers.exact, "9", "9", True),  # nothing but an answer
        (verifiers.exact, "I see 8.", "9", False),  # no answer is given
        (verifiers.exact, "I see 9.", "9", None),  # it may be one
        (verifiers.multiple_choice, "Answer: (B) a cat", "B", True),
        (verifiers.multiple_choice, "Answer: b.", "(B)", True),
        (verifiers.multiple_choice, "Answer: Because", "B", None),
        (verifiers.multiple_choice, "Answer: C", "B", False),
        (verifiers.mathematical, r"\boxed{\frac{1}{2}}", "0.5", True),
        (verifiers.mathematical, "Answer: x^2 - 1", "(x-1)(x+1)", True),
        (verifiers.mathematical, "Answer: 0.51", "0.5", False),
        (verifiers.mathematical, "0.5", "0.5", True),
    ],
)
def test_verifiers(verify, response, answer, is_correct):
    assert verify(response, answer) is is_correct


@pytest.mark.parametrize("functions", [RULES, verifiers.VERIFIERS])
def test_rules_and_verifiers_are_chosen_by_their_names(functions):
    assert [function.__name__ for function in functions.values()] == list(functions)


def label(folder, candidates, min_score_margin=1.0):
    rows = Dataset.from_dict({"id": ["one"], "prompt": ["Which?"], "images": [[]]})
    pairs = LabelledPairs(folder)
    pairs.add(0, "one", candidates, {"best_vs_worst": best_vs_worst(candidates, 3, min_score_margin, "seed")})
    settings = {"reward_model": "model", "reward_fingerprint": "0", "settings": {"rules": ["best_vs_worst"]}}
    return pairs.save(rows.cast_column("images", List(Image())), 1.0, 0, settings)


def test_pairs_of_an_earlier_rule_do_not_stay(tmp_path):
    assert label(tmp_path, SCORED)["pairs"] == len(load_from_disk(tmp_path / "preferences")) == 2
    assert label(tmp_path, SCORED, 0.1)["pairs"] == len(load_from_disk(tmp_path / "preferences")) == 3
    with pytest.raises(ValueError, match="No prompt gave a pair: .*score margin too small.*Lower `min_score_margin`"):
        label(tmp_path, SCORED, 10.0)
    assert not (tmp_path / "preferences").exists() and not (tmp_path / "README.md").exists()
    assert json.loads((tmp_path / "labels.json").read_text())["pairs"] == 0
    assert json.loads((tmp_path / "scores.jsonl").read_text())["scores"] == [one.score for one in SCORED]
    assert not (tmp_path / ".labelling").exists()


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("name", ["README.md", "labels.json", "scores.jsonl", "preferences/notes.txt", "preferences"])
@pytest.mark.parametrize("labelled", [False, True])
def test_nothing_is_replaced_that_labelling_did_not_write(tmp_path, name, labelled):
    if labelled:
        label(tmp_path, SCORED)
    if name == "preferences":  # another set in place of ours, in files of the same names
        shutil.rmtree(tmp_path / name, ignore_errors=True)
        Dataset.from_dict({"x": [1]}).save_to_disk(tmp_path / name)
    else:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("notes of a year")
    (tmp_path / "others.txt").write_text("in nobody's way")
    before = contents(tmp_path)
    with pytest.raises(ValueError, match=f"holds {name}.*, which no labelling wrote, or which was changed since"):
        label(tmp_path, SCORED)
    assert contents(tmp_path) == before


def test_a_stop_between_old_and_new_results_leaves_nothing_unknown(tmp_path, monkeypatch):
    label(tmp_path, SCORED)
    moved, move = [], os.replace

    def stop(source, target):
        if str(target).endswith("labels.json"):
            raise KeyboardInterrupt
        move(source, target)
        moved.append(target)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        label(tmp_path, SCORED, 0.1)
    monkeypatch.setattr(os, "replace", move)
    assert moved and label(tmp_path, SCORED, 0.1)["pairs"] == len(load_from_disk(tmp_path / "preferences")) == 3


def test_answers_that_cannot_be_read_are_shown(tmp_path):
    unread = [Candidate(f"Answer: a cat {n}", float(n), answer=f"a cat {n}", unreadable=True) for n in range(9)]
    shown = label(tmp_path, unread)["unreadable_answers"]
    assert shown["responses"] == 9 and len(shown["examples"]) == 5
    assert shown["examples"][0] == {"id": "one", "answer": "a cat 0", "response": "Answer: a cat 0"}
    assert json.loads((tmp_path / "labels.json").read_text())["unreadable_answers"] == shown


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_stops_the_run(tmp_path, score):
    with pytest.raises(ValueError, match="row one: its scores are .*, and numbers are needed to compare them"):
        label(tmp_path, [*SCORED, Candidate("e", score)])
