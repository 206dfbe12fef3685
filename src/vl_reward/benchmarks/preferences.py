"""One's own held-out preference pairs, by source."""

from collections.abc import Sequence

from datasets import Dataset, DatasetDict, Image, List

from ..data.images import as_image_list
from ..data.messages import split_pair, text_of
from ..data.splits import split_of, with_images
from .report.accuracy import summarize_pairs


class RowImages(Sequence):
    """
    The images, or the videos, of one row of a dataset, read when they are looked at: those of all rows do not fit into
    memory.

    Args:
        dataset (`Dataset`):
            Rows with one column, their images or their videos.
        number (`int`):
            The row.
    """

    def __init__(self, dataset: Dataset, number: int):
        self.dataset, self.number = dataset, number
        (self.column,) = dataset.column_names

    def __len__(self) -> int:
        return len(as_image_list(self.dataset[self.number][self.column]))

    def __getitem__(self, i):
        return as_image_list(self.dataset[self.number][self.column])[i]


def load(dataset: Dataset | DatasetDict, split: str = "test") -> list[dict]:
    """
    Rows of a preference dataset: `prompt`, `chosen` and `rejected` as [`split_pair`] reads them, `images`, and
    optionally `videos`, `id` and `source`. Images and videos are neither decoded nor held.

    Args:
        dataset (`Dataset` or `DatasetDict`):
            The rows, with splits or without.
        split (`str`, *optional*, defaults to `"test"`):
            Which one of a set that has splits.

    Returns:
        `list[dict]`: `id`, `subset` (the source, or `"all"`), `prompt`, `images`, `responses` (chosen, rejected),
        `preferred` (0), and `videos` where the set has them. What [`split_pair`] refuses has the reason under
        `unreadable`, and no responses.

    Raises:
        ValueError: For a column or a split that is missing, and a set without rows.
    """
    dataset = split_of(dataset, split, "dataset_test_split")
    if missing := sorted({"chosen", "rejected", "images"} - set(dataset.column_names)):
        raise ValueError(
            f"The preferences have the columns {', '.join(dataset.column_names)}, and lack {', '.join(missing)}. "
            "Rename them, or add `images` as empty lists for rows of text."
        )
    if not len(dataset):
        raise ValueError("The preferences have no rows, so there is nothing to measure.")
    if dataset.features["images"] == List(Image()):
        dataset = with_images(dataset, decode=False)
    shown = {name: dataset.select_columns(name) for name in ("images", "videos") if name in dataset.column_names}
    rows = []
    for number, row in enumerate(dataset.remove_columns([*shown])):
        name = str(number if row.get("id") is None else row["id"])
        read = {"id": name, "subset": row.get("source") or "all", "preferred": 0}
        read |= {name: RowImages(column, number) for name, column in shown.items()}
        try:
            if row.get("unreadable"):
                raise ValueError(row["unreadable"])
            prompt, *sides = split_pair(row.get("prompt"), row["chosen"], row["rejected"])
            rows.append(read | {"prompt": prompt, "responses": list(map(text_of, sides))})
        except ValueError as error:
            rows.append(read | {"prompt": [], "responses": [], "unreadable": str(error)})
    return rows


def summarize(rows: list[dict], scores: list[list[float]]) -> dict:
    """Accuracy over all pairs and by source. A tie is not right; `ties` counts them."""
    return summarize_pairs(rows, scores)
