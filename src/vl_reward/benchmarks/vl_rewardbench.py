"""VL-RewardBench (arXiv 2411.17451): general, hallucination and reasoning pairs with one image each."""

import re

from .benchmark_file import check_texts, read_rows
from .report.accuracy import mean_of_groups, pair_credits, subset_results, summarize_pairs


HUB_ID = "MMInstruction/VL-RewardBench"
# `cal.py` of VL_RewardBench: the source is read off the id's beginning, case and all.
SOURCES = {
    "RLAIF": "rlaif-v",
    "RLHF": "rlhf-v",
    "mathverse": "reasoning_tasks",
    "mmmu": "reasoning_tasks",
    "wildvision": "wildvision-battle",
    "hallucination": "povid",
}
GROUPS = {
    "vlfeedback": "general",
    "wildvision-battle": "general",
    "povid": "hallucination",
    "rlhf-v": "hallucination",
    "rlaif-v": "hallucination",
    "reasoning_tasks": "reasoning",
}


def source_of(id: str) -> str:
    """The data set that a row was drawn from, by the beginning of its id. `query_source` is empty in many rows."""
    return SOURCES.get(re.split("[_-]", id, maxsplit=1)[0], "vlfeedback")


def load(source: str = HUB_ID) -> list[dict]:
    """
    Read VL-RewardBench. `human_ranking[i]` is the rank of response `i`, 0 for the better one.

    Returns:
        `list[dict]`: `id` (not unique), `subset` (the group), `source`, `prompt`, `images`, `responses` (two, in the
        order of the file) and `preferred` (the index of the better one).

    Raises:
        ValueError: For a row that is not a pair with a ranking of it.
    """
    rows = []
    for i, row in enumerate(read_rows(source, ("id", "query", "response", "human_ranking"), ("image",))):
        ranking = list(row["human_ranking"])
        if sorted(ranking) != [0, 1] or len(check_texts(source, i, row["response"], 2)) != 2:
            raise ValueError(
                f"{source}, row {i}: `human_ranking` is {ranking} for {len(row['response'])} responses. Two responses "
                "and their ranks, [0, 1] or [1, 0], are needed."
            )
        rows.append(
            {
                "id": str(row["id"]),
                "subset": GROUPS[source_of(str(row["id"]))],
                "source": source_of(str(row["id"])),
                "prompt": row["query"],
                "images": [row["image"]] if row["image"] else [],
                "responses": row["response"],
                "preferred": ranking.index(0),
            }
        )
    return rows


def summarize(rows: list[dict], scores: list[list[float]]) -> dict:
    """
    The numbers of `cal.py`: `overall` is the accuracy over all pairs, `macro` the mean of the three groups'. Where a
    group does not occur, `missing_subsets` names it, and there is no `macro` (`None`).
    """
    credits = pair_credits(rows, scores)
    groups = [row["subset"] for row in rows]
    missing = sorted(set(GROUPS.values()) - set(groups))
    macro, macro_interval = (None, None) if missing else mean_of_groups(groups, credits)
    results = summarize_pairs(rows, scores)
    results |= {"macro": macro, "macro_interval": macro_interval, "missing_subsets": missing}
    return results | {"sources": subset_results([row["source"] for row in rows], credits, scores)}
