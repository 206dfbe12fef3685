"""Where prompts come from: public sets, preference sets, one's own files; and how a row becomes a prompt."""

import json
import math
import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from datasets import Dataset

from ...data.json_rows import parse_json_rows, read_text
from ...data.messages import check_characters, read_messages, text_of
from ...data.placeholders import place_images
from ..pair import Unusable, as_image, stored
from ..source import FORMATS as PAIR_FORMATS
from ..source import PreferenceSource


KEYS = ("name", "format", "path", "config", "split", "streaming", "max_rows", "image_root", "allow_urls")
KEYS += ("benchmark_id_prefix", "columns")


class NotMeant(ValueError):
    """A row that is in order, and holds no prompt that is read. The message is the reason that the report counts."""


def own_prompt(row: dict, root: str | None, columns: dict[str, str] | None = None) -> dict:
    """`prompt` (a string or messages), `images` (a list) or `image`, `answer` and `id`; by the set's own `columns`."""
    row = row | {ours: row.get(own) for ours, own in (columns or {}).items()}
    if row.get("videos") or row.get("video"):
        raise NotMeant("it is about a video")
    if row.get("prompt") is None:
        raise Unusable("the row has no prompt")
    images = row.get("images") if row.get("images") is not None else row.get("image")
    images = (images or []) if isinstance(images, list) or not images else [images]
    return build_prompt(row["prompt"], images, row.get("answer"), row.get("id"))


def mathvista_prompt(row: dict, root: str | None) -> dict:
    """
    `question`, `choices`, `unit`, `answer`, `pid`, and `decoded_image` or `image`. Where there are choices, `answer` is
    the text of one: its letter is accepted, too.
    """
    question, answer = row["question"], row.get("answer")
    question += f" (Unit: {row['unit']})" if row.get("unit") else ""
    if choices := row.get("choices"):
        letters = dict(zip(string.ascii_uppercase, choices, strict=False))
        question += "\nChoices:" + "".join(f"\n({letter}) {choice}" for letter, choice in letters.items())
        right = [letter for letter, choice in letters.items() if choice == answer]
        if len(right) != 1 and answer:
            raise Unusable("the answer is none of the choices, or several")
        # A text that is a letter itself, as that of a point, might name another option.
        answer = [*right, *([answer] if answer and answer.strip() not in letters else [])]
    image = row.get("decoded_image") or row["image"]
    return build_prompt(question, [image], answer, row.get("pid"))


def mmpr_prompt(row: dict, root: str | None) -> dict:
    """`question`, `image` (a path, a list of paths, or absent for text), and the answer in `answer_gt`."""
    if row.get("video"):
        raise NotMeant("it is about a video")
    image = row.get("image") or []
    return build_prompt(row["question"], image if isinstance(image, list) else [image], row.get("answer_gt"))


def prompt_of_pair(row: dict, root: str | None, pairs: Callable) -> dict:
    """The prompt of a row of a preference set. `pairs` is that of the set's format."""
    try:
        pair = next((pair for pair in pairs(row, root) if not pair.get("skipped")), None)
    except Unusable as reason:
        raise NotMeant(f"it holds no pair: {reason}") from reason
    if pair is None:
        raise NotMeant("it holds no pair")
    return {"prompt": pair["prompt"], "images": pair["images"], "answer": None, "origin": pair.get("origin")}


PROMPTS = {"prompts": own_prompt, "mathvista": mathvista_prompt, "mmpr": mmpr_prompt}


def build_prompt(prompt: str | list[dict], images: list, answer: object = None, origin: object = None) -> dict:
    """
    A prompt with its images as `datasets` stores them, and its answer as JSON.

    Raises:
        Unusable: For a prompt that is empty or cannot be read, placeholders that are not as many as the images, an
            image that is null, and an answer that no verifier could read.
    """
    if None in images:
        raise Unusable("an image is null")
    try:
        messages = place_images(read_messages(prompt, "user"), len(images))
        answer = accepted(answer)
        check_characters(json.dumps([answer, origin], ensure_ascii=False, default=str))
    except ValueError as error:
        raise Unusable(re.split(r"[.:] ", str(error))[0].removesuffix(".")) from error  # one reason for many rows
    if not any(message["role"] == "user" for message in messages) or not text_of(messages).strip():
        raise Unusable("the prompt is empty")
    turns = [
        {"role": message["role"], "content": [stored(part) for part in message["content"] if part.get("text") != ""]}
        for message in messages
    ]
    answer = None if answer is None else json.dumps(answer)
    return {"prompt": turns, "images": list(map(as_image, images)), "answer": answer, "origin": origin}


def accepted(answer: object) -> object:
    """An answer without what says none: `None`, NaN, an empty text or list."""
    if isinstance(answer, list | tuple):
        return [one for one in map(accepted, answer) if one is not None] or None
    if answer is None or answer == "" or isinstance(answer, float) and math.isnan(answer):
        return None
    if not isinstance(answer, str | int | float):
        raise Unusable("the answer is no text, number, boolean, or list of those")
    return answer


@dataclass
class PromptSource:
    """
    One entry of `sources` in a YAML.

    Args:
        source ([`PreferenceSource`]):
            Where the rows are. Its keys are those of the entry.
        format (`str`):
            What a row holds.
        columns (`dict[str, str]`, *optional*):
            A set's own names for `prompt`, `images`, `answer` and `id`.
    """

    source: PreferenceSource
    format: str
    columns: dict[str, str] | None = None

    @classmethod
    def from_yaml(cls, entry: dict) -> "PromptSource":
        """
        A source from one entry of the YAML's `sources`.

        Args:
            entry (`dict`):
                `name`, `format` and `path`, and optionally `config`, `split`, `streaming`, `max_rows`, `image_root`,
                `allow_urls` and `benchmark_id_prefix` as [`PreferenceSource`] has them. A format is `prompts` (the
                set's own `columns` may be given), `mathvista`, `mmpr`, or that of a preference set, of which the
                prompts are taken.

        Raises:
            ValueError: For a key that does not exist, one that is missing, or an unknown format.
            FileNotFoundError: If `path` is local and does not exist.
        """
        name, format, columns = entry.get("name"), entry.get("format"), entry.get("columns")
        if unknown := sorted(set(entry) - set(KEYS)):
            raise ValueError(f"sources: {name} has the keys {unknown}; there are {', '.join(KEYS)}.")
        if format not in PROMPTS and format not in PAIR_FORMATS:
            known = ", ".join(sorted({*PROMPTS, *PAIR_FORMATS}))
            raise ValueError(f"sources: {name} has the format {format}; there are {known}.")
        if columns is not None and (format != "prompts" or not set(columns) <= {"prompt", "images", "answer", "id"}):
            raise ValueError(
                f"sources: {name} has columns {columns}. They are for the format `prompts`, and name its `prompt`, "
                "`images`, `answer` and `id`: `columns: {prompt: question}`."
            )
        source = {key: value for key, value in entry.items() if key != "columns"}
        source = PreferenceSource.from_yaml(source | {"format": format if format in PAIR_FORMATS else "trl_format"})
        return cls(source, format, columns)

    @property
    def name(self) -> str:
        """What the source is called."""
        return self.source.name

    @property
    def prompt_of(self) -> Callable:
        """From a row and the folder of its images to its prompt."""
        if self.format not in PROMPTS:
            return partial(prompt_of_pair, pairs=self.source.module.pairs)
        return partial(own_prompt, columns=self.columns) if self.format == "prompts" else PROMPTS[self.format]

    def read(self, cache: str) -> list[tuple[Dataset, str | None]]:
        """
        The rows as they are, in parts with the folder of their images. Files made on the way go to `cache`.

        Raises:
            ValueError: If the file is empty, or `columns` names a column that no row has.
        """
        path = Path(self.source.path)
        if path.is_file() and not path.stat().st_size:
            raise ValueError(f"sources: {self.name}: {path} is empty. Write it again, or leave the source out.")
        if self.format == "mathvista" and path.suffix == ".json":
            rows = parse_json_rows(read_text(path), str(path))  # each under its `pid`
            rows = Dataset.from_dict({"text": [json.dumps(row) for row in rows[: self.source.max_rows]]})
            return [(rows, self.source.image_root or str(path.parent))]
        parts = self.source.read(cache)
        for own in (self.columns or {}).values():
            if not any(has_column(rows, own) for rows, _ in parts):
                raise ValueError(
                    f"sources: {self.name}: `columns` names {own}, and no row has it. Look at its spelling."
                )
        return parts


def has_column(rows: Dataset, name: str) -> bool:
    """Whether a table, or a row of JSON lines, has a column."""
    if rows.column_names != ["text"]:
        return name in rows.column_names
    return any(json.dumps(name) in text for text in rows["text"])
