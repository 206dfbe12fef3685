"""Images as they are compared: decoded pixels exactly, and perceptual hashes by the bits in which they differ."""

import hashlib

import imagehash
import numpy as np
from PIL import Image, ImageFilter


THUMBNAIL = (16, 16)
# Our choice, for what a JPEG of quality 60 or another size of the same picture changes at most, where one letter of 10
# pixels that is another changes more. Values are 0 to 255.
MAX_THUMBNAIL_CHANGE = 24
MAX_CHANGES = {"Y": (1, 16), "Cb": (4, 24), "Cr": (4, 24)}  # of means over squares of 3 x 3, and of 9 x 9 for colours
MIN_SCALE = 0.66
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


def thumbnail(image: Image.Image) -> np.ndarray:
    """An array of shape `(768,)`, `uint8`: the mean colours of 16 x 16 parts of an image in RGB."""
    return np.asarray(image.resize(THUMBNAIL, Image.Resampling.BOX)).reshape(-1)


def thumbnail_changes(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The largest change of any part from a [`thumbnail`] to each of others, of shape `(n, 768)`: shape `(n,)`."""
    return np.abs(others.astype(np.int16) - one).max(axis=-1)


def same_picture(one: Image.Image, other: Image.Image) -> bool:
    """
    Whether two images in RGB are copies of one picture, compressed anew or somewhat larger or smaller. A perceptual
    hash knows neither colours nor small parts: here a digit, a colour or the height of a bar makes another picture.
    """
    small, large = sorted((one, other), key=lambda image: image.width * image.height)
    if min(small.width / large.width, small.height / large.height) < MIN_SCALE:
        return False
    if small.size != large.size:
        large = large.resize(small.size, Image.Resampling.LANCZOS)
    small, large = small.convert("YCbCr"), large.convert("YCbCr")
    for channel, (radius, most) in MAX_CHANGES.items():
        blurred = (image.getchannel(channel).filter(ImageFilter.BoxBlur(radius)) for image in (small, large))
        first, second = (np.asarray(image, np.int16) for image in blurred)
        if np.abs(first - second).max() > most:
            return False
    return True


def hamming_distances(hashes: np.ndarray, others: np.ndarray) -> np.ndarray:
    """
    Bits in which each hash differs from each other one.

    Args:
        hashes (`np.ndarray` of shape `(n,)`, `uint64`), others (`np.ndarray` of shape `(m,)`, `uint64`).

    Returns:
        `np.ndarray` of shape `(n, m)`.
    """
    return np.bitwise_count(hashes[:, None] ^ others[None, :])
