"""A benchmark's numbers with what they have to be read against: trivial baselines, length, training data."""

from collections import Counter
from collections.abc import Callable

import numpy as np

from .accuracy import wrong_scores
from .training_overlap import TrainingOverlap


def length_correlation(rows: list[dict], scores: list[list[float]]) -> float | None:
    """
    Pearson correlation of the scores with the responses' lengths in characters, both as differences from their row's
    mean, since only responses to one prompt compare. `None` if either never differs.
    """
    centred = []
    for row, values in zip(rows, scores, strict=True):
        lengths = np.array([len(response) for response in row["responses"]], dtype=float)
        centred.append(np.stack([np.array(values) - np.mean(values), lengths - lengths.mean()]))
    score, length = np.concatenate(centred, axis=1)
    norm = np.linalg.norm(score) * np.linalg.norm(length)
    return float(score @ length / norm) if norm > 0 else None


class BenchmarkReport:
    """
    What a benchmark's `summarize` gives for scores, and beside it the same for trivial scores and for the rows that are
    not in the training data.

    Args:
        summarize (`Callable`):
            A benchmark's own rule, from rows and scores to a dictionary.
        rows (`list[dict]`):
            The benchmark's rows.
        overlap ([`TrainingOverlap`], *optional*):
            What the model was trained on.
    """

    def __init__(self, summarize: Callable, rows: list[dict], overlap: TrainingOverlap | None = None):
        self.summarize = summarize
        self.rows = rows
        self.overlap = overlap

    def __call__(self, scores: list[list[float] | None]) -> dict:
        """
        Args:
            scores (`list[list[float] | None]`):
                One score per response of each row. `None` for a row that was refused: it is in all numbers as a wrong
                one, since a benchmark is of all of its rows.

        Returns:
            `dict`: the benchmark's own numbers, `refused_rows`, `length_correlation` (of the scored rows), `baselines`
            (what preferring the shorter, the longer or the file's first response gives, `overall` as `accuracy`), with
            an overlap `without_training_rows`, and, where rows were refused, `without_refused_rows`.

        Raises:
            ValueError: If every row was refused.
        """
        scored = [i for i, row in enumerate(scores) if row is not None]
        if not scored:
            raise ValueError(f"None of {len(scores)} rows has scores, so there is nothing to measure.")
        scores = [wrong_scores(row) if some is None else some for row, some in zip(self.rows, scores, strict=True)]
        results = self.summarize(self.rows, scores) | {"refused_rows": len(scores) - len(scored)}
        of_scored = [self.rows[i] for i in scored], [scores[i] for i in scored]
        results["length_correlation"] = length_correlation(*of_scored)
        texts = [row["responses"] for row in self.rows]
        baselines = {
            "shorter_is_better": [[-len(text) for text in row] for row in texts],
            "longer_is_better": [[len(text) for text in row] for row in texts],
            "first_is_better": [[float(i == 0) for i in range(len(row))] for row in texts],
        }
        results["baselines"] = {
            name: self._without_intervals(self.summarize(self.rows, trivial)) for name, trivial in baselines.items()
        }
        if self.overlap is not None:
            results["without_training_rows"] = self._without_training_rows(scores)
        if results["refused_rows"]:
            results["without_refused_rows"] = self._without_intervals(self.summarize(*of_scored))
        return results

    def _without_intervals(self, results: dict) -> dict:
        subsets = {name: subset["accuracy"] for name, subset in results["subsets"].items()}
        extra = {key: results[key] for key in ("macro", "acc_plus") if key in results}
        return {"accuracy": results["overall"], "ties": results["ties"], "n": results["n"], **extra, "subsets": subsets}

    def _without_training_rows(self, scores: list[list[float]]) -> dict:
        reasons = [self.overlap.reason(row) for row in self.rows]
        kept = [i for i, reason in enumerate(reasons) if reason is None]
        training = {"removed": dict(sorted(Counter(filter(None, reasons)).items()))}
        training["images_not_read"] = self.overlap.images_not_read
        if not kept:
            return training | {"n": 0}
        return training | self.summarize([self.rows[i] for i in kept], [scores[i] for i in kept])
