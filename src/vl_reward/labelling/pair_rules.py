"""
Which of a prompt's scored responses become preference pairs. Every rule takes the candidates, the most pairs to make,
the least score gap and a seed, of which it uses what it needs, and returns the pairs with a count, by reason, of what
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
            What a verifier read as its answer; `None` where it found none.
        right (`bool`, *optional*):
            Whether that is the prompt's answer; `None` where the prompt has none.
    """

    text: str
    score: float | None
    finished: bool = True
    answer: str | None = None
    right: bool | None = None


def usable(candidates: list[Candidate]) -> list[Candidate]:
    """The different finished responses that have a score, worst first."""
    found = {candidate for candidate in candidates if candidate.finished and candidate.score is not None}
    return sorted(found, key=lambda candidate: (candidate.score, candidate.text))


def unusable(candidates: list[Candidate]) -> Counter:
    """How many responses no rule looks at, by reason."""
    reasons = Counter("the response is empty" for candidate in candidates if candidate.score is None)
    scored = [candidate for candidate in candidates if candidate.score is not None]
    reasons["the response is unfinished"] = sum(not candidate.finished for candidate in scored)
    reasons["the response is there twice"] = sum(candidate.finished for candidate in scored) - len(usable(candidates))
    return reasons


def best_against_worst(candidates: list[Candidate], max_pairs: int, min_gap: float, seed: str) -> Pairs:
    """
    The best response against each of the `max_pairs` worst ones that score at least `min_gap` less. Skywork R1V2
    compared gaps of 7, 10 and 15 on the scale of Skywork-VL-Reward.
    """
    ranked = usable(candidates)
    if len(ranked) < 2:
        return [], Counter({"fewer than two different finished responses": 1})
    *others, best = ranked
    pairs = [(best, other) for other in others[:max_pairs] if best.score - other.score >= min_gap]
    refused = Counter({"score gap too small": len(others[:max_pairs]) - len(pairs)})
    refused["more than max_pairs"] = len(others) - len(others[:max_pairs])
    return pairs, refused


def random_pairs(candidates: list[Candidate], max_pairs: int, min_gap: float, seed: str) -> Pairs:
    """Any response against any other one: what a reward model's pairs have to beat."""
    ranked = usable(candidates)
    if len(ranked) < 2:
        return [], Counter({"fewer than two different finished responses": 1})
    pairs = list(itertools.permutations(ranked, 2))
    drawn = random.Random(seed).sample(pairs, min(max_pairs, len(pairs)))
    return drawn, Counter({"more than max_pairs": len(pairs) - len(drawn)})


def right_against_wrong(candidates: list[Candidate], max_pairs: int, min_gap: float, seed: str) -> Pairs:
    """
    Right answers against wrong ones, drawn from all combinations (MPO section 3; InternVL's `mmpr_data_pipeline`, which
    takes up to 15 a prompt). A pair is left out where the right answer is contained in the wrong one, as 1 is in 12:
    the two may be the same, written in two ways. Responses without an answer are not paired, see [`format_pairs`].
    """
    ranked = usable(candidates)
    right, wrong = sides(ranked, [candidate for candidate in ranked if candidate.answer is not None])
    if not right or not wrong:
        return [], Counter({"no right answer" if not right else "no wrong answer": 1})
    pairs = [(one, two) for one in right for two in wrong if one.answer not in two.answer]
    refused = Counter({"the right answer is contained in the wrong one": len(right) * len(wrong) - len(pairs)})
    drawn = random.Random(seed).sample(pairs, min(max_pairs, len(pairs)))
    refused["more than max_pairs"] += len(pairs) - len(drawn)
    return drawn, refused


def format_pairs(candidates: list[Candidate], max_pairs: int, min_gap: float, seed: str) -> Pairs:
    """Right answers against responses in which no answer was found, which InternVL keeps in a file of their own."""
    ranked = usable(candidates)
    right, unreadable = sides(ranked, [candidate for candidate in ranked if candidate.answer is None])
    if not right or not unreadable:
        return [], Counter({"no right answer" if not right else "every response has an answer": 1})
    pairs = list(itertools.product(right, unreadable))
    drawn = random.Random(seed).sample(pairs, min(max_pairs, len(pairs)))
    return drawn, Counter({"more than max_pairs": len(pairs) - len(drawn)})


def best_of_right(candidates: list[Candidate], max_pairs: int, min_gap: float, seed: str) -> Pairs:
    """[`best_against_worst`] within the right answers, which a verifier cannot tell apart."""
    right = [candidate for candidate in candidates if candidate.right]
    if not right:
        return [], Counter({"no right answer": 1})
    return best_against_worst(right, max_pairs, min_gap, seed)


def sides(ranked: list[Candidate], others: list[Candidate]) -> tuple[list[Candidate], list[Candidate]]:
    """The right ones of `ranked`, and the wrong ones of `others`."""
    return (
        [candidate for candidate in ranked if candidate.right],
        [candidate for candidate in others if candidate.right is False],
    )
