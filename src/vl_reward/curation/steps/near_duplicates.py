"""Pairs changed a little on the way from one set to another: blanks, a word of an answer, an image compressed anew."""

from collections import defaultdict
from collections.abc import Callable
from functools import cache

import numpy as np
from datasketch import MinHashLSH
from tqdm import tqdm

from .text_similarity import NUM_PERM, as_minhash, jaccard


class SimilarResponses:
    """
    Responses to one prompt, each two with those like them. MinHash finds candidates, and each is then compared exactly,
    chosen with chosen and rejected with rejected.

    Args:
        min_similarity (`float`):
            Least Jaccard similarity of the shingles of either response.
        signatures (`Callable`):
            Gives the [`signature`] of a pair's responses.
        shingle_sets (`Callable`):
            Gives the shingles of a pair's chosen and rejected response.
    """

    def __init__(
        self,
        min_similarity: float,
        signatures: Callable[[int], np.ndarray],
        shingle_sets: Callable[[int], tuple[set, set]],
    ):
        self.min_similarity, self.signatures, self.shingle_sets = min_similarity, signatures, shingle_sets
        self.index = MinHashLSH(num_perm=NUM_PERM, params=bands(min_similarity))
        self.similar: dict[tuple, list[tuple]] = {}
        self.example: dict[tuple, int] = {}

    def like(self, key: tuple, i: int) -> list[tuple]:
        """Keys of responses like those of pair `i`, and whether the other way round. A key is looked up once."""
        if key in self.similar:
            return self.similar[key]
        minhash, parts = as_minhash(self.signatures(i)), None
        self.similar[key], self.example[key] = [(key, False)], i
        for other in sorted(self.index.query(minhash)):
            chosen, rejected = parts = parts or self.shingle_sets(i)
            others = self.shingle_sets(self.example[other])
            for reverse in (False, True):
                one, two = reversed(others) if reverse else others
                if min(jaccard(chosen, one), jaccard(rejected, two)) >= self.min_similarity:
                    self.similar[key].append((other, reverse))
                    self.similar[other].append((key, reverse))
        self.index.insert(key, minhash, check_duplication=False)
        return self.similar[key]


@cache
def bands(min_similarity: float) -> tuple[int, int]:
    """
    Bands of the index, and rows of each. They are for the square of the similarity, since two pairs of responses may
    together be less alike than either response is; and for recall: a candidate too many costs one comparison.
    """
    index = MinHashLSH(threshold=min_similarity**2, num_perm=NUM_PERM, weights=(0.1, 0.9))
    return index.b, index.r


def near_duplicates(
    prompts: list[int],
    responses: list[tuple],
    signatures: Callable[[int], np.ndarray],
    image_hashes: list[list[int]],
    shingle_sets: Callable[[int], tuple[set, set]],
    min_similarity: float,
    max_hamming_distance: int,
    same_pictures: Callable[[int, list[int]], list[int]],
) -> tuple[dict[int, int], dict[int, int]]:
    """
    Pairs like an earlier one: their prompts have the same words, their responses nearly the same, and each image is
    like its counterpart.

    Args:
        prompts (`list[int]`):
            [`words_key`] of each pair's prompt. One word may make it another question.
        responses (`list[tuple]`):
            Hashes of chosen and rejected response.
        signatures (`Callable`):
            Gives the [`signature`] of a pair's responses.
        image_hashes (`list[list[int]]`):
            [`perceptual_hash`] of each image of each pair.
        shingle_sets (`Callable`):
            Gives the [`shingles`] of a pair's chosen and rejected response.
        min_similarity (`float`):
            Least Jaccard similarity of each response.
        max_hamming_distance (`int`):
            Bits in which the hashes of two images may differ.
        same_pictures (`Callable`):
            From a pair and others with like hashes to those whose images do not differ in what may be asked.

    Returns:
        `tuple[dict[int, int], dict[int, int]]`: duplicates, and contradictions (alike with chosen and rejected
        exchanged), each with the earlier pair. Both pairs of a contradiction have to go.
    """
    groups: dict[int, list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        groups[prompt].append(i)
    duplicates, contradictions = {}, {}
    for rows in tqdm([rows for rows in groups.values() if len(rows) > 1], desc="Near-duplicates"):
        similar = SimilarResponses(min_similarity, signatures, shingle_sets)
        members: dict[tuple, list[int]] = defaultdict(list)  # that stay, by responses and piece of the image's hash
        for i in rows:
            pieces = hash_pieces(image_hashes[i], max_hamming_distance)
            for key, reverse in similar.like(responses[i], i):
                near = {j for piece in pieces for j in members.get((key, piece), ())}
                near = sorted(j for j in near if alike(image_hashes[i], image_hashes[j], max_hamming_distance))
                match = min(same_pictures(i, near), default=None)
                if match is not None:
                    (contradictions if reverse else duplicates)[i] = match
            if i not in duplicates:
                for piece in pieces:
                    members[responses[i], piece].append(i)
    return duplicates, contradictions


def hash_pieces(hashes: list[int], max_hamming_distance: int) -> list[tuple[int, int, int]]:
    """
    The first image's hash in `max_hamming_distance + 1` pieces, each with its place and the number of images. Hashes
    within that distance have one of them in common, so that few have to be compared.
    """
    if not hashes:
        return [(0, 0, 0)]
    ends = [64 * number // (max_hamming_distance + 1) for number in range(max_hamming_distance + 2)]
    return [
        (len(hashes), start, hashes[0] >> start & (1 << end - start) - 1)
        for start, end in zip(ends[:-1], ends[1:], strict=True)
    ]


def alike(hashes: list[int], others: list[int], max_hamming_distance: int) -> bool:
    """Whether two lists of images are equally long, and each image like its counterpart."""
    return len(hashes) == len(others) and all(
        (one ^ two).bit_count() <= max_hamming_distance for one, two in zip(hashes, others, strict=True)
    )
