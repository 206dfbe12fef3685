"""Where the images of a row stand in its messages."""

from .messages import as_parts, read_messages


MARK = "<image>"


def place_images(messages: list[dict], n_images: int) -> list[dict]:
    """
    Messages whose contents are lists of parts, with one part of type `image` per image. Images stand where parts of
    type `image` or `<image>` in a text say it; where neither does, before the first user's text, as TRL puts them.

    Args:
        messages (`list[dict]`):
            What [`read_messages`] gives.
        n_images (`int`):
            How many images the row has. In a list of parts without images, and in an answer, `<image>` is a word.

    Raises:
        ValueError: If placeholders and images differ in number, a message holds an image itself, or an earlier answer
            has `<image>`.
    """
    placed = []
    for number, message in enumerate(messages):
        parts, is_answer = as_parts(message["content"]), message["role"] == "assistant"
        if any("image" in part for part in parts):
            raise ValueError(
                "a message holds an image itself, and images are read from the row's `images`. Put it there, and leave "
                '{"type": "image"} in its place.'
            )
        if is_answer and n_images and number < len(messages) - 1 and has_mark(parts):
            raise ValueError(f"an earlier answer of the assistant has {MARK}, and images are the user's. Take it out.")
        if not is_answer and (n_images or isinstance(message["content"], str)):
            parts = [piece for part in parts for piece in split_at_marks(part)]
        placed.append({"role": message["role"], "content": parts})
    n_placeholders = sum(part["type"] == "image" for message in placed for part in message["content"])
    if not n_placeholders and n_images:
        strings = [i for i, one in enumerate(messages) if one["role"] == "user" and isinstance(one["content"], str)]
        if strings:
            placed[strings[0]]["content"][:0] = [{"type": "image"} for _ in range(n_images)]
            n_placeholders = n_images
    if n_placeholders != n_images:
        raise ValueError(
            f"Number of images provided ({n_images}) does not match number of image placeholders ({n_placeholders}): "
            f'one {MARK} in the text, or one {{"type": "image"}}, is needed per image, or neither in a plain string.'
        )
    return placed


def has_mark(parts: list[dict]) -> bool:
    return any(MARK in part.get("text", "") for part in parts)


def split_at_marks(part: dict) -> list[dict]:
    """A part as image parts where its text has `<image>`, and text parts between them."""
    if MARK not in part.get("text", ""):
        return [part]
    parts = []
    for number, piece in enumerate(part["text"].split(MARK)):
        parts += [{"type": "image"}] if number else []
        parts += [{"type": "text", "text": piece.strip("\n")}] if piece.strip() else []
    return parts


def extract_images(prompt: str | list[dict]) -> tuple[list[dict], list]:
    """
    Part a prompt and the images that its placeholders hold already, as `GRPOTrainer` fills them in before it asks for
    rewards.

    Returns:
        `tuple[list[dict], list]`: the prompt with empty placeholders, and the images, in order.
    """
    messages, images = read_messages(prompt, "user"), []
    for message in messages:
        if not isinstance(message["content"], str):
            images += [part.pop("image") for part in message["content"] if "image" in part]
    return messages, images
