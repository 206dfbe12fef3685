"""Skywork-Reward-Preference-80K-v0.2 (`Skywork/Skywork-Reward-Preference-80K-v0.2`): pairs of text."""

from collections.abc import Iterator

from ..pair import build_pair, common_turns
from ..public_rows import read_rows
from .trl_format import as_parts


LICENSE = "not stated on its card"
read = read_rows


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """`chosen` and `rejected` are whole conversations, and `source` is where they are from. Their common turns are the
    prompt."""
    prompt, chosen, rejected = common_turns(row["chosen"], row["rejected"])
    yield build_pair([as_parts(message) for message in prompt], chosen, rejected, origin=row.get("source"))
