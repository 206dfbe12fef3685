"""Rows of a benchmark that are in the training data."""

import hashlib
from pathlib import Path

from datasets import Dataset, Image, List

from ..data.images import load_image
from ..data.messages import text_of


def normalized(text: str) -> str:
    """Text as it is compared: lower case, blanks as single spaces."""
    return " ".join(text.lower().split())


def pixel_hash(source) -> str:
    """A hash of an image's size and decoded pixels: another file format changes nothing, another size does."""
    image = load_image(source)
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()


class TrainingOverlap:
    """
    Finds rows of a benchmark in a preference dataset: rows that show a training image, that answer a training prompt
    with a training response, or, without an image, that ask a training prompt. Prompts alone do not count for rows with
    an image: "Describe this image." is asked of thousands.

    Images are compared by their decoded pixels, so one that was scaled or compressed anew is not found.

    Args:
        dataset (`Dataset`):
            Training rows with `prompt`, `images`, `chosen` and `rejected`.
        image_folder (`str` or `Path`):
            Where the paths of the benchmark's rows start.
    """

    def __init__(self, dataset: Dataset, image_folder: str | Path = "."):
        self.image_folder = Path(image_folder)
        self.images_not_read = 0
        self.image_hashes, self.prompts, self.answers = set(), set(), set()
        for row in dataset.cast_column("images", List(Image(decode=False))):
            prompt = normalized(text_of(row["prompt"]))
            self.prompts.add(prompt)
            self.answers |= {(prompt, normalized(text_of(row[side]))) for side in ("chosen", "rejected")}
            self.image_hashes |= {pixel_hash(image) for image in row["images"]}

    def reason(self, row: dict) -> str | None:
        """
        Why a benchmark's row counts as seen in training: `"image"`, `"prompt and response"` or `"prompt"`; else `None`.
        An image that is not on disk cannot be compared, and is counted in `images_not_read`.
        """
        for image in row["images"]:
            image = self.image_folder / image if isinstance(image, str) else image
            if isinstance(image, Path) and not image.is_file():
                self.images_not_read += 1
            elif pixel_hash(image) in self.image_hashes:
                return "image"
        prompt = normalized(text_of(row["prompt"]))
        if any((prompt, normalized(response)) in self.answers for response in row["responses"]):
            return "prompt and response"
        return "prompt" if not row["images"] and prompt in self.prompts else None
