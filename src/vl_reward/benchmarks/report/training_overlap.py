"""Rows of a benchmark that are in the training data."""

from pathlib import Path

from datasets import Dataset, Image, List

from ...data.images import load_image
from ...data.messages import text_of
from ..benchmark_images import BenchmarkImages
from ..contamination import ContentIndex, RowContent


def content_of(row: dict) -> RowContent:
    """What is compared of a preference pair."""
    responses = [text_of(row[side]) for side in ("chosen", "rejected")]
    return RowContent.of(text_of(row["prompt"]), responses, list(map(load_image, row["images"])))


class TrainingOverlap:
    """
    Finds rows of a benchmark in a preference dataset, by the rule of [`ContentIndex`] that curation drops pairs by.

    Args:
        dataset (`Dataset`):
            Training rows with `prompt`, `images`, `chosen` and `rejected`.
        image_folder (`str` or `Path`):
            Where the paths of the benchmark's rows start.
        max_hamming_distance (`int`, *optional*, defaults to `6`):
            Bits of 64 in which the perceptual hashes of one image may differ.

    Attributes:
        images_not_read (`int`): Images that are not on disk or cannot be decoded, which nothing can be compared with.
    """

    def __init__(self, dataset: Dataset, image_folder: str | Path = ".", max_hamming_distance: int = 6):
        self.images, self.max_hamming_distance = BenchmarkImages(image_folder), max_hamming_distance
        self.images_not_read = 0
        self.training = ContentIndex(map(content_of, dataset.cast_column("images", List(Image(decode=False)))))

    def reason(self, row: dict) -> str | None:
        """Why a benchmark's row counts as seen in training, in the words of [`ContentIndex.reasons`]; else `None`."""
        prompt = text_of(row["prompt"])
        content, n_not_read = RowContent.of_benchmark(prompt, row["responses"], row["images"], self.images)
        self.images_not_read += n_not_read
        return self.training.reasons([content], self.max_hamming_distance)[0]
