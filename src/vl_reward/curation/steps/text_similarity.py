"""Texts as they are compared by their words: hashed, and as MinHash signatures of their shingles."""

import re

import numpy as np
import xxhash
from datasketch import LeanMinHash, MinHash

from ...data.text_keys import normalize, text_key


NUM_PERM = 128
SHINGLE_WORDS = 3
NUMBER = re.compile(r"[-−]?\d+(?:[.,]\d+)*")
# Words, and signs that change what is meant: "3 + 5" asks another question than "3 - 5". Punctuation does not.
WORD = re.compile(r"\w+|[-−+*/=<>^%~$&|×÷≠≤≥°]")


def words_key(text: str) -> int:
    """A 63-bit hash of a text's words, whatever the punctuation between them."""
    return text_key(" ".join(WORD.findall(normalize(text))) or text)


def shingles(text: str) -> set[str]:
    """
    Every three neighbouring words of a normalised text, without punctuation. Each begins with the numbers of the whole
    text: two answers with different numbers have no shingle in common, however alike they are.
    """
    words = WORD.findall(text := normalize(text))
    numbers = " ".join(NUMBER.findall(text))
    n = max(1, len(words) - SHINGLE_WORDS + 1)
    return {f"{numbers}|{' '.join(words[i : i + SHINGLE_WORDS]) or text}" for i in range(n)}


def jaccard(one: set[str], two: set[str]) -> float:
    """Size of the intersection over size of the union."""
    return len(one & two) / len(one | two)


EMPTY = MinHash(NUM_PERM, hashfunc=xxhash.xxh32_intdigest)  # copied: drawing the permutations takes the most time


def signature(*texts: str) -> np.ndarray:
    """
    The MinHash of the shingles of all texts, whatever their order: a pair and its reverse have the same.

    Returns:
        `np.ndarray` of shape `(128,)`, `uint32`.
    """
    minhash = EMPTY.copy()
    minhash.update_batch([shingle.encode("utf-8", "surrogatepass") for shingle in set().union(*map(shingles, texts))])
    return minhash.hashvalues


def as_minhash(signature: np.ndarray) -> LeanMinHash:
    """A [`signature`] as datasketch's index takes it."""
    return LeanMinHash(seed=EMPTY.seed, hashvalues=signature, scheme=EMPTY.scheme)
