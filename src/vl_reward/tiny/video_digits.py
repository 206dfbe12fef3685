"""Digits that are shown one after the other, as videos: only the order of frames says which came first."""

import itertools
import random
from collections.abc import Iterator

from datasets import Features

from ..data.videos.stored_videos import STORED
from .digits import QUESTIONS, draw, load_scans, respond, solve
from .preferences import PREFERENCE_FEATURES, as_png, preference_row


KINDS = ("first", "second", "more")  # questions whose answer is another one where the digits change places
LENGTHS = (2, 4)  # frames that a digit stays; two frames are one step in time of the vision tower
VIDEO_FEATURES = Features({**PREFERENCE_FEATURES, "videos": STORED})


def compose_videos(split: str, seed: int) -> Iterator[dict]:
    """
    Compose questions about two different digits without end, reproducibly. Each is on screen for two or four frames.

    Yields:
        `dict` with the keys of [`compose`]; `"images"` are the frames, in their order.
    """
    scans, rng = load_scans(split), random.Random(f"video-{split}-{seed}")
    while True:
        kind, (first, second) = rng.choice(KINDS), rng.sample(range(10), 2)
        cells = [draw(rng.choice(scans[digit]), rng).convert("RGB") for digit in (first, second)]
        frames = [cell for cell in cells for _ in range(rng.choice(LENGTHS))]
        yield {
            "kind": kind,
            "first": first,
            "second": second,
            "question": QUESTIONS[kind],
            "answer": solve(kind, first, second),
            "images": frames,
        }


def order_pairs(rows: Iterator[dict], n: int, shuffled: bool = False, seed: int = 0) -> list[dict]:
    """
    Pairs of a correct response and the one that would be correct if the digits came in the other order: both are
    equally likely as texts, and both name the digits that are there.

    Args:
        rows (`Iterator[dict]`):
            What [`compose_videos`] gives.
        n (`int`):
            How many pairs.
        shuffled (`bool`, *optional*, defaults to `False`):
            Whether the frames, which are under `images`, are shuffled. Else they are in their order.
        seed (`int`, *optional*, defaults to `0`):
            Decides how they are shuffled.
    """
    rng, pairs = random.Random(f"shuffle-{seed}"), []
    for row in itertools.islice(rows, n):
        first, second = row["second"], row["first"]
        pair = preference_row(row, "video/order", respond(first, second, solve(row["kind"], first, second)))
        frames = rng.sample(row["images"], len(row["images"])) if shuffled else row["images"]
        pairs.append(pair | {"images": frames})
    return pairs


def as_videos(pairs: list[dict]) -> list[dict]:
    """Rows whose `images` are the frames of one video, as rows with that video in their `videos`."""
    return [
        {**row, "images": [], "videos": [{"path": None, "bytes": None, "frames": row["images"], "fps": None}]}
        for row in as_png(pairs)
    ]
