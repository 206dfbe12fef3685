"""Accuracy of comparisons, its bootstrap interval, and what all benchmarks report alike."""

from collections.abc import Callable

import numpy as np


N_RESAMPLES = 1000


def pair_credits(rows: list[dict], scores: list[list[float]], tie: float = 0.0) -> np.ndarray:
    """
    What each pair earns: 1 if the preferred response scores strictly higher, 0 if lower, and `tie` if they score the
    same. Reward models earn nothing for a tie (RewardBench `run_rm.py`, MM-RLHF); RewardBench gives judges a half.

    Args:
        rows (`list[dict]`):
            Rows with `preferred`, the index of the better of two responses.
        scores (`list[list[float]]`):
            Two scores per row, in the order of its responses.

    Returns:
        `np.ndarray` of shape `(len(rows),)`.
    """
    pairs = [(pair[row["preferred"]], pair[1 - row["preferred"]]) for row, pair in zip(rows, scores, strict=True)]
    better, worse = np.array(pairs, dtype=float).T
    return np.where(better == worse, tie, better > worse).astype(float)


def count_ties(scores: list[list[float]]) -> int:
    """Rows in which the highest score is that of more than one response."""
    return sum(row.count(max(row)) > 1 for row in map(list, scores))


def wrong_scores(row: dict) -> list[float]:
    """Scores of a row's responses by which it is wrong under each benchmark's rule, and no tie."""
    right = [row["preferred"]] if "preferred" in row else range(row["num_correct"])
    return [0.0 if i in right else 1.0 + i for i in range(len(row["responses"]))]


def group_rows(names: list[str]) -> dict[str, list[int]]:
    """Row numbers by name, in the order in which the names first occur."""
    groups = {}
    for i, name in enumerate(names):
        groups.setdefault(name, []).append(i)
    return groups


def ratio(sums: np.ndarray) -> np.ndarray:
    """Accuracy from `(..., 2)`: what was earned, and out of how much."""
    return sums[..., 0] / sums[..., 1]


def estimate(strata: dict[str, np.ndarray], statistic: Callable) -> tuple[float, list[float]]:
    """
    A statistic and its 95 % bootstrap interval (percentiles, seeded). Each stratum is resampled on its own, with its
    size kept, as the benchmark's subsets are fixed by design.

    Args:
        strata (`dict[str, np.ndarray]`):
            Arrays of shape `(n_units, n_columns)`. A unit is what was drawn independently: a pair, or all pairs of a
            prompt.
        statistic (`Callable`):
            From the columns' sums, `{stratum: array of shape (..., n_columns)}`, to an array of shape `(...)`.

    Returns:
        `tuple[float, list[float]]`: the statistic, and the interval's two ends.
    """
    rng = np.random.default_rng(0)
    resampled = {
        name: np.stack([units[rng.integers(len(units), size=len(units))].sum(0) for _ in range(N_RESAMPLES)])
        for name, units in strata.items()
    }
    value = statistic({name: units.sum(0) for name, units in strata.items()})
    # A resample can miss what a statistic divides by, when there are few units; it has no value then.
    with np.errstate(invalid="ignore"):
        interval = np.nanquantile(statistic(resampled), [0.025, 0.975])
    return float(value), interval.tolist()


def units_of(credits: np.ndarray) -> np.ndarray:
    """What each row earned, and out of how much: shape `(len(credits), 2)`."""
    return np.stack([credits, np.ones(len(credits))], axis=1)


def estimate_ratio(units: np.ndarray) -> tuple[float, list[float]]:
    """[`estimate`] of the [`ratio`] of one stratum."""
    return estimate({"all": units}, lambda sums: ratio(sums["all"]))


def subset_results(names: list[str], credits: np.ndarray, scores: list[list[float]]) -> dict[str, dict]:
    """
    The results of each subset that occurs, sorted by name.

    Args:
        names (`list[str]`):
            Each row's subset.
        credits (`np.ndarray` of shape `(len(names),)`):
            What each row earned.
        scores (`list[list[float]]`):
            Each row's scores, whose ties are counted.

    Returns:
        `dict[str, dict]`: `accuracy`, `interval`, `ties` and `n` by subset.
    """
    results = {}
    for name, rows in sorted(group_rows(names).items()):
        accuracy, interval = estimate_ratio(units_of(credits[rows]))
        results[name] = {"accuracy": accuracy, "interval": interval}
        results[name] |= {"ties": count_ties([scores[i] for i in rows]), "n": len(rows)}
    return results


def summarize_pairs(rows: list[dict], scores: list[list[float]]) -> dict:
    """
    The results of pairs, all of which count alike.

    Args:
        rows (`list[dict]`):
            Rows with `subset` and `preferred`.
        scores (`list[list[float]]`):
            Two scores per row, in the order of its responses.

    Returns:
        `dict`: `n`, `overall`, `overall_interval`, `ties`, and `subsets` as [`subset_results`] gives them.
    """
    credits = pair_credits(rows, scores)
    overall, interval = estimate_ratio(units_of(credits))
    results = {"n": len(rows), "overall": overall, "overall_interval": interval, "ties": count_ties(scores)}
    return results | {"subsets": subset_results([row["subset"] for row in rows], credits, scores)}


def mean_of_groups(names: list[str], credits: np.ndarray) -> tuple[float, list[float]]:
    """The unweighted mean of the groups' accuracies, and its interval, from each row's group and its `credits`."""
    strata = {name: units_of(credits[rows]) for name, rows in group_rows(names).items()}
    return estimate(strata, lambda sums: np.mean([ratio(group) for group in sums.values()], axis=0))
