"""Rows that have an image or a prompt in common, which no split may part."""

import hashlib
from collections import defaultdict

from .messages import text_of


HELD_OUT = 0.02  # of the rows, where a set has no test split; our choice


def group_by_content(contents: list[set]) -> list[int]:
    """
    The group of each pair. Pairs that have something in common, directly or through others, are in one group.

    Args:
        contents (`list[set]`):
            Of each pair, its images or, without images, its prompt.

    Returns:
        `list[int]`: the number of the first pair of each pair's group.
    """
    parents = list(range(len(contents)))

    def root(i: int) -> int:
        while parents[i] != i:
            parents[i] = i = parents[parents[i]]
        return i

    first: dict = {}
    for i, content in enumerate(contents):
        for item in content:
            one, two = sorted((root(first.setdefault(item, i)), root(i)))
            parents[two] = one
    return [root(i) for i in range(len(contents))]


def contents_of(row: dict) -> set[str]:
    """Hashes of a row's images and videos, or of its prompt where it has none."""
    files = [*row["images"]]
    for video in row.get("videos") or ():
        files += video["frames"] or [video]
    if files:
        sources = [file["bytes"] if file["bytes"] is not None else file["path"].encode() for file in files]
    else:
        asked = row["prompt"] if row.get("prompt") is not None else row["chosen"][:1]
        sources = [text_of(asked).encode()]
    return {hashlib.sha256(source).hexdigest() for source in sources}


def draw_groups(contents: list[set[str]]) -> set[int]:
    """Rows of groups that share contents, drawn by what they show alone: [`HELD_OUT`] of all rows, or one group."""
    groups, names = defaultdict(list), {}
    for i, group in enumerate(group_by_content(contents)):
        groups[group].append(i)
        names[group] = min(names.get(group, "g"), *contents[i])
    order = sorted(groups, key=names.__getitem__)
    drawn: set[int] = set()
    for group in order:
        if len(drawn) + len(groups[group]) <= HELD_OUT * len(contents):
            drawn.update(groups[group])
    return drawn or set(groups[min(order, key=lambda group: len(groups[group]))])
