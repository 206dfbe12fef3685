"""RLAIF-V (`openbmb/RLAIF-V-Dataset`): image pairs labelled by open models."""

from collections.abc import Iterator

from ..pair import build_pair
from ..public_rows import read_rows


LICENSE = "CC BY-NC 4.0"
read = read_rows


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """`ds_name`, `image`, `question`, `chosen`, `rejected`, `idx` and others. The question holds no `<image>`."""
    yield build_pair(row["question"], row["chosen"], row["rejected"], [row["image"]], origin=str(row.get("idx")))
