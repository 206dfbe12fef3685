"""Where the images and the videos of a row stand in its messages."""

import re

from .messages import MARKS, as_parts, read_messages


def place_images(messages: list[dict], n_images: int, n_videos: int = 0) -> list[dict]:
    """
    Messages whose contents are lists of parts, with one part of type `image` per image and one of type `video` per
    video. They stand where such parts, or `<image>` and `<video>` in a text, say it; where neither does, before the
    first user's text, as TRL puts images, which come first.

    Args:
        messages (`list[dict]`):
            What [`read_messages`] gives.
        n_images (`int`):
            How many images the row has. In a list of parts without images, and in an answer, `<image>` is a word.
        n_videos (`int`, *optional*, defaults to `0`):
            How many videos the row has. Without any, `<video>` is a word, as in a question about HTML, unless a user's
            plain string begins or ends with it.

    Returns:
        `list[dict]`: new messages.

    Raises:
        ValueError: If placeholders differ in number from the images or the videos, a message holds one itself, or an
            earlier answer has `<image>` or `<video>`.
    """
    given, placed = {"image": n_images, "video": n_videos}, []
    shown = [kind for kind, number in given.items() if number]
    for number, message in enumerate(messages):
        parts, is_answer = as_parts(message["content"]), message["role"] == "assistant"
        is_plain = isinstance(message["content"], str)
        for kind in given:
            check_filled(parts, kind)
            if is_answer and kind in shown and number < len(messages) - 1 and has_mark(parts, kind):
                raise ValueError(
                    f"an earlier answer of the assistant has {MARKS[kind]}, and {kind}s are the user's. Take it out."
                )
        if not is_answer:
            read = {*shown, "image"} if is_plain else {*shown}
            read |= {"video"} if is_plain and is_about_a_video(message["content"]) else set()
            parts = [piece for part in parts for piece in split_at_marks(part, read)]
        placed.append({"role": message["role"], "content": parts})

    found = {kind: sum(part["type"] == kind for message in placed for part in message["content"]) for kind in given}
    strings = [i for i, one in enumerate(messages) if one["role"] == "user" and isinstance(one["content"], str)]
    unplaced = [{"type": kind} for kind in shown if strings and not found[kind] for _ in range(given[kind])]
    if unplaced:
        placed[strings[0]]["content"][:0] = unplaced
    for kind, number in given.items():
        there = found[kind] + sum(part["type"] == kind for part in unplaced)
        if there != number:
            raise ValueError(
                f"Number of {kind}s provided ({number}) does not match number of {kind} placeholders ({there}): one "
                f'{MARKS[kind]} in the text, or one {{"type": "{kind}"}}, is needed per {kind}, or neither in a plain '
                "string."
            )
    return placed


def check_filled(parts: list[dict], kind: str) -> None:
    """
    Raises:
        ValueError: If one of a message's `parts` holds an image or a video (`kind`) itself.
    """
    if any(kind in part for part in parts):
        raise ValueError(
            f"a message holds {'an' if kind == 'image' else 'a'} {kind} itself, and {kind}s are read from the row's "
            f'`{kind}s`. Put it there, and leave {{"type": "{kind}"}} in its place.'
        )


def has_mark(parts: list[dict], kind: str) -> bool:
    """Whether the text of one of a message's `parts` has the mark of an image or a video (`kind`)."""
    return any(MARKS[kind] in part.get("text", "") for part in parts)


def is_about_a_video(text: str) -> bool:
    """Whether a text begins or ends with `<video>`."""
    text = text.strip()
    return text.startswith(MARKS["video"]) or text.endswith(MARKS["video"])


def split_at_marks(part: dict, kinds: set[str]) -> list[dict]:
    """A part as parts of the types `kinds` where its text has their marks, and parts of text between them."""
    marks = {MARKS[kind]: kind for kind in kinds}
    if not any(mark in part.get("text", "") for mark in marks):
        return [part]
    parts = []
    for piece in re.split(f"({'|'.join(map(re.escape, marks))})", part["text"]):
        if piece in marks:
            parts.append({"type": marks[piece]})
        elif piece.strip():
            parts.append({"type": "text", "text": piece.strip("\n")})
    return parts


def extract_images(turns: str | list[dict], role: str = "user") -> tuple[list[dict], list, list]:
    """
    Part messages and the images and videos that their placeholders hold already, as `GRPOTrainer` fills them in before
    it asks for rewards, and as chat formats have them. A plain string is one turn of `role`.

    Returns:
        `tuple[list[dict], list, list]`: the messages with empty placeholders, the images and the videos, in order.
    """
    messages, held = read_messages(turns, role), {"image": [], "video": []}
    for message in messages:
        for part in message["content"] if not isinstance(message["content"], str) else ():
            for kind, contents in held.items():
                if kind in part:
                    contents.append(part.pop(kind))
    return messages, held["image"], held["video"]
