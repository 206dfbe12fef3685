"""MM-RLHF-RewardBench (arXiv 2502.10391): image and video prompts, several pairs of each."""

import numpy as np

from .accuracy import count_ties, estimate, group_rows, pair_credits, ratio, subset_results
from .benchmark_file import checked_texts, read_rows


HUB_ID = "yifanzhang114/MM-RLHF-RewardBench"
SPLIT = "train"
CATEGORIES = ("mcq", "long", "short", "safety", "video")


def category_of(path: str) -> str | None:
    """The first category whose name occurs anywhere in the path, as the official script finds it."""
    return next((category for category in CATEGORIES if category in path), None)


def load(source: str = HUB_ID) -> list[dict]:
    """
    Read MM-RLHF-RewardBench. A row has an `image` or a `video`, which is a folder of frames.

    Returns:
        `list[dict]`: `id` (of the prompt, so not unique), `subset` (the category), `prompt`, `images`, `responses`
        (chosen, rejected) and `preferred` (0).

    Raises:
        ValueError: For a row without a path, or with one that names no category.
    """
    rows = []
    for i, row in enumerate(read_rows(source, ("id", "prompt", "chosen", "rejected"), ("image", "video"), SPLIT)):
        image = row["image"] if row["image"] is not None else row["video"]
        path = image.get("path") if isinstance(image, dict) else image
        category = category_of(path) if isinstance(path, str) else None
        if category is None:
            raise ValueError(
                f"{source}, row {i}: the path {path!r} holds none of {', '.join(CATEGORIES)}, from which the category "
                "is read. Keep the paths of the public file."
            )
        rows.append(
            {
                "id": str(row["id"]),
                "subset": category,
                "prompt": row["prompt"],
                "images": [image],
                "responses": checked_texts(source, i, [row["chosen"], row["rejected"]], 2),
                "preferred": 0,
            }
        )
    return rows


def prompt_units(rows: list[dict], credits: np.ndarray) -> np.ndarray:
    """Per prompt id: right pairs, pairs, whether all are right, and 1; shape `(n_ids, 4)`."""
    groups = group_rows([row["id"] for row in rows]).values()
    return np.array([[credits[i].sum(), len(i), float(credits[i].all()), 1.0] for i in groups])


def summarize(rows: list[dict], scores: list[list[float]]) -> dict:
    """
    The numbers of `cal_performance_mmreweard_bench.py`: accuracy over pairs, and ACC+, the share of prompts all of
    whose pairs are right; both over all and by category. Intervals resample prompts, whose pairs belong together.

    Args:
        rows (`list[dict]`):
            Rows as [`load`] gives them; `images` are not looked at.
        scores (`list[list[float]]`):
            Two scores per row, the chosen response's first.
    """
    credits = pair_credits(rows, scores)
    subsets = subset_results([row["subset"] for row in rows], credits, scores)
    for name, numbers in group_rows([row["subset"] for row in rows]).items():
        units = {name: prompt_units([rows[i] for i in numbers], credits[numbers])}
        _, interval = estimate(units, lambda sums, name=name: ratio(sums[name][..., :2]))
        acc_plus, acc_plus_interval = estimate(units, lambda sums, name=name: ratio(sums[name][..., 2:]))
        subsets[name] |= {"interval": interval, "acc_plus": acc_plus, "acc_plus_interval": acc_plus_interval}
        subsets[name]["n_prompts"] = len(units[name])
    units = {"all": prompt_units(rows, credits)}
    overall, interval = estimate(units, lambda sums: ratio(sums["all"][..., :2]))
    acc_plus, acc_plus_interval = estimate(units, lambda sums: ratio(sums["all"][..., 2:]))
    return {
        "n": len(rows),
        "n_prompts": len(units["all"]),
        "overall": overall,
        "overall_interval": interval,
        "acc_plus": acc_plus,
        "acc_plus_interval": acc_plus_interval,
        "ties": count_ties(scores),
        "missing_subsets": sorted(set(CATEGORIES) - subsets.keys()),
        "subsets": subsets,
    }
