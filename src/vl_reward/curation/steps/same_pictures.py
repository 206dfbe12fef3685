"""Which pairs show the same pictures, where their perceptual hashes are alike."""

from functools import lru_cache

import numpy as np
from datasets import Dataset
from PIL import Image

from ...data.image_similarity import MAX_THUMBNAIL_CHANGE, same_picture, thumbnail_changes
from ...data.images import load_image


MAX_DECODED = 16  # pairs that one is compared with by all of their pixels, the likest by their thumbnails


class SamePictures:
    """
    Compares the images of pairs: thumbnails first, and then all pixels of those that are like by them.

    Args:
        pairs (`Dataset`):
            Pairs with `images`, undecoded.
        inspected (`Dataset`):
            What [`PairInspection`] says of each.
    """

    def __init__(self, pairs: Dataset, inspected: Dataset):
        self.images, self.small = pairs.select_columns("images"), inspected.select_columns("thumbnails")
        self.thumbnails = lru_cache(maxsize=2**17)(self._thumbnails)
        self.decoded = lru_cache(maxsize=4 * MAX_DECODED)(self._decoded)

    def _thumbnails(self, i: int) -> np.ndarray:
        """Those of all images of a pair, one after the other."""
        return np.frombuffer(b"".join(self.small[i]["thumbnails"]), np.uint8)

    def _decoded(self, i: int) -> list[Image.Image]:
        return list(map(load_image, self.images[i]["images"]))

    def __call__(self, i: int, others: list[int]) -> list[int]:
        """Those of the other pairs, with as many images, whose images are the same pictures as those of pair `i`."""
        own = self.thumbnails(i)
        if not len(own) or not others:
            return others
        changes = thumbnail_changes(own, np.stack([self.thumbnails(j) for j in others]))
        likest = [others[k] for k in np.argsort(changes, kind="stable") if changes[k] <= MAX_THUMBNAIL_CHANGE]
        return [j for j in likest[:MAX_DECODED] if all(map(same_picture, self.decoded(i), self.decoded(j)))]
