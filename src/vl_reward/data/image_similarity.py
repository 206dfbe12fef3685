"""Images as they are compared: decoded pixels exactly, and perceptual hashes by the bits in which they differ."""

import hashlib

import imagehash
import numpy as np
from PIL import Image


PLAIN_HASH = np.uint64(1 << 63)  # the perceptual hash of every image of one colour; black is one bit away


def pixel_hash(image: Image.Image) -> str:
    """A hash of size and pixels of a decoded image: another lossless file of it has the same."""
    return hashlib.sha256(repr(image.size).encode() + image.tobytes()).hexdigest()[:32]


def perceptual_hash(image: Image.Image) -> int:
    """
    The 64-bit pHash of an image. Resized or compressed anew, it changes by a few bits; of unrelated photographs, about
    half of the bits differ.
    """
    bits = imagehash.phash(image).hash.flatten()
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


def crops(image: Image.Image) -> list[Image.Image]:
    """The image, and its middle with 5 and 10 percent cut from every side, against which crops of it are compared."""
    images = [image]
    for fraction in (0.05, 0.1):
        x, y = round(image.width * fraction), round(image.height * fraction)
        if x and y:
            images.append(image.crop((x, y, image.width - x, image.height - y)))
    return images


def hamming_distances(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    Bits in which each hash differs from each other one.

    Args:
        hashes (`np.ndarray` of shape `(n,)`, `uint64`), others (`np.ndarray` of shape `(m,)`, `uint64`).

    Returns:
        `np.ndarray` of shape `(n, m)`.
    """
    return np.bitwise_count(hashes[:, None] ^ others[None, :])
