"""Skywork-Reward-Preference-80K-v0.2 (`Skywork/Skywork-Reward-Preference-80K-v0.2`): pairs of text."""

from collections.abc import Iterator

from ..pair import build_pair
from ..public_rows import read_rows


LICENSE = "not stated on its card"
read = read_rows


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """`chosen` and `rejected` are whole conversations, and `source` is where they are from. Their common turns are the
    prompt."""
    yield build_pair(None, row["chosen"], row["rejected"], origin=row.get("source"))
