"""The rows of a public set as they are on disk or on the hub, images not decoded."""

import json
from pathlib import Path

from datasets import Dataset, Image, List, load_from_disk
from datasets.exceptions import DatasetGenerationError

from ..data.json_rows import encoding_of, read_text


def read_rows(path: Path, root: str | None, cache: str) -> list[tuple[Dataset, str | None]]:
    """
    The rows of a JSON, JSONL or parquet file, a folder of parquet files, or a dataset saved to disk (`DatasetDict`,
    too), with the folder of their images.

    Args:
        path (`Path`):
            The file or the folder.
        root (`str`, *optional*):
            The folder of the images. By default it is that of the file.
        cache (`str`):
            Where `datasets` puts its copy of a file.

    Returns:
        `list[tuple[Dataset, str]]`: one part. JSON rows are one string column, `text`.
    """
    root = root or str(path.parent if path.is_file() else path)
    if path.suffix in (".json", ".jsonl"):
        return [(json_lines(path, cache), root)]
    if path.suffix == ".parquet" or (path.is_dir() and list(path.glob("*.parquet"))):
        files = [str(path)] if path.is_file() else sorted(map(str, path.glob("*.parquet")))
        return [(Dataset.from_parquet(files, cache_dir=cache), root)]
    return [(load_from_disk(str(path)), root)]


def json_lines(path: Path, cache: str) -> Dataset:
    """
    JSON lines, or the objects of a JSON list, in the file `path`, as one string each: Arrow could not hold a key whose
    type varies. `cache` is for the copy of `datasets`.
    """
    encoding = encoding_of(path)
    with open(path, encoding=encoding, errors="replace") as file:
        start = file.read(1000).lstrip()[:1]
    if start == "[":
        return Dataset.from_dict({"text": [json.dumps(row) for row in json.loads(read_text(path))]})
    try:
        return Dataset.from_text(str(path), cache_dir=cache, encoding=encoding)
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, UnicodeDecodeError):
            read_text(path)  # says which line
        raise


def undecoded(dataset):
    """The dataset with its image columns as bytes or paths."""
    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = dataset.cast_column(name, Image(decode=False))
        elif isinstance(feature, List) and isinstance(feature.feature, Image):
            dataset = dataset.cast_column(name, List(Image(decode=False)))
    return dataset
