"""RewardBench (arXiv 2403.13787): chat, hard chat, safety and reasoning pairs of text."""

import numpy as np

from .benchmark_file import check_texts, read_rows
from .report.accuracy import count_ties, estimate, group_rows, pair_credits, ratio, subset_results, units_of


HUB_ID = "allenai/reward-bench"
SPLIT = "filtered"
# `rewardbench/constants.py`: the weight of a subset in its section is the number of its rows, but for math-prm, whose
# 447 rows weigh as much as the six programming languages together.
SECTIONS = {
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984,
        **dict.fromkeys(("hep-cpp", "hep-go", "hep-java", "hep-js", "hep-python", "hep-rust"), 164),
    },
}
SUBSETS = {subset for section in SECTIONS.values() for subset in section}


def load(source: str = HUB_ID) -> list[dict]:
    """
    Read RewardBench, from the hub in its split `filtered`.

    Returns:
        `list[dict]`: `id`, `subset`, `prompt`, `images` (none), `responses` (chosen, rejected) and `preferred` (0).

    Raises:
        ValueError: For a subset that no section counts.
    """
    rows = []
    for i, row in enumerate(read_rows(source, ("prompt", "chosen", "rejected", "subset"), ("id",), SPLIT)):
        if row["subset"] not in SUBSETS:
            raise ValueError(
                f"{source}, row {i}: no section of RewardBench counts the subset {row['subset']!r}, so its rows would "
                f"be lost. The subsets are {', '.join(sorted(SUBSETS))}."
            )
        rows.append(
            {
                "id": str(i if row["id"] is None else row["id"]),
                "subset": row["subset"],
                "prompt": row["prompt"],
                "images": [],
                "responses": check_texts(source, i, [row["chosen"], row["rejected"]], 2),
                "preferred": 0,
            }
        )
    return rows


def section_accuracy(section: str, sums: dict[str, np.ndarray]) -> np.ndarray:
    """
    A section's accuracy from its subsets', each with its official weight, over the subsets that occur.

    Args:
        section (`str`):
            Its name in `SECTIONS`.
        sums (`dict[str, np.ndarray]`):
            By subset, what was earned and out of how much, of shape `(..., 2)`.

    Returns:
        `np.ndarray` of shape `(...)`.
    """
    weights = {subset: weight for subset, weight in SECTIONS[section].items() if subset in sums}
    return sum(weight * ratio(sums[subset]) for subset, weight in weights.items()) / sum(weights.values())


def summarize(rows: list[dict], scores: list[list[float]], tie: float = 0.0) -> dict:
    """
    The numbers of `calculate_scores_per_section`: a section's accuracy weighs its subsets by `EXAMPLE_COUNTS`;
    `overall`, which is `macro` too, is the mean of the sections. Subsets that do not occur are left out of a section by
    the official rule. Where a whole section does not occur, the official script counts a zero; here there is no
    `overall` then (`None`). Both are named in `missing_subsets`. The prior sets are not part of it.

    Args:
        rows (`list[dict]`):
            What [`load`] gives.
        scores (`list[list[float]]`):
            Two scores per row, chosen before rejected.
        tie (`float`, *optional*, defaults to `0.0`):
            What a tie earns. The official script gives a generative judge without a verdict 0.5.
    """
    credits = pair_credits(rows, scores, tie)
    subsets = [row["subset"] for row in rows]
    by_subset = group_rows(subsets)
    strata = {name: units_of(credits[i]) for name, i in by_subset.items()}
    sections = {}
    for section, weights in SECTIONS.items():
        if of_section := {name: strata[name] for name in weights if name in strata}:
            accuracy, interval = estimate(of_section, lambda sums, section=section: section_accuracy(section, sums))
            n = sum(map(len, of_section.values()))
            sections[section] = {"accuracy": accuracy, "interval": interval, "n": n}
    missing_sections, overall, interval = sorted(SECTIONS.keys() - sections.keys()), None, None
    if not missing_sections:
        overall, interval = estimate(
            strata, lambda sums: np.mean([section_accuracy(section, sums) for section in SECTIONS], axis=0)
        )
    return {
        "n": len(rows),
        "overall": overall,
        "overall_interval": interval,
        "macro": overall,
        "macro_interval": interval,
        "ties": count_ties(scores),
        "missing_subsets": sorted(SUBSETS - by_subset.keys()) + missing_sections,
        "subsets": subset_results(subsets, credits, scores),
        "sections": sections,
    }
