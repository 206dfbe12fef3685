"""Texts as they are compared whole: normalised, and hashed."""

import unicodedata

import xxhash

from .messages import without_marks


def normalize(text: str) -> str:
    """Lower case, one form of each character, single spaces, no `<image>` and no `<video>`."""
    return " ".join(without_marks(unicodedata.normalize("NFKC", text).casefold()).split())


def text_key(*texts: str) -> int:
    """A 63-bit hash of normalised texts, in their order: Arrow's integers are signed."""
    return xxhash.xxh64_intdigest("\0".join(map(normalize, texts)).encode("utf-8", "surrogatepass")) >> 1
