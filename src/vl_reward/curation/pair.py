"""A preference pair as this project stores it, and how a public row becomes one."""

import re
from collections.abc import Sequence

from datasets import Features, Image, List, Value

from ..data.messages import split_pair, text_of
from ..data.placeholders import place_images


TEXT_MESSAGES = List({"role": Value("string"), "content": Value("string")})
# The parts of a prompt say where its images stand. Arrow gives image parts a `text` of None, which `as_messages`
# removes before the chat template asks which keys are there.
PART_MESSAGES = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
PAIR_FEATURES = Features(
    {
        "source": Value("string"),
        "index": Value("int64"),  # row of the public set
        "origin": Value("string"),  # the public set's own id
        "prompt": PART_MESSAGES,
        "images": List(Image(decode=False)),
        "is_video": Value("bool"),  # the images are the frames of one video, in their order
        "chosen": TEXT_MESSAGES,
        "rejected": TEXT_MESSAGES,
        "rating_margin": Value("float64"),
        "chosen_first": Value("bool"),
        "score_chosen": Value("float64"),
        "score_rejected": Value("float64"),
        "skipped": Value("string"),
        "excerpt": Value("string"),
    }
)


class Unusable(ValueError):
    """A public row that holds no comparison. The message is the reason that the audit counts."""


def as_image(image: str | bytes | dict) -> dict:
    """An image as `datasets` stores it undecoded."""
    if isinstance(image, str):
        return {"bytes": None, "path": image}
    return {"bytes": image, "path": None} if isinstance(image, bytes) else image


def build_pair(
    prompt: str | list[dict] | None,
    chosen: str | list[dict],
    rejected: str | list[dict],
    images: Sequence = (),
    **optional,
) -> dict:
    """
    One row in [`PAIR_FEATURES`], without the columns that the caller of a row function fills.

    Args:
        prompt (`str` or `list[dict]`, *optional*):
            The user's text or messages, with `<image>` or image parts where images stand.
        chosen (`str` or `list[dict]`), rejected (`str` or `list[dict]`):
            The responses, or whole conversations: see [`split_pair`].
        images (`Sequence`):
            Paths, bytes or `{"bytes": ..., "path": ...}`. `None` alone is no image.
        optional:
            `origin`; `is_video`, whether the images are one video's frames; `rating_margin`, the difference of the two
            responses' labels as a fraction of their scale; `chosen_first`, whether the public set showed the chosen
            response first; `score_chosen`, `score_rejected`.

    Raises:
        Unusable: If a text is missing or empty, and for what [`split_pair`] and [`place_images`] refuse.
    """
    images = [] if list(images) == [None] else list(images)
    if None in images:
        raise Unusable("one of several images is null")
    try:
        asked, *answers = split_pair(prompt, chosen, rejected)
        asked = place_images(asked, len(images))
    except ValueError as error:
        raise Unusable(re.split(r"[.:] ", str(error))[0].removesuffix(".")) from error  # one reason for many rows
    if not text_of(asked).strip() and not images:
        raise Unusable("prompt is empty")
    if prompt is None and answers[0] == answers[1]:
        raise Unusable("the two conversations are equal")
    turns = [
        {"role": message["role"], "content": [stored(part) for part in message["content"] if part.get("text") != ""]}
        for message in asked
    ]
    sides = [[{"role": "assistant", "content": text_of(answer)}] for answer in answers]
    columns = {"prompt": turns, "images": [as_image(image) for image in images]}
    return columns | dict(zip(("chosen", "rejected"), sides, strict=True)) | optional


def as_video_pair(row: dict) -> dict:
    """A pair whose images are one video's frames, as a pair with that video; another one with no videos."""
    if not row["is_video"]:
        return {"prompt": row["prompt"], "images": row["images"], "videos": []}
    turns, placed = [], False
    for message in row["prompt"]:
        parts = []
        for part in message["content"]:
            if part["type"] != "image":
                parts.append(part)
            elif not placed:
                parts.append({"type": "video", "text": None})
                placed = True
        turns.append({"role": message["role"], "content": parts})
    return {
        "prompt": turns,
        "images": [],
        "videos": [{"bytes": None, "path": None, "frames": row["images"], "fps": None}],
    }


def stored(part: dict) -> dict:
    """A part of a prompt with both keys of [`PART_MESSAGES`]."""
    return {"type": part["type"], "text": part.get("text")}
