"""The dataset that a recipe's `dataset_name` names, wherever and in whatever form it is."""

import hashlib
import logging
from collections import defaultdict
from pathlib import Path

from datasets import Dataset, DatasetDict, Features, Image, List, Value, load_dataset, load_from_disk

from .content_groups import group_by_content
from .encoding import named_row
from .images import as_image_list
from .json_rows import parse_json_rows
from .messages import as_parts, read_messages, text_of
from .placeholders import place_images


logger = logging.getLogger(__name__)

ROLE_OF = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
SUFFIXES = (".jsonl", ".json", ".parquet")
HELD_OUT = 0.02  # of the rows, where a set has no test split; our choice


class NamedDataset:
    """
    Rows in TRL's vision-preference format, or prompts in its form. Images are not decoded.

    Args:
        name (`str`):
    XX in a file begin at its folder.
        config (`str`, *optional*):
            Of a dataset on the hub.

    Raises:
        ValueError: For a row that cannot be read, by its number, or a folder that holds no dataset, or several files.

    Example:
    ```python
    >>> pairs = NamedDataset("pairs.jsonl")
    >>> train, test = pairs.train_and_test("train", "test")
    ```
    """

    def __init__(self, name: str, config: str | None = None):
        self.name, path = name, Path(name).expanduser()
        if path.is_dir() and not any((path / mark).exists() for mark in ("state.json", "dataset_dict.json")):
            files = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES)
            if len(files) != 1:
                raise ValueError(f"`dataset_name: {name}` holds {len(files)} JSONL, JSON or parquet files. Name one.")
            (path,) = files
        if path.is_dir():
            self.splits = load_from_disk(str(path))
        elif path.suffix == ".parquet" and path.exists():
            self.splits = Dataset.from_parquet(str(path))
        elif path.suffix in SUFFIXES:
            if not path.exists():
                raise FileNotFoundError(f"`dataset_name: {name}` does not exist.")
            text = path.read_text(encoding="utf-8-sig")
            self.splits = Dataset.from_list([self.read(path, *row) for row in enumerate(parse_json_rows(text, name))])
        else:
            self.splits = load_dataset(name, config)
        if isinstance(self.splits, Dataset):
            self.splits = DatasetDict({"": self.splits})
        self.splits = DatasetDict({key: undecoded(split, path.parent) for key, split in self.splits.items()})

    def read(self, path: Path, number: int, row: dict) -> dict:
        """A row whose messages all have the same form, as Arrow needs, with its images as a list."""
        with named_row(f"{path}, row {number if row.get('id') is None else row['id']}"):
            image, images = row.get("image"), row.get("images")
            images = [image] if images is None and image is not None else as_image_list(images)
            name = str(number if row.get("id") is None else row["id"])
            read = {**row, "id": name, "images": [located(image, path.parent) for image in images]}
            read.pop("image", None)
            asked_by = ("prompt",) if row.get("prompt") is not None else ("chosen", "rejected")  # whole conversations
            for column, role in ROLE_OF.items():
                if row.get(column) is not None:
                    messages = read_messages(row[column], role)
                    if column in asked_by:
                        messages = place_images(messages, len(images))
                    read[column] = [{**message, "content": as_parts(message["content"])} for message in messages]
            return read

    def split(self, name: str) -> Dataset:
        """
        A split, or all rows where the set has none.

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
        Both splits. Where there is no test split, a share of the training rows, drawn by their images or, without
        images, by their prompt: rows that have one in common, directly or through others, stay together.

        Raises:
            ValueError: If all rows have an image or a prompt in common, so that none can be held out.
        """
        if test in self.splits:
            return self.split(train), self.split(test)
        rows = self.split(train)
        shown = rows.select_columns([name for name in ("prompt", "chosen", "images") if name in rows.column_names])
        held_out = draw_groups([contents_of(row) for row in shown])
        if not 0 < len(held_out) < len(rows):
            raise ValueError(
                f"`dataset_name: {self.name}` has no split {test}, and its {len(rows)} rows all share an image or a "
                "prompt, so none can be held out. Give it a test split."
            )
        logger.warning(f"{self.name} has no split {test}: {len(held_out):,} of {len(rows):,} rows are held out for it.")
        return rows.select([i for i in range(len(rows)) if i not in held_out]), rows.select(sorted(held_out))


def contents_of(row: dict) -> set[str]:
    """Hashes of a row's images, or of its prompt where it has none."""
    if row["images"]:
        sources = [image["bytes"] if image["bytes"] is not None else image["path"].encode() for image in row["images"]]
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


def undecoded(rows: Dataset, folder: Path) -> Dataset:
    """Rows with `images` as bytes and paths, relative ones made absolute; empty lists where there is no such column."""
    if isinstance(rows.features.get("image"), Image):
        rows = rows.cast_column("image", Image(decode=False))
    if "images" not in rows.column_names and "image" in rows.column_names:
        rows = rows.map(lambda image: {"images": [image]}, input_columns="image", remove_columns="image")
    if "images" not in rows.column_names:
        rows = rows.add_column("images", [[] for _ in range(len(rows))])
    if not isinstance(rows.features["images"], List) or not isinstance(rows.features["images"].feature, Image):
        stored = Features(rows.features | {"images": List({"bytes": Value("binary"), "path": Value("string")})})
        rows = rows.map(
            lambda images: {"images": [located(image, folder) for image in images or []]},
            input_columns="images",
            features=stored,
        )
    return rows.cast_column("images", List(Image(decode=False)))


def located(image: str | bytes | dict, folder: Path) -> dict:
    image = {"bytes": image, "path": None} if isinstance(image, bytes) else image
    image = {"bytes": None, "path": image} if isinstance(image, str) else image
    if image.get("bytes") is None and "://" not in image["path"] and not image["path"].startswith("data:"):
        image = {"bytes": None, "path": str((folder / image["path"]).resolve())}
    return {"bytes": image.get("bytes"), "path": image.get("path")}
