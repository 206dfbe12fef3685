"""Scores of pairs by a surrogate reward model, from a file."""

import json
import math

from ..data.json_rows import read_text


def read_scores(path: str) -> dict[str, tuple[float, float]]:
    """
    Scores of the chosen and the rejected response by the pair's id: JSON lines with `id` and `scores`, as
    `recipes/evaluate_reward.py` writes them.

    Raises:
        ValueError: For a line without an id and two finite numbers, and for an id with two pairs of scores. The line
            and the id are named.
    """
    scores = {}
    for number, text in enumerate(read_text(path).split("\n"), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON ({error}): it is torn. Write it again.") from error
        id, values = (line.get("id"), line.get("scores")) if isinstance(line, dict) else (None, None)
        if id is None or not isinstance(values, list) or len(values) != 2 or not all(map(is_number, values)):
            raise ValueError(
                f"{path}, line {number}: the pair {id!r} has the scores {values!r}, and two finite numbers are needed, "
                "chosen before rejected. Score the pairs again."
            )
        if scores.setdefault(id, tuple(values)) != tuple(values):
            raise ValueError(
                f"{path}, line {number}: the pair {id!r} has other scores above, so one of the two lines is of another "
                "pair. Give each pair an id of its own, and score the pairs again."
            )
    return scores


def is_number(value: object) -> bool:
    """Whether a value is a finite number, and no boolean."""
    return type(value) in (int, float) and math.isfinite(value)
