"""Pairs that show or say what a benchmark tests."""

from pathlib import Path

import numpy as np

from ..benchmarks.benchmark_file import read_rows
from ..data.images import confined_path, load_image
from ..data.messages import text_of
from .image_similarity import bit_distances, crops, perceptual_hash, pixel_hash
from .pair import as_image
from .text_similarity import text_key


# Public benchmarks' names for the same things.
ID_COLUMNS = ("id", "ID")
PROMPT_COLUMNS = ("prompt", "query", "Text", "question")
RESPONSE_COLUMNS = ("response", "responses", "chosen", "rejected", "Output1", "Output2")
IMAGE_COLUMNS = ("image", "images", "Image")


class BenchmarkContent:
    """
    What is looked for of one benchmark.

    Args:
        name (`str`):
            What reasons call it.
        path (`str`):
            Its public file (JSON, JSONL or parquet), or its hub id.
        split (`str`, *optional*, defaults to `"test"`):
            The split on the hub.
        image_root (`str`, *optional*):
            Where its image paths begin. Defaults to the folder of the file.

    Attributes:
        images_not_read (`int`): Images that are not on disk or cannot be decoded, which nothing can be compared with.

    Raises:
        ValueError: If no column is known.
    """

    def __init__(self, name: str, path: str, split: str = "test", image_root: str | None = None):
        self.name, self.images_not_read = name, 0
        self.ids: set[str] = set()
        self.texts: set[int] = set()
        self.prompts_without_image: set[int] = set()
        self.pixels: set[str] = set()
        self.perceptual = np.zeros(0, np.uint64)
        columns = ID_COLUMNS + PROMPT_COLUMNS + RESPONSE_COLUMNS + IMAGE_COLUMNS
        for row in read_rows(str(path), (), columns, split):
            self.ids |= {str(row[column]) for column in ID_COLUMNS if row[column] is not None}
            prompt = next((as_text(row[column]) for column in PROMPT_COLUMNS if row[column]), "")
            self.texts |= {text_key(prompt, response) for response in responses_of(row)}
            images = [image for column in IMAGE_COLUMNS if row[column] for image in as_list(row[column])]
            if prompt and not images:
                self.prompts_without_image.add(text_key(prompt))
            self.add_images(images, image_root or Path(path).parent)
        if not (self.texts or self.pixels or self.images_not_read):
            raise ValueError(
                f"benchmarks: {path} has no column that is known: a prompt in {PROMPT_COLUMNS}, responses in "
                f"{RESPONSE_COLUMNS}, images in {IMAGE_COLUMNS}."
            )

    @classmethod
    def from_yaml(cls, entry: dict) -> "BenchmarkContent":
        """
        Raises:
            ValueError: For a key that does not exist, or one that is missing.
        """
        if set(entry) - {"split", "image_root"} != {"name", "path"}:
            raise ValueError(f"benchmarks: {entry} needs name and path, and may have split and image_root, no more.")
        return cls(**entry)

    def add_images(self, images: list, root: str | Path):
        """Hash a row's images. Of the benchmark's own images, crops are hashed too: there are few of them."""
        perceptual = []
        for image in map(as_image, images):
            try:
                if image["bytes"] is None:
                    image = {"bytes": None, "path": confined_path(image["path"], root)}
                decoded = load_image(image)
            except ValueError:
                self.images_not_read += 1
                continue
            self.pixels.add(pixel_hash(decoded))
            perceptual += [perceptual_hash(crop) for crop in crops(decoded)]
        self.perceptual = np.union1d(self.perceptual, np.array(perceptual, np.uint64))

    def reasons(
        self,
        prompt_keys: list[int],
        answer_keys: list[list[int]],
        pixel_hashes: list[list[str]],
        image_hashes: list[list[int]],
        benchmark_ids: list[str | None],
        max_bits: int,
    ) -> dict[int, str]:
        """
        Args:
            prompt_keys (`list[int]`):
                [`text_key`] of each pair's prompt.
            answer_keys (`list[list[int]]`):
                [`text_key`] of prompt with chosen, and of prompt with rejected response.
            pixel_hashes (`list[list[str]]`), image_hashes (`list[list[int]]`):
                [`pixel_hash`] and [`perceptual_hash`] of each pair's images.
            benchmark_ids (`list[str]`):
                The id that the benchmark would give to the row, or `None`.
            max_bits (`int`):
                Bits in which an image's hash may differ from that of a benchmark's image, or of a crop of it.

        Returns:
            `dict[int, str]`: why each contaminated pair is. A prompt in common counts for pairs of text only: "Describe
            this image." is asked of thousands.
        """
        near = self.near_images(image_hashes, max_bits)
        found = {}
        for i, pixels in enumerate(pixel_hashes):
            if benchmark_ids[i] in self.ids:
                found[i] = f"{self.name} holds this row of the set by its id"
            elif not self.pixels.isdisjoint(pixels):
                found[i] = f"{self.name} holds this image"
            elif i in near:
                found[i] = f"{self.name} holds a similar image"
            elif not self.texts.isdisjoint(answer_keys[i]):
                found[i] = f"{self.name} holds this prompt and response"
            elif not pixels and prompt_keys[i] in self.prompts_without_image:
                found[i] = f"{self.name} holds this prompt"
        return found

    def near_images(self, image_hashes: list[list[int]], max_bits: int) -> set[int]:
        """Numbers of the pairs with an image whose hash is near one of the benchmark's."""
        owners = np.array([i for i, hashes in enumerate(image_hashes) for _ in hashes], np.int64)
        hashes = np.array([one for hashes in image_hashes for one in hashes], np.uint64)
        near: set[int] = set()
        for start in range(0, len(hashes) if len(self.perceptual) else 0, 4096):  # 4096 x benchmark images at a time
            distances = bit_distances(hashes[start : start + 4096], self.perceptual)
            near |= set(owners[start : start + 4096][distances.min(axis=1) <= max_bits].tolist())
        return near


def as_text(value: str | list) -> str:
    return value if isinstance(value, str) else text_of(value)


def as_list(value) -> list:
    return value if isinstance(value, list) else [value]


def is_list_of_responses(value) -> bool:
    """Whether a column holds several responses, rather than one as a string or as messages."""
    return isinstance(value, list) and not (value and isinstance(value[0], dict) and "role" in value[0])


def benchmark_row_ids(prefixes: list[str | None], indices: list[int]) -> list[str | None]:
    """The ids that a benchmark gives to rows of its source: VL-RewardBench's `RLAIF-V-14` is row 14 of RLAIF-V."""
    return [prefix and f"{prefix.rstrip('-')}-{i}" for prefix, i in zip(prefixes, indices, strict=True)]


def responses_of(row: dict) -> list[str]:
    """All responses of a benchmark's row, in whichever columns they are."""
    values = [row[column] for column in RESPONSE_COLUMNS if row[column]]
    return [as_text(text) for value in values for text in (value if is_list_of_responses(value) else [value])]
