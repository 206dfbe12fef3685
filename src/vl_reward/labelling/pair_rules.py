"""
Which of a prompt's scored responses become preference pairs. Every rule takes the candidates, the most pairs to make,
the least score margin and a seed, and uses what it needs of them. It returns the pairs, and a count, by reason, of what
it did not pair.

An empty response has no score, and an unfinished one is not what the policy would have said: neither is ever paired.
"""

import itertools
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
            Whether that is the prompt's answer; `None` where the prompt has none.
    """

    text: str
    score: float | None
    finished: bool = True
    answer: str | None = None
    is_correct: bool | None = None


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
    if not correct or not incorrect:
        return [], Counter({"no correct answer" if not correct else "no incorrect answer": 1})
    pairs = [(one, two) for one in correct for two in incorrect if one.answer not in two.answer]
    drawn, refused = draw(pairs, max_pairs, seed)
    refused["the correct answer is contained in the incorrect one"] = len(correct) * len(incorrect) - len(pairs)
    return drawn, refused


def format_pairs(candidates: list[Candidate], max_pairs: int, min_score_margin: float, seed: str) -> Pairs:
    """Correct answers against responses without a readable answer, which InternVL keeps in a file of their own."""
    ranked = usable(candidates)
    correct, unreadable = sides(ranked, [candidate for candidate in ranked if candidate.answer is None])
    if not correct or not unreadable:
        return [], Counter({"no correct answer" if not correct else "every response has an answer": 1})
    return draw(list(itertools.product(correct, unreadable)), max_pairs, seed)


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


def draw(pairs: list[tuple[Candidate, Candidate]], max_pairs: int, seed: str) -> Pairs:
    """At most `max_pairs` of `pairs`."""
    drawn = random.Random(seed).sample(pairs, min(max_pairs, len(pairs)))
    return drawn, Counter({"more than max_pairs": len(pairs) - len(drawn)})


RULES = {
    "best_vs_worst": best_vs_worst,
    "correct_vs_incorrect": correct_vs_incorrect,
    "format_pairs": format_pairs,
    "best_of_correct": best_of_correct,
    "random_pairs": random_pairs,
}
