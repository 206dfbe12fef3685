"""VLFeedback (`MMInstruction/VLFeedback`): four rated responses to a prompt, every two of which may be a pair."""

import itertools
from collections.abc import Iterator

from ..pair import Unusable, build_pair
from ..public_rows import read_rows


LICENSE = "not stated on its card"
read = read_rows
ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")


def as_list(completions: dict | list) -> list[dict]:
    """Completions as a list of structs. `datasets` also gives them as a struct of lists, at both levels."""
    if isinstance(completions, list):
        return completions
    n = len(completions["response"])
    annotations = completions["annotations"]
    if isinstance(annotations, dict):
        annotations = [
            {
                aspect: value[i] if isinstance(value, list) else {key: column[i] for key, column in value.items()}
                for aspect, value in annotations.items()
            }
            for i in range(n)
        ]
    return [{"response": completions["response"][i], "annotations": annotations[i]} for i in range(n)]


def mean_rating(annotations: dict) -> float | None:
    """The mean of the three ratings, each 1 to 5, or `None` where one is no number ("N/A")."""
    try:
        return sum(float(annotations[aspect]["Rating"]) for aspect in ASPECTS) / len(ASPECTS)
    except (TypeError, ValueError):
        return None


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """
    `id`, `prompt`, `completions`, and the image as `image` or `img_path`. All combinations with different mean ratings,
    as the official `run_dpo.py` makes them.
    """
    prompt = row["prompt"].replace("<image>", "").strip()
    image = row["image"] if row.get("image") is not None else row.get("img_path")
    rated = [(mean_rating(one["annotations"]), one["response"]) for one in as_list(row["completions"])]
    if len(rated) < 2:
        raise Unusable("fewer than two responses")
    for (first, one), (second, two) in itertools.combinations(rated, 2):
        if first is None or second is None:
            yield {"skipped": "a rating is not a number"}
        elif first == second:
            yield {"skipped": "tie"}
        elif not (one or "").strip() or not (two or "").strip():
            yield {"skipped": "a response is empty"}
        else:
            better, worse = (one, two) if first > second else (two, one)
            rating = {"rating_margin": abs(first - second) / 4, "chosen_first": first > second}
            yield build_pair(prompt, better, worse, [image], origin=row["id"], **rating)
