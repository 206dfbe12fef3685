"""Any data set in TRL's preference format: `trl-lib/rlaif-v`, `HuggingFaceH4/rlaif-v_formatted`, or one's own file."""

from collections.abc import Iterator

from ...data.messages import text_of
from ..pair import Unusable, build_pair, common_turns, user_turn
from ..public_rows import read_rows


LICENSE = "not stated"
read = read_rows


def as_parts(message: dict) -> dict:
    """A message whose content is a list of parts, the keys that Arrow adds left out."""
    content = message["content"]
    if isinstance(content, str):
        return {"role": message["role"], "content": [{"type": "text", "text": content}]}
    parts = [
        {"type": part["type"], "text": part.get("text") if part["type"] == "text" else None}
        for part in content
        if part["type"] == "image" or part.get("text")
    ]
    return {"role": message["role"], "content": parts}


def prompt_messages(prompt: str | list[dict], n_images: int) -> list[dict]:
    """
    A prompt with one image part per image. Where its contents are plain strings, the images stand where the first
    user turn has `<image>`, or before its text, as TRL puts them.

    Raises:
        Unusable: If image parts and images differ in number, or nothing is asked.
    """
    if isinstance(prompt, str):
        return [user_turn(prompt, n_images)]
    messages, remaining = [], n_images
    for message in prompt:
        if message["role"] == "user" and isinstance(message["content"], str) and remaining:
            message, remaining = user_turn(message["content"], n_images), 0
        messages.append(as_parts(message))
    if sum(part["type"] == "image" for message in messages for part in message["content"]) != n_images:
        raise Unusable("the number of image parts in the prompt is not the number of images")
    return messages


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """
    `prompt`, `chosen` and `rejected` as strings or messages, or `chosen` and `rejected` as whole conversations;
    `images` (a list) or `image`, if any; `score_chosen` and `score_rejected`, if any.
    """
    images = row["images"] if row.get("images") is not None else [row["image"]] if row.get("image") is not None else []
    prompt, chosen, rejected = row.get("prompt"), row["chosen"], row["rejected"]
    if prompt is None and isinstance(chosen, list):
        prompt, chosen, rejected = common_turns(chosen, rejected)
    if not prompt or not chosen or not rejected:
        raise Unusable("prompt, chosen or rejected is empty")
    chosen, rejected = (
        [{"role": message["role"], "content": text_of([message])} for message in response]
        if isinstance(response, list)
        else response
        for response in (chosen, rejected)
    )
    scores = {key: row.get(key) for key in ("score_chosen", "score_rejected")}
    messages = prompt_messages(prompt, len(images))
    yield build_pair(messages, chosen, rejected, images, origin=row.get("id"), **scores)
