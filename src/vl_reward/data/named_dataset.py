"""The dataset that a recipe's `dataset_name` names, wherever and in whatever form it is."""

import logging
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from datasets import (
    Dataset,
    DatasetDict,
    Features,
    Image,
    LargeList,
    List,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)

from ..arguments.dataset_arguments import COLUMNS, check_columns
from .content_groups import HELD_OUT, contents_of, draw_groups
from .images import as_image_list
from .json_rows import ROLE_OF, as_dataset, located, parse_json_rows, read_or_marked_row, read_text, renamed
from .splits import in_shares, with_images
from .videos.stored_videos import as_text, undecoded_videos, video_as_json


logger = logging.getLogger(__name__)

SUFFIXES = (".jsonl", ".json", ".parquet")
TEXT_MESSAGES = List({"role": Value("string"), "content": Value("string")})


class NamedDataset:
    """
    Rows in TRL's vision-preference format, or prompts in its form. Images and videos are not decoded. Where rows of a
    JSON file cannot be read, there is a column `unreadable` with the reason.

    Args:
        name (`str`):
            A folder that `save_to_disk` wrote; a JSONL, JSON or parquet file, or a folder with one; or an id on the
            hub. Relative image paths in a file begin at its folder.
        config (`str`, *optional*):
            The configuration of a dataset on the hub.
        columns (`dict[str, str]`, *optional*):
            The dataset's own names, by those of [`COLUMNS`]. One image alone becomes a list, under `images`, too. A
            column of the dataset that has one of these names by itself is left out, with a warning.
        images_only (`bool`, *optional*, defaults to `False`):
            Whether whoever uses the rows does not see their `videos`. A set with videos is refused then.

    Raises:
        ValueError: For a line that is not JSON, by its number; for a folder that holds no dataset, or several files;
            for `columns` that names what is not there; and for videos that would be lost.

    Example:
    ```python
    >>> pairs = NamedDataset("pairs.jsonl")
    >>> train, test = pairs.train_and_test("train", "test")
    >>> prompts = NamedDataset("AI4Math/MathVista", columns={"prompt": "query", "images": "decoded_image"})
    ```
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        columns: dict[str, str] | None = None,
        images_only: bool = False,
    ):
        self.name, path = name, Path(name).expanduser()
        self.columns = columns or {}
        check_columns(self.columns)
        if path.is_dir() and not any((path / mark).exists() for mark in ("state.json", "dataset_dict.json")):
            files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if len(files) != 1:
                raise ValueError(f"`dataset_name: {name}` holds {len(files)} JSONL, JSON or parquet files. Name one.")
            (path,) = files
        self.path = path
        if path.is_file() and path.suffix not in SUFFIXES:
            raise ValueError(
                f"`dataset_name: {name}` is a file that ends in {path.suffix!r}, and {', '.join(SUFFIXES)} are read. "
                "Write it as one of them: `datasets.Dataset.from_csv(...).to_parquet(...)`, say."
            )
        if path.suffix in SUFFIXES and not path.exists():
            raise FileNotFoundError(f"`dataset_name: {name}` does not exist.")
        splits = {"": self.read_json()} if self.is_json else self.read_tables(config)
        for rows in splits.values():
            if not {"prompt", "chosen"} & set(rows.column_names):
                raise ValueError(
                    f"`dataset_name: {name}` has the columns {', '.join(rows.column_names)}, and a prompt is in none "
                    "that is known. Say which: `columns: {prompt: question, images: image}`, say."
                )
        self.splits = DatasetDict({key: undecoded(split, path.parent) for key, split in splits.items()})
        for rows in self.splits.values() if images_only else ():
            if "videos" in rows.column_names and (n := sum(map(bool, rows["videos"]))):
                raise ValueError(
                    f"`dataset_name: {name}` has videos in {n:,} of {len(rows):,} rows, and this step reads images "
                    "alone, so they would be lost. Take the rows or the column out, or give frames as images."
                )

    @property
    def is_json(self) -> bool:
        """Whether the rows are in a JSON or JSONL file."""
        return self.path.suffix in (".jsonl", ".json") and self.path.is_file()

    def read_json(self) -> Dataset:
        """All rows of a JSON file, those that cannot be read with the reason under `unreadable`."""
        rows = self.json_rows()
        replaced = self.replaced_by_columns(dict.fromkeys(key for row in rows for key in row))
        rows = [renamed(row, self.columns, replaced) for row in rows]
        return as_dataset([read_or_marked_row(self.path, *row) for row in enumerate(rows)], self.name)

    def json_rows(self) -> list[dict]:
        """The objects of a JSON file, as they stand in it."""
        return parse_json_rows(read_text(self.path), self.name)

    def objects(self, name: str) -> Iterator[dict]:
        """
        The rows of the split `name` as objects that JSON can hold. Those of a JSON file are as they stand in it. Those
        of a table have the columns of [`COLUMNS`], and image bytes as data URLs.
        """
        if self.is_json:
            yield from self.json_rows()
            return
        rows = self.split(name)
        for row in rows.select_columns([column for column in COLUMNS if column in rows.column_names]):
            videos = {"videos": list(map(video_as_json, row["videos"]))} if "videos" in row else {}
            yield row | {"images": [as_text(image, "image") for image in row["images"]]} | videos

    def read_tables(self, config: str | None) -> dict[str, Dataset]:
        """The splits of what is no JSON file, by name, `""` for rows without. `config` is the hub's name for a part."""
        if self.path.is_dir():
            tables = load_from_disk(str(self.path))
        elif self.path.suffix == ".parquet":
            tables = Dataset.from_parquet(str(self.path))
        else:
            tables = load_dataset(self.name, config)
        tables = {"": tables} if isinstance(tables, Dataset) else tables
        return {key: self.rename(table) for key, table in tables.items()}

    def replaced_by_columns(self, names: Iterable[str]) -> set[str]:
        """
        Names of the dataset's columns that are not read, since `columns` names others for them.

        Raises:
            ValueError: If `columns` names a column that the dataset does not have.
        """
        if missing := sorted(set(self.columns.values()) - set(names)):
            raise ValueError(
                f"`columns` names {', '.join(missing)}, and `dataset_name: {self.name}` has the columns "
                f"{', '.join(names)}. Name one of them."
            )
        alone = {name.removesuffix("s") for name in ("images", "videos") if name in self.columns}
        ours = {*self.columns, *alone}
        replaced = (ours & set(names)) - set(self.columns.values())
        if replaced:
            logger.warning(f"{self.name}: {', '.join(sorted(replaced))} are not read: `columns` names others for them.")
        return replaced

    def rename(self, rows: Dataset) -> Dataset:
        """The `rows` of a table under the names of [`COLUMNS`], plain strings as one turn each, as in a JSON file."""
        rows = rows.remove_columns(sorted(self.replaced_by_columns(rows.column_names)))
        names = {own: ours for ours, own in self.columns.items()}
        for kind in ("images", "videos"):
            if kind in self.columns and not isinstance(rows.features[self.columns[kind]], List | LargeList):
                names[self.columns[kind]] = kind.removesuffix("s")
        rows = rows.rename_columns(names)
        if "id" not in rows.column_names:
            rows = rows.add_column("id", list(map(str, range(len(rows)))))
        plain = {name: role for name, role in ROLE_OF.items() if is_text(rows.features.get(name))}
        if not plain:
            return rows
        turns = rows.select_columns([*plain]).map(
            lambda row: {name: one_turn(row[name], role) for name, role in plain.items()},
            features=Features(dict.fromkeys(plain, TEXT_MESSAGES)),
        )
        return concatenate_datasets([rows.remove_columns([*plain]), turns], axis=1)

    def keep_image_rows(self) -> None:
        """
        Leave out the rows of text, and say how many. A row with a part of a message that is not text stays, and one
        that cannot be read: they are refused later, by their names.

        Raises:
            ValueError: If no row is left.
        """
        for name, rows in self.splits.items():
            shown = rows.select_columns(
                [one for one in (*ROLE_OF, "images", "videos", "unreadable") if one in rows.column_names]
            )
            kept = in_shares(lambda i, shown=shown: has_images(shown[i]), len(rows), "Rows with images")
            self.splits[name] = rows.select([i for i, wanted in enumerate(kept) if wanted])
            if not all(kept):
                of = f"{name}: " if name else ""
                logger.warning(f"{self.name}: {of}{kept.count(False):,} of {len(rows):,} rows have no image: left out.")
        if not any(map(len, self.splits.values())):
            raise ValueError(
                f"`dataset_name: {self.name}` has no row with an image, and this step trains on images. Name the "
                "column that has them, as in `columns: {images: picture}`, or train on text with reward_stage2.py."
            )

    def split(self, name: str) -> Dataset:
        """
        The split `name`, or all rows where the set has none.

        Raises:
            ValueError: If there is no such split.
        """
        if "" in self.splits:
            return self.splits[""]
        if name not in self.splits:
            known = ", ".join(self.splits)
            raise ValueError(f"`dataset_name: {self.name}` has the splits {known}, and no {name}. Name one of them.")
        return self.splits[name]

    def train_and_test(self, train: str, test: str) -> tuple[Dataset, Dataset]:
        """
        The splits `train` and `test`. Where there is no test split, a share of the training rows is held out. It is
        drawn by their images or, without images, by their prompt: rows that have one in common, directly or through
        others, stay together.

        Where all rows have an image or a prompt in common, the last rows are held out, and that is said.

        Raises:
            ValueError: If there is one row only.
        """
        if test in self.splits:
            return self.split(train), self.split(test)
        rows = self.split(train)
        shown = rows.select_columns(
            [name for name in ("prompt", "chosen", "images", "videos") if name in rows.column_names]
        )
        held_out = draw_groups(in_shares(lambda i: contents_of(shown[i]), len(shown), "Images to hold out"))
        if len(rows) < 2:
            raise ValueError(
                f"`dataset_name: {self.name}` has no split {test}, and {len(rows)} rows to hold some out of."
            )
        if len(held_out) == len(rows):
            held_out = set(range(len(rows) - math.ceil(HELD_OUT * len(rows)), len(rows)))
            logger.warning(
                f"All rows of {self.name} share an image or a prompt: what is held out was seen in training in part, "
                "and the accuracy on it says little. Give the set a test split."
            )
        logger.warning(f"{self.name} has no split {test}: {len(held_out):,} of {len(rows):,} rows are held out for it.")
        return rows.select([i for i in range(len(rows)) if i not in held_out]), rows.select(sorted(held_out))


def is_text(feature: object) -> bool:
    """Whether a column of a table holds strings."""
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def one_turn(text: str | None, role: str) -> list[dict] | None:
    """A text as a conversation of one turn of `role`, `None` for none."""
    return None if text is None else [{"role": role, "content": text}]


def has_images(row: dict) -> bool:
    """Whether a row has an image, a video, a message with a part that is not text, or cannot be read."""
    if row["images"] or row.get("videos") or row.get("unreadable"):
        return True
    messages = [one for key in ROLE_OF if isinstance(row.get(key), list) for one in row[key]]
    contents = [one.get("content") for one in messages if isinstance(one, dict)]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    return any(isinstance(part, dict) and part.get("type", "text") != "text" for part in parts)


def undecoded(rows: Dataset, folder: Path) -> Dataset:
    """
    Rows with `images` as bytes and paths, relative ones made absolute; empty lists where there is no such column. So it
    is with `videos`, which stay away where there is no such column.
    """
    rows = undecoded_videos(rows, folder)
    for name in ("image", "images"):
        if isinstance(rows.features.get(name), Image):
            rows = rows.cast_column(name, Image(decode=False))
    if "images" not in rows.column_names and "image" in rows.column_names:
        rows = rows.map(
            lambda image: {"images": [] if image is None else [image]}, input_columns="image", remove_columns="image"
        )
    if "images" not in rows.column_names:
        rows = rows.add_column("images", [[] for _ in range(len(rows))])
    if not isinstance(rows.features["images"], List) or not isinstance(rows.features["images"].feature, Image):
        stored = Features({"images": List({"bytes": Value("binary"), "path": Value("string")})})
        images = rows.select_columns("images").map(  # alone: what is `Json` in other columns would be read anew
            lambda row: {"images": [located(image, folder) for image in as_image_list(row["images"])]}, features=stored
        )
        rows = concatenate_datasets([rows.remove_columns("images"), images], axis=1)
    return with_images(rows, decode=False)
