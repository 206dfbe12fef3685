"""
POVID and LLaVA-RLHF: conversations with a preferred and another answer. LLaVA-RLHF's preference file has `output_1`,
`output_2` and `preference`; POVID's has `rejected_conversations` beside `conversations`.
"""

from collections.abc import Iterator

from ..pair import Unusable, build_pair
from ..public_rows import read_rows


LICENSE = "not stated on its card"
read = read_rows
ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "llava": "assistant"}


def answer_of(turn: str | dict) -> str:
    """An answer's text, in either of the two forms."""
    return turn["value"] if isinstance(turn, dict) else turn


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """`id`, `image`, `conversations`, and the two answers in either of the two forms."""
    turns, images = row["conversations"], [row["image"]] if row.get("image") else []
    if row.get("rejected_conversations"):
        chosen, rejected, first = turns[-1]["value"], row["rejected_conversations"][-1]["value"], None
        turns = turns[:-1]
    else:
        if row.get("preference") not in (1, 2):
            raise Unusable("preference is neither 1 nor 2")
        first = row["preference"] == 1
        chosen, rejected = (row["output_1"], row["output_2"]) if first else (row["output_2"], row["output_1"])
        chosen, rejected = answer_of(chosen), answer_of(rejected)
        turns = turns[:-1] if ROLES[turns[-1]["from"]] == "assistant" else turns
    prompt = [{"role": ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    if not prompt or prompt[-1]["role"] != "user":
        raise Unusable("no question before the answer")
    yield build_pair(prompt, chosen, rejected, images, origin=row.get("id"), chosen_first=first)
