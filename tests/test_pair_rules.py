"""The rules that make pairs, each on candidates written out, and the verifiers."""

import json

import pytest
from datasets import Dataset, Image, List, load_from_disk

from vl_reward.labelling import verifiers
from vl_reward.labelling.labelled_pairs import LabelledPairs
from vl_reward.labelling.pair_rules import (
    RULES,
    Candidate,
    best_of_correct,
    best_vs_worst,
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
        ("The answer is nine", None),
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
        (verifiers.exact, "9", "9", False),  # no answer is given
        (verifiers.multiple_choice, "Answer: (B) a cat", "B", True),
        (verifiers.multiple_choice, "Answer: b.", "(B)", True),
        (verifiers.multiple_choice, "Answer: Because", "B", False),
        (verifiers.multiple_choice, "Answer: C", "B", False),
        (verifiers.mathematical, r"\boxed{\frac{1}{2}}", "0.5", True),
        (verifiers.mathematical, "Answer: x^2 - 1", "(x-1)(x+1)", True),
        (verifiers.mathematical, "Answer: 0.51", "0.5", False),
        (verifiers.mathematical, "0.5", "0.5", False),
    ],
)
def test_verifiers(verify, response, answer, is_correct):
    assert verify(response, answer) is is_correct


@pytest.mark.parametrize("functions", [RULES, verifiers.VERIFIERS])
def test_rules_and_verifiers_are_chosen_by_their_names(functions):
    assert [function.__name__ for function in functions.values()] == list(functions)


def test_pairs_of_an_earlier_rule_do_not_stay(tmp_path):
    candidates = Dataset.from_dict({"id": ["one"], "prompt": ["Which?"], "images": [[]]})
    candidates = candidates.cast_column("images", List(Image()))

    def label(min_score_margin):
        pairs = LabelledPairs(tmp_path)
        pairs.add(0, "one", SCORED, {"best_vs_worst": best_vs_worst(SCORED, 3, min_score_margin, "seed")})
        settings = {"reward_model": "model", "reward_fingerprint": "0", "settings": {"rules": ["best_vs_worst"]}}
        return pairs.save(candidates, 1.0, 0, settings)

    assert label(1.0)["pairs"] == len(load_from_disk(tmp_path / "preferences")) == 2
    with pytest.raises(ValueError, match="No prompt gave a pair: .*score margin too small.*Lower `min_score_margin`"):
        label(10.0)
    assert not (tmp_path / "preferences").exists() and not (tmp_path / "README.md").exists()
    assert json.loads((tmp_path / "labels.json").read_text())["pairs"] == 0
