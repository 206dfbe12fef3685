"""A preference pair as this project stores it, and how a public row becomes one."""

from collections.abc import Sequence

from datasets import Features, Image, List, Value

from ..data.messages import text_of


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


def user_turn(text: str, n_images: int) -> dict:
    """
    A user message with its images where `<image>` stands in the text, or before the text where it does not occur.

    Raises:
        Unusable: If some other number of `<image>` stands there.
    """
    pieces = text.split("<image>")
    if len(pieces) == 1:
        pieces = [""] * n_images + [text]
    if len(pieces) != n_images + 1:
        raise Unusable("the number of <image> in the text is not the number of images")
    parts = []
    for number, piece in enumerate(pieces):
        parts += [{"type": "image", "text": None}] if number else []
        parts += [{"type": "text", "text": piece.strip("\n")}] if piece.strip() else []
    return {"role": "user", "content": parts}


def build_pair(
    prompt: str | list[dict],
    chosen: str | list[dict],
    rejected: str | list[dict],
    images: Sequence = (),
    **optional,
) -> dict:
    """
    One row in [`PAIR_FEATURES`], without the columns that the caller of a row function fills.

    Args:
        prompt (`str` or `list[dict]`):
            The user's text, with `<image>` where images stand, or messages whose content is a list of parts.
        chosen (`str` or `list[dict]`), rejected (`str` or `list[dict]`):
            The responses.
        images (`Sequence`):
            Paths, bytes or `{"bytes": ..., "path": ...}`.
        optional:
            `origin`; `rating_margin`, the difference of the two responses' labels as a fraction of their scale;
            `chosen_first`, whether the public set showed the chosen response first; `score_chosen`, `score_rejected`.

    Raises:
        Unusable: If a text is missing or empty.
    """
    images = [as_image(image) for image in images if image is not None]
    for name, text in (("prompt", prompt), ("chosen", chosen), ("rejected", rejected)):
        if text is None or not str(text if isinstance(text, str) else text or "").strip():
            raise Unusable(f"{name} is empty")
    pair = {
        "prompt": [user_turn(prompt, len(images))] if isinstance(prompt, str) else prompt,
        "images": images,
        "chosen": [{"role": "assistant", "content": chosen}] if isinstance(chosen, str) else chosen,
        "rejected": [{"role": "assistant", "content": rejected}] if isinstance(rejected, str) else rejected,
    }
    for name in ("prompt", "chosen", "rejected"):
        if not text_of(pair[name]).strip() and not (name == "prompt" and images):
            raise Unusable(f"{name} is empty")
    return {**pair, **optional}


def common_turns(chosen: list[dict], rejected: list[dict]) -> tuple[list[dict], list[dict], list[dict]]:
    """
    Split two conversations into the turns that they begin with in common, and the last turn of each.

    Raises:
        Unusable: If they part before the last turn, or it is not the assistant's.
    """
    same = 0
    while same < min(len(chosen), len(rejected)) and chosen[same] == rejected[same]:
        same += 1
    if not same or (same == len(chosen) and same == len(rejected)):
        raise Unusable("the two conversations are equal" if same else "the two conversations share no prompt")
    if len(chosen) != same + 1 or len(rejected) != same + 1:
        raise Unusable("the two conversations part before their last turn")
    if chosen[same]["role"] != "assistant" or rejected[same]["role"] != "assistant":
        raise Unusable("the last turn is not the assistant's")
    return chosen[:same], chosen[same:], rejected[same:]
