"""Any data set in TRL's preference format: `trl-lib/rlaif-v`, `HuggingFaceH4/rlaif-v_formatted`, or one's own file."""

import math
from collections.abc import Iterator

from ...data.images import as_image_list
from ..pair import Unusable, build_pair
from ..public_rows import read_rows


LICENSE = "not stated"
read = read_rows


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """
    `prompt`, `chosen` and `rejected` as strings or messages, or `chosen` and `rejected` as whole conversations, with
    `prompt` besides or without; `images` (a list) or `image`, if any; `score_chosen` and `score_rejected`, if any.
    """
    if row.get("video"):
        raise Unusable("videos")
    if row.get("images") is None:
        images = [row["image"]] if row.get("image") else []
    else:
        images = as_image_list(row["images"])
        if None in images:
            raise Unusable("one of the images is null")
    scores = {key: row.get(key) for key in ("score_chosen", "score_rejected")}
    if not all(math.isfinite(score) for score in scores.values() if isinstance(score, float)):
        raise Unusable("a score is not a finite number")
    sides = row.get("prompt"), row["chosen"], row["rejected"]
    yield build_pair(*sides, images, origin=row.get("id"), **scores)
