"""Which pairs of each source make up the set: balance, caps, weights, held-out pairs and order, all drawn by seed."""

import hashlib
from collections import Counter, defaultdict


def draw(seed: int, id: str) -> int:
    """A number that looks random and depends on seed and id alone, so that the order of rows changes nothing."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{id}".encode()).digest()[:8], "big")


def over_share(ids: list[str], sides: list[bool | None], max_share: float, seed: int) -> set[int]:
    """
    Pairs to leave out so that neither side holds more than `max_share` of those that have one. Where all are on one
    side, none is left out.

    Args:
        ids (`list[str]`):
            Ids of the pairs.
        sides (`list[bool]`):
            The side of each pair, such as "the chosen response was shown first"; `None` does not count.
        max_share (`float`):
            0.5 to 1.
        seed (`int`):
            Which pairs of the larger side go.

    Returns:
        `set[int]`: their numbers.
    """
    counts = Counter(side for side in sides if side is not None)
    if len(counts) < 2:  # a source whose every pair has the same side cannot be balanced by leaving pairs out
        return set()
    (larger, n_larger), (_, n_smaller) = counts.most_common()
    excess = n_larger - int(n_smaller * max_share / (1 - max_share) + 1e-9) if max_share < 1 else 0
    rows = sorted((draw(seed, id), i) for i, (id, side) in enumerate(zip(ids, sides, strict=True)) if side is larger)
    return {i for _, i in rows[: max(0, excess)]}


def over_cap(
    ids: list[str], sources: list[str], caps: dict[str, int | None], weights: dict[str, float | None], seed: int
) -> dict[int, str]:
    """
    Pairs to leave out so that each source is within its cap, and the sources relate as their weights do. No pair is
    repeated: the source that is scarcest for its weight stays whole.

    Args:
        ids (`list[str]`), sources (`list[str]`):
            Id and source of each pair.
        caps (`dict[str, int | None]`), weights (`dict[str, float | None]`):
            The most pairs, and the weight, of each source. `None` for no cap and no weights.
        seed (`int`):
            Which pairs go.

    Returns:
        `dict[int, str]`: the reason for each pair to leave out, by its number.

    Raises:
        ValueError: If some sources have a weight and others none.
    """
    if len({weight is None for weight in weights.values()}) > 1:
        raise ValueError(f"sources: the weights are {weights}. Give every source a weight, or none.")
    rows = defaultdict(list)
    for i, (id, source) in enumerate(zip(ids, sources, strict=True)):
        rows[source].append((draw(seed, id), i))
    sizes = {source: len(rows[source][:cap]) for source, cap in caps.items()}
    limits = dict(sizes)
    if None not in weights.values():
        unit = min(size / weights[source] for source, size in sizes.items())
        limits = {source: min(size, int(unit * weights[source] + 1e-9)) for source, size in sizes.items()}
    reasons = {}
    for source, members in rows.items():
        limit = "share by weight" if limits[source] < sizes[source] else "max_pairs"
        reasons |= {i: f"over the source's {limit}" for _, i in sorted(members)[limits[source] :]}
    return reasons


def split_and_order(ids: list[str], groups: list[int], test_fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """
    Training and held-out pairs in random order, those of a group next to each other and in one of the two only.

    Args:
        ids (`list[str]`):
            Ids of the pairs.
        groups (`list[int]`):
            What [`group_by_content`] gives.
        test_fraction (`float`):
            Fraction of the groups to hold out.
        seed (`int`):
            Which ones, and the order.

    Returns:
        `tuple[list[int], list[int]]`: the numbers of the training pairs and of the held-out ones.
    """
    name: dict[int, str] = {}
    for id, group in zip(ids, groups, strict=True):
        name[group] = min(name.get(group, id), id)
    number = {group: draw(seed, f"group {id}") for group, id in name.items()}
    order = sorted(range(len(ids)), key=lambda i: (number[groups[i]], name[groups[i]], draw(seed, ids[i]), i))
    held_out = {group for group, value in number.items() if value < test_fraction * 2**64}
    return [i for i in order if groups[i] not in held_out], [i for i in order if groups[i] in held_out]
