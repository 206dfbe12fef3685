"""MMPR v1 to v1.2 (`OpenGVLab/MMPR`): a `meta.json` that names JSONL files and the folders of their images."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from ...data.json_rows import read_text
from ..pair import Unusable, build_pair
from ..public_rows import json_lines, read_rows


LICENSE = "MIT"


def parse_meta(text: str) -> dict:
    """A `meta.json`, also with the comma after the last entry that the public samples have."""
    without = re.sub(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', lambda match: match.group(1) or "", text)
    return json.loads(without)


def annotation_files(path: str | Path) -> dict[Path, Path]:
    """
    The JSONL files of a `meta.json`, each with the folder of its images. Its paths begin at the folder that holds the
    release, or at the one above. `repeat_time` is not used: how often a source counts is the mixture's matter.

    Raises:
        FileNotFoundError: If a file is at neither place.
    """
    path, files = Path(path), {}
    for name, entry in parse_meta(read_text(path)).items():
        bases = [base for base in (path.parent, path.parent.parent) if (base / entry["annotation"]).exists()]
        if not bases:
            raise FileNotFoundError(
                f"{path} names {entry['annotation']} for {name}, which is neither in {path.parent} nor above it. "
                "Unpack annotations.zip there."
            )
        files[bases[0] / entry["annotation"]] = bases[0] / entry["root"]
    return files


def read(path: Path, root: str | None, cache: str) -> list[tuple[Dataset, str | None]]:
    """The rows of every file that a `meta.json` names. Another file holds rows itself."""
    if path.suffix != ".json":
        return read_rows(path, root, cache)
    return [(json_lines(file, cache), root or str(images)) for file, images in annotation_files(path).items()]


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """`question`, `chosen`, `rejected`, and `image`: a path, a list of paths, or absent for text."""
    if row.get("video"):
        raise Unusable("video")
    image = row.get("image") or []
    images = [image] if isinstance(image, str) else image
    yield build_pair(row["question"], row["chosen"], row["rejected"], images, origin=row.get("id"))
