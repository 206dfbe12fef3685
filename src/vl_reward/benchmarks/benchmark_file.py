"""The public file of a benchmark: JSON, JSON lines or parquet on disk, or a dataset on the hub."""

from pathlib import Path

import pyarrow.parquet
from datasets import Image, Video, load_dataset

from ..data.json_rows import parse_json_rows, read_text


def read_rows(source: str, columns: tuple[str, ...], optional: tuple[str, ...] = (), split: str = "test") -> list[dict]:
    """
    Read the columns that a benchmark needs. Images and videos are not decoded, and other columns are left where they
    are.

    Args:
        source (`str`):
            A file in JSON, JSON lines or parquet, or a dataset's hub id.
        columns (`tuple[str, ...]`):
            Columns that every row must have.
        optional (`tuple[str, ...]`, *optional*, defaults to `()`):
            Columns that may be missing; their value is `None` then.
        split (`str`, *optional*, defaults to `"test"`):
            The split on the hub. A file has none.

    Returns:
        `list[dict]`: one dictionary with the keys `columns + optional` per row, in the order of the file.

    Raises:
        FileNotFoundError: If `source` names a file that does not exist.
        ValueError: If there is no row, a column is missing, or a value in `columns` is null. The row is named.
    """
    suffix, there = Path(source).suffix, None
    if not Path(source).exists() and suffix in (".json", ".jsonl", ".parquet"):
        raise FileNotFoundError(f"`data_files: {source}` does not exist. Give the benchmark's file, or its hub id.")
    if not Path(source).exists():
        dataset = load_dataset(source, split=split)
        there = dataset.column_names
        dataset = dataset.select_columns([name for name in columns + optional if name in there])
        for name, feature in dataset.features.items():
            if isinstance(feature, Image | Video):
                dataset = dataset.cast_column(name, type(feature)(decode=False))
        rows = dataset.to_list()
    elif suffix == ".parquet":
        there = pyarrow.parquet.read_schema(source).names
        rows = pyarrow.parquet.read_table(source, columns=[c for c in columns + optional if c in there]).to_pylist()
    else:
        rows = parse_json_rows(read_text(source), source)
    if not rows:
        raise ValueError(f"{source} holds no row, so there is nothing to measure.")
    for i, row in enumerate(rows):
        if missing := [name for name in columns if row.get(name) is None]:
            raise ValueError(
                f"{source}, row {i} has no {missing}; it has {sorted(there or row)}. Give the file in the benchmark's "
                f"public schema: {', '.join(columns)}."
            )
    return [{name: row.get(name) for name in columns + optional} for row in rows]


def check_texts(source: str, i: int, texts: object, least: int) -> list[str]:
    """
    Check the responses of a row.

    Args:
        source (`str`), i (`int`):
            The file and the row, for the message.
        texts (`object`):
            The responses.
        least (`int`):
            How many there have to be.

    Returns:
        `list[str]`: the responses.

    Raises:
        ValueError: If they are not a list of at least `least` strings. The row is named.
    """
    if not isinstance(texts, list) or len(texts) < least or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{source}, row {i}: {least} or more responses are needed, as strings, and it has {texts!r}.")
    return texts
