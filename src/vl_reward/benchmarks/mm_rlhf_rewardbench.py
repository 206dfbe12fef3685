"""MM-RLHF-RewardBench (arXiv 2502.10391): image and video prompts, several pairs of each."""

import numpy as np

from .benchmark_file import check_texts, read_rows
from .report.accuracy import estimate_ratio, group_rows, pair_credits, summarize_pairs


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
        image = row["image"] or row["video"]
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
                "responses": check_texts(source, i, [row["chosen"], row["rejected"]], 2),
                "preferred": 0,
            }
        )
    return rows


def prompt_units(rows: list[dict], credits: np.ndarray) -> np.ndarray:
    """
    What each prompt adds to accuracy and ACC+.

    Args:
        rows (`list[dict]`):
            Rows with the `id` of their prompt.
        credits (`np.ndarray` of shape `(len(rows),)`):
            1 for each pair that is right.

    Returns:
        `np.ndarray` of shape `(n_ids, 4)`: right pairs, pairs, whether all are right, and 1.
    """
    groups = group_rows([row["id"] for row in rows]).values()
    return np.array([[credits[i].sum(), len(i), float(credits[i].all()), 1.0] for i in groups])


def summarize(rows: list[dict], scores: list[list[float]]) -> dict:
    """
    The numbers of `cal_performance_mmreweard_bench.py`: accuracy over pairs, and ACC+, the share of prompts all of
    whose pairs are right; both over all and by category. Intervals resample prompts, whose pairs belong together.
    """
    credits, results = pair_credits(rows, scores), summarize_pairs(rows, scores)
    subsets = results["subsets"]
    for name, numbers in group_rows([row["subset"] for row in rows]).items():
        units = prompt_units([rows[i] for i in numbers], credits[numbers])
        _, subsets[name]["interval"] = estimate_ratio(units[:, :2])
        subsets[name]["acc_plus"], subsets[name]["acc_plus_interval"] = estimate_ratio(units[:, 2:])
        subsets[name]["n_prompts"] = len(units)
    units = prompt_units(rows, credits)
    _, results["overall_interval"] = estimate_ratio(units[:, :2])
    results["acc_plus"], results["acc_plus_interval"] = estimate_ratio(units[:, 2:])
    return results | {"n_prompts": len(units), "missing_subsets": sorted(set(CATEGORIES) - subsets.keys())}
