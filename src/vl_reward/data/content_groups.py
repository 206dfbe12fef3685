"""Rows that have an image or a prompt in common, which no split may part."""


def group_by_content(contents: list[set]) -> list[int]:
    """
    The group of each pair: pairs that have an image or, without images, a prompt in common are in one group, directly
    or through others. A group is named by its first pair.
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
