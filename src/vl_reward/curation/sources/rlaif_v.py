"""RLAIF-V (`openbmb/RLAIF-V-Dataset`): image pairs labelled by open models."""

from collections.abc import Iterator

from ..pair import build_pair


LICENSE = "CC BY-NC 4.0"


def pairs(row: dict) -> Iterator[dict]:
    """`ds_name`, `image`, `question`, `chosen`, `rejected`, `idx` and others. The question holds no `<image>`."""
    yield build_pair(row["question"], row["chosen"], row["rejected"], [row["image"]], origin=str(row.get("idx")))
