"""Pairs that are there more than once, and pairs that say the opposite of each other. Whole texts and pixels here;
`near_duplicates.py` has those that were changed a little."""

from collections import defaultdict


def contradictions(keys: list[tuple]) -> dict[int, str]:
    """
    Pairs of the same two responses in both orders: which one is better is not known, so all of them go.

    Args:
        keys (`list[tuple]`):
            Prompt, images, chosen and rejected response of each pair, as hashes.

    Returns:
        `dict[int, str]`: the reason for each pair to drop.
    """
    groups = defaultdict(list)
    for i, (prompt, images, chosen, rejected) in enumerate(keys):
        groups[prompt, images, frozenset((chosen, rejected))].append(i)
    reason = "the same responses are preferred the other way round"
    return {i: reason for rows in groups.values() if len({keys[i][2] for i in rows}) > 1 for i in rows}


def duplicates(keys: list[tuple]) -> dict[int, int]:
    """
    Pairs that an earlier one equals, with the number of the first. Arguments are those of [`contradictions`]. The first
    one stays, so sources named first in the mixture keep theirs.
    """
    first: dict[tuple, int] = {}
    return {i: first[key] for i, key in enumerate(keys) if first.setdefault(key, i) != i}
