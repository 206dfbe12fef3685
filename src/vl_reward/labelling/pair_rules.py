"""
Which of a prompt's scored responses become preference pairs. Every rule takes the candidates, the most pairs to make,
the least score margin and a seed, and uses what it needs of them. It returns the pairs, and a count, by reason, of what
it did not pair.

An empty response has no score, and an unfinished one is not what the policy would have said: neither is ever paired.
"""

import itertools
import math
import random
from collections import Counter
from dataclasses import dataclass


Pairs = tuple[list[tuple["Candidate", "Candidate"]], Counter]


@dataclass(frozen=True)
class Candidate:
    """
    One response to a prompt.

    Args:
        text (`str`):
            The response.
        score (`float`, *optional*):
            By the reward model.
        finished (`bool`):
            Whether it ended by itself.
        answer (`str`, *optional*):
            What a verifier read as its answer; `None` where it read none.
        is_correct (`bool`, *optional*):
            Whether that is the prompt's answer; `None` where the prompt has none, or the response's cannot be read.
        unreadable (`bool`):
            Whether the prompt has an answer, and the response gives one in a form that no verifier reads. It is neither
            correct nor incorrect.
    """

    text: str
    score: float | None
    finished: bool = True
    answer: str | None = None
    is_correct: bool | None = None
    unreadable: bool = False


def usable(candidates: list[Candidate]) -> list[Candidate]:
    """The different finished responses that have a score, worst first."""
    scored = {candidate for candidate in candidates if candidate.finished and candidate.score is not None}
    return sorted(scored, key=lambda candidate: (candidate.score, candidate.text))


def unusable(candidates: list[Candidate]) -> Counter:
    """How many responses no rule looks at, by reason."""
    reasons = Counter("the response is empty" for candidate in candidates if candidate.score is None)
    scored = [candidate for candidate in candidates if candidate.score is not None]
    reasons["the response is unfinished"] = sum(not candidate.finished for candidate in scored)
    reasons["the response is there twice"] = sum(candidate.finished for candidate in scored) - len(usable(candidates))
    return reasons


def best_vs_worst(candidates: list[Candidate], max_pairs: int, min_score_margin: float, seed: str) -> Pairs:
    """
    The best response against each of the `max_pairs` worst ones that score at least `min_score_margin` less. Skywork
    R1V2 compared margins of 7, 10 and 15 on the scale of Skywork-VL-Reward.

    All rules have these arguments.

    Args:
        candidates (`list[Candidate]`):
            The responses to one prompt.
        max_pairs (`int`):
            The most pairs of a prompt.
        min_score_margin (`float`):
            The least difference of a pair's scores, for the rules that compare scores.
        seed (`str`):
            Decides which pairs are drawn, for the rules that draw.

    Returns:
        `tuple[list[tuple[Candidate, Candidate]], Counter]`: pairs of a chosen and a rejected response, and how many
        others were not made, by reason.
    """
    ranked = usable(candidates)
    if len(ranked) < 2:
        return [], Counter({"fewer than two different finished responses": 1})
    *others, best = ranked
    pairs = [(best, other) for other in others[:max_pairs] if best.score - other.score >= min_score_margin]
    refused = Counter({"score margin too small": len(others[:max_pairs]) - len(pairs)})
    refused["more than max_pairs"] = len(others) - len(others[:max_pairs])
    return pairs, refused


def random_pairs(candidates: list[Candidate], max_pairs: int, min_score_margin: float, seed: str) -> Pairs:
    """Any response against any other one: what a reward model's pairs have to beat."""
    ranked = usable(candidates)
    if len(ranked) < 2:
        return [], Counter({"fewer than two different finished responses": 1})
    return draw(list(itertools.permutations(ranked, 2)), max_pairs, seed)


def correct_vs_incorrect(candidates: list[Candidate], max_pairs: int, min_score_margin: float, seed: str) -> Pairs:
    """
    Correct answers against incorrect ones, drawn from all combinations (MPO section 3; InternVL's `mmpr_data_pipeline`,
    which takes up to 15 a prompt). A pair is left out where the correct answer is contained in the incorrect one, as 1
    is in 12: the two may be the same, written in two ways. Responses without an answer are not paired, see
    [`format_pairs`].
    """
    ranked = usable(candidates)
    correct, incorrect = sides(ranked, [candidate for candidate in ranked if candidate.answer is not None])
    unread = unreadable(ranked)
    if not correct or not incorrect:
        return [], Counter({"no correct answer" if not correct else "no incorrect answer": 1}) + unread
    pairs = [(one, two) for one in correct for two in incorrect if one.answer not in two.answer]
    drawn, refused = draw(pairs, max_pairs, seed)
    refused["the correct answer is contained in the incorrect one"] = len(correct) * len(incorrect) - len(pairs)
    return drawn, refused + unread


def format_pairs(candidates: list[Candidate], max_pairs: int, min_score_margin: float, seed: str) -> Pairs:
    """Correct answers against responses without a readable answer, which InternVL keeps in a file of their own."""
    ranked = usable(candidates)
    correct, without = sides(ranked, [candidate for candidate in ranked if candidate.answer is None])
    if not correct or not without:
        return [], Counter({"no correct answer" if not correct else "every response has an answer": 1})
    drawn, refused = draw(list(itertools.product(correct, without)), max_pairs, seed)
    return drawn, refused + unreadable(ranked)


def best_of_correct(candidates: list[Candidate], max_pairs: int, min_score_margin: float, seed: str) -> Pairs:
    """[`best_vs_worst`] within the correct answers, which a verifier cannot tell apart."""
    correct = [candidate for candidate in candidates if candidate.is_correct]
    if not correct:
        return [], Counter({"no correct answer": 1})
    return best_vs_worst(correct, max_pairs, min_score_margin, seed)


def sides(ranked: list[Candidate], others: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """The correct ones of `ranked`, and the incorrect ones of `others`."""
    correct = [candidate for candidate in ranked if candidate.is_correct]
    return correct, [candidate for candidate in others if candidate.is_correct is False]


def unreadable(ranked: list[Candidate]) -> Counter:
    """How many of `ranked` are on neither side, since their answer cannot be read."""
    return +Counter({"the answer cannot be read": sum(candidate.unreadable for candidate in ranked)})


def draw(pairs: list[tuple[Candidate, Candidate]], max_pairs: int, seed: str) -> Pairs:
    """At most `max_pairs` of `pairs`, drawn by `seed`, and how many are left out."""
    drawn = random.Random(seed).sample(pairs, min(max_pairs, len(pairs)))
    return drawn, Counter({"more than max_pairs": len(pairs) - len(drawn)})


RULES = {
    "best_vs_worst": best_vs_worst,
    "correct_vs_incorrect": correct_vs_incorrect,
    "format_pairs": format_pairs,
    "best_of_correct": best_of_correct,
    "random_pairs": random_pairs,
}


def check_settings(rules: list[str], max_pairs: int, min_score_margin: float, max_fraction: float) -> None:
    """
    Check the settings of a labelling.

    Args:
        rules (`list[str]`):
            Names in `RULES`.
        max_pairs (`int`), min_score_margin (`float`):
            As the rules take them.
        max_fraction (`float`):
            The largest share of pairs whose chosen response is the shorter one.

    Raises:
        ValueError: If `rules` is no list of some of `RULES`, or one of the limits is none.
    """
    if not isinstance(rules, list) or not rules:
        raise ValueError(f"`rules: {rules}` makes no pairs. Give a list of one or more of {', '.join(RULES)}.")
    if unknown := [str(name) for name in rules if str(name) not in RULES]:
        raise ValueError(f"`rules: {rules}`: there is no {', '.join(unknown)}. There are {', '.join(RULES)}.")
    if len(set(rules)) < len(rules):
        raise ValueError(f"`rules: {rules}` names a rule twice, and it would make its pairs once. Name it once.")
    if not isinstance(max_pairs, int) or max_pairs < 1:
        raise ValueError(f"`max_pairs: {max_pairs}` makes no pairs. Give 1 or more.")
    if not isinstance(min_score_margin, (int, float)) or not 0 <= min_score_margin < math.inf:
        raise ValueError(f"`min_score_margin: {min_score_margin}` is no difference of scores. Give 0 or more.")
    if not isinstance(max_fraction, (int, float)) or not 0 <= max_fraction <= 1:
        raise ValueError(f"`max_chosen_shorter_fraction: {max_fraction}` is no fraction. Give 0 to 1.")
