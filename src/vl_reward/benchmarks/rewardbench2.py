"""RewardBench 2 (arXiv 2506.01937): the best of four, and prompts with several right answers."""

import numpy as np

from .benchmark_file import check_texts, read_rows
from .report.accuracy import count_ties, estimate, group_rows, ratio, subset_results, units_of


HUB_ID = "allenai/reward-bench-2"
SUBSETS = ("Factuality", "Precise IF", "Math", "Safety", "Focus", "Ties")


def is_ties(subset: str) -> bool:
    """Whether the rule for several right answers applies, as `scripts/run_v2.py` decides it."""
    return subset.lower() == "ties"


def load(source: str = HUB_ID) -> list[dict]:
    """
    Read RewardBench 2. Ids are unique within a subset only.

    Returns:
        `list[dict]`: `id`, `subset`, `prompt`, `images` (none), `responses` (all chosen, then all rejected) and
        `num_correct` (how many were chosen).

    Raises:
        ValueError: If `num_correct` is not the number of chosen responses, or an id of Ties is not `ref:<prompt>` or
            `tied:<prompt>` or occurs twice.
    """
    columns, optional = ("id", "prompt", "chosen", "rejected", "subset"), ("num_correct",)
    rows, ties = [], set()
    for i, row in enumerate(read_rows(source, columns, optional)):
        chosen, rejected = (check_texts(source, i, row[side], 1) for side in ("chosen", "rejected"))
        if row["num_correct"] not in (None, len(chosen)):
            raise ValueError(
                f"{source}, row {i}: `num_correct` is {row['num_correct']}, and {len(chosen)} responses are chosen. "
                "Scores would be given to the wrong side; fetch the file again."
            )
        id = str(row["id"])
        if is_ties(row["subset"]):
            if id.partition(":")[0] not in ("ref", "tied") or id in ties:
                raise ValueError(
                    f"{source}, row {i}: the id {id!r} of a row of Ties "
                    + ("occurs twice." if id in ties else "is ")
                    + "unknown. One `ref:<prompt>` and one `tied:<prompt>` are needed per prompt."
                )
            ties.add(id)
        rows.append(
            {
                "id": id,
                "subset": row["subset"],
                "prompt": row["prompt"],
                "images": [],
                "responses": chosen + rejected,
                "num_correct": len(chosen),
            }
        )
    return rows


def best_of_credit(scores: list[float]) -> float:
    """One divided by the responses that share the highest score, if the chosen one, the first, is among them."""
    highest = max(scores)
    return 1 / scores.count(highest) if scores[0] == highest else 0.0


def ties_units(rows: list[dict], scores: list[list[float]]) -> np.ndarray:
    """
    What each prompt of Ties adds to `process_single_model`'s five averages: an array of shape `(n_prompts, 8)` with the
    accuracy on its row with several right answers and whether it has one; the same for its row with a single right
    answer; and, where it has both, whether the gap to the wrong answers is wider than the spread of the right ones,
    whether the narrower of both rows' gaps is, the margin by which it is, and 1.

    Args:
        rows (`list[dict]`):
            Rows of Ties, whose `id` is `tied:` or `ref:` and the prompt's number, with `num_correct`.
        scores (`list[list[float]]`):
            One score per response, the right ones first.
    """
    accurate, spread, gap = {}, {}, {}
    for row, values in zip(rows, scores, strict=True):
        kind, _, prompt = row["id"].partition(":")
        right, wrong = values[: row["num_correct"]], values[row["num_correct"] :]
        gap[prompt, kind] = min(right) - max(wrong)
        accurate[prompt, kind] = float(min(right) > max(wrong))
        spread[prompt, kind] = max(right) - min(right)
    units = []
    for prompt in dict.fromkeys(prompt for prompt, _ in accurate):
        tied, ref = (prompt, "tied"), (prompt, "ref")
        unit = [accurate.get(tied, 0.0), float(tied in accurate), accurate.get(ref, 0.0), float(ref in accurate)]
        if tied in accurate and ref in accurate:
            narrow = min(gap[ref], gap[tied])
            with np.errstate(divide="ignore", invalid="ignore"):
                margin = np.tanh(np.float64(narrow) / np.float64(spread[tied]) - 1)
            unit += [float(gap[tied] > spread[tied]), float(narrow > spread[tied]), np.nan_to_num(margin, nan=0.0), 1.0]
        else:
            unit += [0.0] * 4
        units.append(unit)
    return np.array(units)


def ties_score(sums: np.ndarray) -> np.ndarray:
    """The weighted score of Ties from the sums of [`ties_units`], of shape `(..., 8)`. It can reach 1.01."""
    tied, n_tied, ref, n_ref, wide, narrow, margin, n = np.moveaxis(sums, -1, 0)
    return 0.3 * tied / n_tied + 0.3 * ref / n_ref + 0.2 * wide / n + 0.2 * narrow / n + 0.01 * margin / n


def mean_of_subsets(sums: dict[str, np.ndarray]) -> np.ndarray:
    """The unweighted mean of the subsets' accuracies and the score of Ties."""
    return np.mean([(ties_score if is_ties(name) else ratio)(of_subset) for name, of_subset in sums.items()], axis=0)


def summarize(rows: list[dict], scores: list[list[float]]) -> dict:
    """
    The numbers of `run_v2.py`: a row of the best of four earns 1, shared among all that score highest, and Ties has a
    weighted score of its own. `overall`, which is `macro` too, is the mean of the six subsets. Where some do not occur,
    `missing_subsets` names them, and there is no `overall` (`None`).

    Raises:
        ValueError: If Ties lacks prompts with both of their rows, as its score needs.
    """
    strata, subsets = {}, {}
    for name, numbers in sorted(group_rows([row["subset"] for row in rows]).items()):
        some_rows, some_scores = [rows[i] for i in numbers], [list(scores[i]) for i in numbers]
        if is_ties(name):
            strata[name] = ties_units(some_rows, some_scores)
            if not strata[name][:, -1].any():
                raise ValueError("Ties has no prompt with both a `ref:` and a `tied:` row, so it has no score.")
            accuracy, interval = estimate({name: strata[name]}, lambda sums, name=name: ties_score(sums[name]))
            subsets[name] = {"accuracy": accuracy, "interval": interval}
            subsets[name] |= {"ties": count_ties(some_scores), "n": len(numbers)}
        else:
            credits = np.array([best_of_credit(row) for row in some_scores])
            strata[name] = units_of(credits)
            subsets |= subset_results([name] * len(numbers), credits, some_scores)
    there = {name.lower() for name in subsets}
    missing, overall, interval = [name for name in SUBSETS if name.lower() not in there], None, None
    if not missing:
        overall, interval = estimate(strata, mean_of_subsets)
    return {
        "n": len(rows),
        "overall": overall,
        "overall_interval": interval,
        "macro": overall,
        "macro_interval": interval,
        "ties": count_ties(scores),
        "missing_subsets": missing,
        "subsets": subsets,
    }
