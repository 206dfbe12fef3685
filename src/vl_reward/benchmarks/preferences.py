"""One's own held-out preference pairs, by source."""

from datasets import Dataset

from ..data.messages import text_of
from .report.accuracy import summarize_pairs


def load(dataset: Dataset) -> list[dict]:
    """
    Rows of a preference dataset: `prompt`, `chosen` and `rejected` as messages, `images`, optionally `id` and `source`.

    Returns:
        `list[dict]`: `id`, `subset` (the source, or `"all"`), `prompt`, `images`, `responses` (chosen, rejected) and
        `preferred` (0).

    Raises:
        ValueError: If a chosen or rejected response is more than one message.
    """
    for i, row in enumerate(dataset.select_columns(["chosen", "rejected"])):
        if any(len(row[side]) != 1 for side in ("chosen", "rejected")):
            raise ValueError(f"Row {i}: a response of several messages. Put all but the last one into the prompt.")
    return [
        {
            "id": row.get("id", str(i)),
            "subset": row.get("source", "all"),
            "prompt": row["prompt"],
            "images": row["images"],
            "responses": [text_of(row[side]) for side in ("chosen", "rejected")],
            "preferred": 0,
        }
        for i, row in enumerate(dataset)
    ]


def summarize(rows: list[dict], scores: list[list[float]]) -> dict:
    """Accuracy over all pairs and by source. A tie is not right; `ties` counts them."""
    return summarize_pairs(rows, scores)
