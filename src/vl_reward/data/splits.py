"""Datasets that are too large to be copied: a split, the share of a process, images as they are stored."""

from collections.abc import Callable
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, DatasetDict, DatasetInfo, Features, Image, List, Value
from datasets.fingerprint import Hasher
from datasets.table import InMemoryTable, concat_tables
from tqdm import tqdm


def split_of(dataset: Dataset | DatasetDict, name: str, setting: str) -> Dataset:
    """
    A split, or the whole set where it has none, as `label_preferences.py` writes it.

    Args:
        dataset (`Dataset` or `DatasetDict`):
            The set.
        name (`str`):
            The split.
        setting (`str`):
            What names it in a YAML, for the message.

    Raises:
        ValueError: If there is no such split.
    """
    if isinstance(dataset, Dataset):
        return dataset
    if name not in dataset:
        raise ValueError(f"The set has the splits {', '.join(dataset)}, and `{setting}` is {name}. Name one of them.")
    return dataset[name]


def in_shares(compute: Callable[[int], Any], n: int, told: str) -> list:
    """
    What `compute` says of each of `n` rows, for which it reads them. Each process reads its share, the rows from one to
    another, and all get the whole answer, which should be small. All of them have to call this.

    Args:
        compute (`Callable`):
            From a row's number to what is asked of it.
        n (`int`):
            The number of rows.
        told (`str`):
            What a progress bar says, where this takes more than some seconds.
    """
    state = PartialState()
    start, end = (n * (state.process_index + offset) // state.num_processes for offset in (0, 1))
    numbers = tqdm(range(start, end), desc=told, delay=5, disable=not state.is_main_process)
    return gather_object([compute(i) for i in numbers])


def with_images(rows: Dataset, decode: bool) -> Dataset:
    """
    The same rows, whose `images` come decoded if `decode` is true, and else as bytes and paths. `cast_column` would
    write all images of a list to disk once more, on each process, and nothing of them changes.
    """
    wanted, feature = List(Image(decode=decode)), rows.features["images"]
    if feature == wanted:
        return rows
    if feature not in (List(Image()), List(Image(decode=False))):
        return rows.cast_column("images", wanted)  # paths, say
    rows = rows.select_columns(rows.column_names)  # with an account of columns of its own
    rows.info.features["images"] = wanted
    return rows.select_columns(rows.column_names)  # with the same account in the table


def with_numbers(rows: Dataset, **columns: list[float]) -> Dataset:
    """
    The same rows with more `columns`, one number a row each. `add_column` would write all images to disk once more
    where the rows are selected ones of a set: here the numbers are put where the rows are in it.
    """
    places = np.arange(len(rows)) if rows._indices is None else rows._indices.column(0).to_numpy()
    added = {}
    for name, values in columns.items():
        added[name] = np.full(len(rows.data), np.nan)
        added[name][places] = values
    table = concat_tables([rows.data, InMemoryTable.from_pydict(added)], axis=1)
    features = Features({**rows.features, **dict.fromkeys(columns, Value("float64"))})
    fingerprint = Hasher.hash([rows._fingerprint, columns])
    return Dataset(table, DatasetInfo(features=features), indices_table=rows._indices, fingerprint=fingerprint)
