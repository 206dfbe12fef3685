"""Rows of a JSON or JSONL file, as people have them."""

import codecs
import json
from pathlib import Path

import pyarrow as pa
from datasets import Dataset, Features, Json, concatenate_datasets

from .encoding import named_row
from .images import as_image_list, data_url_bytes, shown
from .messages import as_parts, check_characters, read_messages
from .placeholders import extract_images, place_images
from .videos.stored_videos import stored_video
from .videos.video_source import as_video_list, videos_of


ROLE_OF = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}


def encoding_of(path: str | Path) -> str:
    """UTF-8, with a byte order mark or without, or UTF-16 where its mark says so."""
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE) else "utf-8-sig"


def read_text(path: str | Path) -> str:
    """
    The text of a file that people wrote, in the encoding that [`encoding_of`] finds.

    Raises:
        ValueError: For bytes of another encoding. The line is named.
    """
    try:
        return Path(path).read_text(encoding=encoding_of(path))
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(
            f"{path}, line {line} is not UTF-8: {error.reason}. Save the file as UTF-8: `iconv -f latin1 -t utf8`, say."
        ) from error


def parse_json_rows(text: str, name: str) -> list[dict]:
    """
    Rows of a JSON list, of an object that holds them under `rows` (the hub's dataset viewer nests each once more under
    `row`) or each under its id (MathVista's `testmini.json`), or of JSON lines, whatever the file's suffix says:
    `Dataset.to_json` writes lines into `.json` too.

    Args:
        text (`str`):
            What the file holds.
        name (`str`):
            What to call it in an error message.

    Raises:
        ValueError: For a line that is not JSON, by its number, or a row that is not an object.
    """
    try:
        value = json.loads(text)
        rows = value["rows"] if isinstance(value, dict) and "rows" in value else value
        if isinstance(rows, dict) and rows and all(map(is_row, rows.values())):
            rows = [{"id": key} | row for key, row in rows.items()]
        rows = rows if isinstance(rows, list) else [rows]
    except json.JSONDecodeError:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):  # `splitlines` would cut at U+2028 inside a text, too
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{name}, line {number} is not JSON ({error}). It may be torn: fetch or write the file again."
                ) from error
    rows = [row["row"] if isinstance(row, dict) and "row_idx" in row and "row" in row else row for row in rows]
    if wrong := [i for i, row in enumerate(rows) if not isinstance(row, dict)]:
        raise ValueError(f"{name}, row {wrong[0]} is not an object with named columns. Give one JSON object per row.")
    return rows


def is_row(value: object) -> bool:
    """Whether an object may be a row, rather than a message in a column of one."""
    return isinstance(value, dict) and not {"role", "from"} & value.keys()


def renamed(row: dict, columns: dict[str, str], replaced: set[str]) -> dict:
    """
    A row under the names that are read.

    Args:
        row (`dict`):
            The row.
        columns (`dict[str, str]`):
            The row's own names, by those that are read. One image alone becomes `image`, one video `video`.
        replaced (`set[str]`):
            Keys that are left out.
    """
    read = {key: value for key, value in row.items() if key not in replaced and key not in columns.values()}
    for ours, own in columns.items():
        alone = ours in ("images", "videos") and not isinstance(row.get(own), list)
        read[ours.removesuffix("s") if alone else ours] = row.get(own)
    return read


def read_row(path: Path, number: int, row: dict) -> dict:
    """
    A row whose messages all have the same form, as Arrow needs, with its images and its videos as lists.

    Args:
        path (`Path`):
            The file. Relative paths of images and videos begin at its folder.
        number (`int`):
            The row's place in it, which is its id where it has none.
        row (`dict`):
            The row as it stands there.

    Raises:
        ValueError: What [`read_messages`], [`located`] and [`stored_video`] refuse, with the row named.
    """
    with named_row(f"{path}, row {number if row.get('id') is None else row['id']}"):
        row = with_listed_images(row)
        images = as_image_list(row.get("image") if row.get("images") is None else row["images"])
        name = str(number if row.get("id") is None else row["id"])
        read = {**row, "id": name, "images": [located(image, path.parent) for image in images]}
        read.pop("image", None)
        videos = as_video_list(videos_of(row))
        if row.keys() & {"video", "videos"}:
            read["videos"] = [stored_video(video, path.parent) for video in videos]
        read.pop("video", None)
        for column, role in ROLE_OF.items():
            if row.get(column) is not None:
                messages = read_messages(row[column], role)
                if column in asked_by(row):
                    messages = place_images(messages, len(images), len(videos))
                read[column] = [{**message, "content": as_parts(message["content"])} for message in messages]
        return read


def asked_by(row: dict) -> tuple[str, ...]:
    """The columns that hold what is asked: the prompt, or without one both whole conversations."""
    return ("prompt",) if row.get("prompt") is not None else ("chosen", "rejected")


def with_listed_images(row: dict) -> dict:
    """A row whose images and videos are in its `images` and `videos`, also those that its messages held themselves."""
    read = {name: extract_images(row[name], role) for name, role in ROLE_OF.items() if row.get(name) is not None}
    held = {name: {"images": images, "videos": videos} for name, (_, images, videos) in read.items()}
    shown = [one for one in held.values() if any(one.values())]
    if not shown:
        return row
    # A conversation may repeat the prompt's turns with or without its images, and not with others.
    asked = [held[name] for name in asked_by(row) if name in held]
    listed = any(row.get(name) for name in ("image", "images", "video", "videos"))
    if listed or any(one != shown[0] for one in asked + shown):
        raise ValueError(
            "its messages hold images or videos themselves, and others are in its `images` or `videos`, or in its "
            "other conversation. Put all of them into one place."
        )
    lists = {name: sources for name, sources in shown[0].items() if sources}
    return row | {name: messages for name, (messages, *_) in read.items()} | lists


def read_or_marked_row(path: Path, number: int, row: dict) -> dict:
    """
    What [`read_row`] gives for the same arguments. A row that cannot be read has no messages, an empty image if it is
    one with images, an empty video likewise, and the reason in `unreadable`: whoever uses the set says how many such
    rows may be.
    """
    try:
        return read_row(path, number, row)
    except ValueError as error:
        name = str(number if row.get("id") is None else row["id"])
        rest = {key: value for key, value in row.items() if key not in ("image", "video", "videos")}
        rest |= dict.fromkeys(ROLE_OF.keys() & row, [])
        if row.get("videos") or row.get("video"):
            rest["videos"] = [{"bytes": None, "path": "", "frames": None, "fps": None}]
        reason = str(error).removeprefix(f"{path}, row {name}: ")
        images = [{"bytes": None, "path": ""}] if row.get("images") or row.get("image") else []
        return rest | {"id": name, "images": images, "unreadable": reason}


def located(image: str | bytes | dict, folder: Path) -> dict:
    """
    An image as bytes, or as a path; one relative to `folder` is made absolute. A data URL is bytes: `datasets` cannot
    open it.

    Raises:
        ValueError: For what is neither bytes nor a path.
    """
    image = {"bytes": image, "path": None} if isinstance(image, bytes) else image
    image = {"bytes": None, "path": image} if isinstance(image, str) else image
    if not isinstance(image, dict) or image.get("bytes") is None and not isinstance(image.get("path"), str):
        raise ValueError(f"an image is {shown(image)}, and a path or bytes are needed. Name a file, or leave it out.")
    if image.get("bytes") is None and image["path"].startswith("data:"):
        image = {"bytes": data_url_bytes(image["path"]), "path": None}
    elif image.get("bytes") is None and "://" not in image["path"]:
        image = {"bytes": None, "path": str((folder / image["path"]).resolve())}
    return {"bytes": image.get("bytes"), "path": image.get("path")}


def as_dataset(rows: list[dict], name: str) -> Dataset:
    """
    Rows with an `id` each as a dataset with the columns of all of them: `Dataset.from_list` takes those of the first. A
    column whose values are of several types, as answers that are numbers, words and lists, keeps each as it is.

    Args:
        rows (`list[dict]`):
            The rows.
        name (`str`):
            What to call the set in an error message.

    Raises:
        ValueError: If there is no row, or a text holds half a character. The row is named.
    """
    if not rows:
        raise ValueError(f"{name} holds no row.")
    columns = []
    for key in dict.fromkeys(key for row in rows for key in row):
        values = {key: [row.get(key) for row in rows]}
        try:
            try:
                columns.append(Dataset.from_dict(values))
            except (pa.ArrowException, OverflowError):  # several types, or a number of more than 64 bits
                # `Json` takes the text "9" for the number, so it gets text that is JSON.
                texts = [None if value is None else json.dumps(value, ensure_ascii=False) for value in values[key]]
                columns.append(Dataset.from_dict({key: texts}, Features({key: Json()})))
        except UnicodeEncodeError as error:
            raise half_character(rows, key, name) from error
    return concatenate_datasets(columns, axis=1)


def half_character(rows: list[dict], key: str, name: str) -> ValueError:
    """The error that says in which row a column's text is cut inside a character."""
    for row in rows:
        try:
            check_characters(json.dumps(row.get(key), ensure_ascii=False))
        except ValueError as error:
            return ValueError(f"{name}, row {row['id']}: `{key}`: {error}")
    raise AssertionError(f"{key} has no such text")
