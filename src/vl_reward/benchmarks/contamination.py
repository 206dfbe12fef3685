"""The one rule by which a row that is trained on shares content with a row that tests."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..data.image_similarity import PLAIN_HASH, crops, hamming_distances, perceptual_hash, pixel_hash
from ..data.images import load_image
from ..data.text_keys import text_key
from .benchmark_images import BenchmarkImages


@dataclass
class RowContent:
    """
    What is compared of a row.

    Args:
        prompt_key (`int`):
            [`text_key`] of its prompt.
        answer_keys (`list[int]`):
            [`text_key`] of its prompt with each response.
        pixel_hashes (`list[str]`), perceptual_hashes (`list[int]`):
            [`pixel_hash`] and [`perceptual_hash`] of the images that could be read.
        has_image (`bool`):
            Whether it has an image, read or not.
    """

    prompt_key: int
    answer_keys: list[int]
    pixel_hashes: list[str]
    perceptual_hashes: list[int]
    has_image: bool

    @classmethod
    def of(cls, prompt: str, responses: list[str], images: list[Image.Image]) -> "RowContent":
        """What is compared of a row with these texts and these `images`, which are decoded."""
        answers = [text_key(prompt, response) for response in responses]
        hashes = list(map(pixel_hash, images)), list(map(perceptual_hash, images))
        return cls(text_key(prompt), answers, *hashes, bool(images))

    @classmethod
    def of_benchmark(
        cls, prompt: str, responses: list[str], images: list, folder: BenchmarkImages
    ) -> tuple["RowContent", int]:
        """
        What is compared of a benchmark's row. Crops of its images are hashed, too: there are few of them.

        Args:
            prompt (`str`), responses (`list[str]`):
                Its texts.
            images (`list`):
                Its images, as the public file names them.
            folder ([`BenchmarkImages`]):
                Finds them.

        Returns:
            `tuple[RowContent, int]`: and how many images are not on disk or cannot be decoded.
        """
        decoded, n_not_read = [], 0
        for image in images or ():
            try:
                decoded += [load_image(one) for one in folder.find(image)]
            except (OSError, ValueError):
                n_not_read += 1
        content = cls.of(prompt, responses, decoded)
        content.perceptual_hashes = [perceptual_hash(crop) for image in decoded for crop in crops(image)]
        content.has_image = bool(images)
        return content, n_not_read


class ContentIndex:
    """
    Tells which rows share content with others, all of a benchmark or all of a training set. Two rows do if they have

    - an image in common: equal pixels, or perceptual hashes that differ in few bits;
    - or the prompt and a response, whatever the case and the blanks;
    - or, where neither has an image, the prompt. "Describe this image." is asked of thousands.

    Args:
        contents (`Iterable[RowContent]`):
            The others.
    """

    def __init__(self, contents: Iterable[RowContent]):
        self.pixel_hashes, self.answer_keys, self.prompts_without_image = set(), set(), set()
        perceptual_hashes = set()
        for content in contents:
            self.pixel_hashes.update(content.pixel_hashes)
            self.answer_keys.update(content.answer_keys)
            perceptual_hashes.update(content.perceptual_hashes)
            if not content.has_image:
                self.prompts_without_image.add(content.prompt_key)
        self.perceptual_hashes = np.array(sorted(perceptual_hashes), np.uint64)

    def reasons(self, contents: list[RowContent], max_hamming_distance: int) -> list[str | None]:
        """
        What each row shares: `"image"`, `"similar image"`, `"prompt and response"`, `"prompt"` or `None`. Perceptual
        hashes of one image may differ in `max_hamming_distance` of 64 bits.
        """
        similar, reasons = self.with_similar_image(contents, max_hamming_distance), []
        for i, content in enumerate(contents):
            if not self.pixel_hashes.isdisjoint(content.pixel_hashes):
                reasons.append("image")
            elif i in similar:
                reasons.append("similar image")
            elif not self.answer_keys.isdisjoint(content.answer_keys):
                reasons.append("prompt and response")
            elif not content.has_image and content.prompt_key in self.prompts_without_image:
                reasons.append("prompt")
            else:
                reasons.append(None)
        return reasons

    def with_similar_image(self, contents: list[RowContent], max_hamming_distance: int) -> set[int]:
        """Numbers of the rows with an image whose perceptual hash is near one of the others'."""
        owners = np.array([i for i, content in enumerate(contents) for _ in content.perceptual_hashes], np.int64)
        hashes = np.array([one for content in contents for one in content.perceptual_hashes], np.uint64)
        # An image nearly of one colour is near to all that are: its hash tells nothing.
        told = np.bitwise_count(hashes ^ PLAIN_HASH) > max_hamming_distance
        owners, hashes = owners[told], hashes[told]
        others = self.perceptual_hashes
        others = others[np.bitwise_count(others ^ PLAIN_HASH) > max_hamming_distance]
        similar: set[int] = set()
        for start in range(0, len(hashes) if len(others) else 0, 4096):  # 4096 x others at a time
            distances = hamming_distances(hashes[start : start + 4096], others)
            similar |= set(owners[start : start + 4096][distances.min(axis=1) <= max_hamming_distance].tolist())
        return similar
