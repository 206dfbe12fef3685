"""Rows of a benchmark that are in the training data."""

from pathlib import Path

from datasets import Dataset, DatasetDict, Image, List

from ...data.encoding import load_images, named_row
from ...data.messages import split_pair, text_of
from ...data.splits import split_of, with_images
from ..benchmark_images import BenchmarkImages
from ..contamination import ContentIndex, RowContent


def content_of(row: dict) -> RowContent:
    """What is compared of a preference pair. Errors name it."""
    name = f"training row {row.get('id', '?')}"
    with named_row(name):
        prompt, *answers = split_pair(row.get("prompt"), row["chosen"], row["rejected"])
    return RowContent.of(text_of(prompt), list(map(text_of, answers)), load_images(name, row.get("images")))


class TrainingOverlap:
    """
    Finds rows of a benchmark in a preference dataset, by the rule of [`ContentIndex`] that curation drops pairs by.

    Args:
        dataset (`Dataset` or `DatasetDict`):
            Training rows with `prompt`, `images`, `chosen` and `rejected`.
        image_folder (`str` or `Path`, *optional*):
            Where the paths of the benchmark's rows start. Without it, they are taken as they are.
        max_hamming_distance (`int`, *optional*, defaults to `6`):
            Bits of 64 in which the perceptual hashes of one image may differ.
        split (`str`, *optional*, defaults to `"train"`):
            Which one of a set that has splits.

    Attributes:
        images_not_read (`int`): Images that are not on disk or cannot be decoded, and video files: nothing is compared
            with them.
    """

    def __init__(
        self,
        dataset: Dataset | DatasetDict,
        image_folder: str | Path | None = None,
        max_hamming_distance: int = 6,
        split: str = "train",
    ):
        self.images, self.max_hamming_distance = BenchmarkImages(image_folder), max_hamming_distance
        self.images_not_read = 0
        dataset = split_of(dataset, split, "dataset_train_split")
        if dataset.features.get("images") == List(Image()):
            dataset = with_images(dataset, decode=False)
        self.training = ContentIndex(content_of(row) for row in dataset)

    def reason(self, row: dict) -> str | None:
        """
        Why a benchmark's `row` counts as seen in training, in the words of [`ContentIndex.reasons`]; else `None`. A
        video is compared where it is a folder of frames.
        """
        shown = [*row["images"], *row.get("videos", ())]
        content, n_not_read = RowContent.of_benchmark(text_of(row["prompt"]), row["responses"], shown, self.images)
        self.images_not_read += n_not_read
        return self.training.reasons([content], self.max_hamming_distance)[0]
