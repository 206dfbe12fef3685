"""Rows of a source as prompts with what curation needs to know of each, in one pass that decodes every image once."""

import hashlib
import json
from collections.abc import Callable

from datasets import Features, Image, List, Value

from ...data.messages import text_of
from ...data.text_keys import text_key
from ..conversion import located
from ..inspection import inspect_images
from ..pair import PART_MESSAGES, Unusable
from .prompt_source import NotMeant


PROMPT_FEATURES = Features(
    {
        "source": Value("string"),
        "index": Value("int64"),  # row of the source
        "origin": Value("string"),  # the set's own id, or the row's number in it
        "refused": Value("string"),  # why the row is bad
        "bad_image": Value("string"),  # its path, where that is why
        "not_meant": Value("string"),  # why it is in order, and holds no prompt
        "id": Value("string"),
        "prompt": PART_MESSAGES,
        "images": List(Image(decode=False)),
        "answer": Value("string"),  # as JSON
        "prompt_key": Value("int64"),
        "pixel_hashes": List(Value("string")),
        "perceptual_hashes": List(Value("string")),  # in hexadecimal digits
    }
)
IDS = ("id", "pid", "idx", "question_id")  # of public rows
# What a row that is not in its schema raises, whatever it holds.
ROW_ERRORS = (KeyError, TypeError, AttributeError, IndexError, ValueError, OSError, RecursionError, OverflowError)


def content_id(prompt: list[dict], pixel_hashes: list[str]) -> str:
    """A stable hash of what a prompt shows, by the `pixel_hashes` of its images, and says: 16 hexadecimal digits."""
    turns = [message["role"] + "\0" + text_of([message]) for message in prompt]
    return hashlib.sha256("\0".join([*turns, *pixel_hashes]).encode()).hexdigest()[:16]


def read_row(row: dict, prompt_of: Callable, root: str | None, allow_urls: bool, known: dict) -> dict:
    """
    A row of a source in [`PROMPT_FEATURES`].

    Args:
        row (`dict`):
            The row as it is.
        prompt_of (`Callable`):
            That of the source: from a row and `root` to its prompt.
        root (`str`, *optional*), allow_urls (`bool`):
            As [`located`] takes them.
        known (`dict`):
            The hashes of images that were decoded before. Those of the row are added.

    Raises:
        Unusable, NotMeant: With the reason, for a row that gives no prompt.
    """
    read = prompt_of(row, root)
    read["images"] = [located(image, root, allow_urls) for image in read["images"]]
    shown, bad_image, path = inspect_images(read["images"], known)
    if bad_image:
        return {"refused": f"image: {bad_image}", "bad_image": path}
    pixels, perceptual = ([hashes[number] for hashes in shown] for number in (0, 1))
    read |= {"id": content_id(read["prompt"], pixels), "prompt_key": text_key(text_of(read["prompt"]))}
    return read | {"pixel_hashes": pixels, "perceptual_hashes": perceptual}


def read_batch(
    batch: dict[str, list], prompt_of: Callable, source: str, root: str | None, allow_urls: bool
) -> dict[str, list]:
    """
    A batch of a source's rows to a batch in [`PROMPT_FEATURES`]. Rows that give no prompt have the reason.

    Args:
        batch (`dict[str, list]`):
            The rows' columns. Their numbers are in `__index__`. A column `text` alone holds the rows as JSON.
        prompt_of (`Callable`), root (`str`, *optional*), allow_urls (`bool`):
            As [`read_row`] takes them.
        source (`str`):
            What the source is called.
    """
    outcomes, known = [], {}
    for i, index in enumerate(batch["__index__"]):
        row, outcome = {key: values[i] for key, values in batch.items() if key != "__index__"}, {}
        try:
            row = json.loads(row["text"]) if set(row) == {"text"} else row
            outcome["origin"] = next((row[key] for key in IDS if row.get(key) is not None), None)
            outcome |= read_row(row, prompt_of, root, allow_urls, known)
        except NotMeant as reason:
            outcome["not_meant"] = str(reason)
        except Unusable as reason:
            outcome["refused"] = str(reason)
        except json.JSONDecodeError:
            outcome["refused"] = "the line is not JSON"
        except ROW_ERRORS as error:
            outcome["refused"] = f"not in the set's schema ({type(error).__name__}: {error})"
        outcome["origin"] = f"row {index}" if outcome.get("origin") is None else outcome["origin"]
        for key in ("origin", "refused", "not_meant", "bad_image"):  # Arrow holds no half of a character
            if outcome.get(key) is not None:
                outcome[key] = str(outcome[key]).encode("utf-8", "replace").decode()
        outcomes.append(outcome | {"source": source, "index": index})
    return {key: [outcome.get(key) for outcome in outcomes] for key in PROMPT_FEATURES}
