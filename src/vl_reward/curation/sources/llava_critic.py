"""
LLaVA-Critic-113k (`lmms-lab/llava-critic-113k`): judgments of GPT-4o, whose configs `pairwise` and `pointwise` hold
the judge's prompt in the human turn and its verdict in the other.
"""

import re
from collections.abc import Iterator

from ..pair import Unusable, build_pair
from ..public_rows import read_rows


LICENSE = "Apache-2.0"
read = read_rows

LABELS = (("The first response", "The second response"), ("Response 1", "Response 2"), ("Response A", "Response B"))
# A response may hold "]" and line breaks: it ends at the last "]" before the next label.
PAIRWISE = [
    re.compile(
        rf"Question:\s*\[(?P<prompt>.*?)\]\s*{one}:\s*\[(?P<first>.*?)\]\s*{two}:\s*\[(?P<second>.*)\]", re.DOTALL
    )
    for one, two in LABELS
]
BETTER = re.compile(r"better response\W{0,12}(?:is\W{0,4})?(?:response\s*)?\b(first|second|1|2|A|B)\b", re.IGNORECASE)
LLAVA_BENCH = re.compile(
    r"\[Question\]\s*(?P<prompt>.*?)\s*\[Assistant 1\]\s*(?P<first>.*?)\s*\[End of Assistant 1\]\s*"
    r"\[Assistant 2\]\s*(?P<second>.*?)\s*\[End of Assistant 2\]",
    re.DOTALL,
)
RATINGS = re.compile(r"\s*(\d+(?:\.\d+)?)[ ,]+(\d+(?:\.\d+)?)\s*(?:\n|$)")
ARENA = re.compile(
    r"<\|User Prompt\|>\s*(?P<prompt>.*?)\s*<\|The Start of Assistant A's Answer\|>\s*(?P<first>.*?)\s*"
    r"<\|The End of Assistant A's Answer\|>\s*<\|The Start of Assistant B's Answer\|>\s*(?P<second>.*?)\s*"
    r"<\|The End of Assistant B's Answer\|>",
    re.DOTALL,
)
VERDICT = re.compile(r"\[\[(A>>B|A>B|A=B|B>A|B>>A)\]\]")


def parse_question(text: str) -> tuple[str, re.Match]:
    """The format of a judge's prompt, and its parts `prompt`, `first` and `second`."""
    for name, patterns in (("pairwise", PAIRWISE), ("LLaVA-Bench", [LLAVA_BENCH]), ("arena", [ARENA])):
        for pattern in patterns:
            if match := pattern.search(text):
                return name, match
    if "Text Caption:" in text or "out of 100" in text:
        raise Unusable("one scored response, not a comparison")
    raise Unusable("no known form of comparison")


def parse_verdict(form: str, text: str) -> tuple[bool, float | None]:
    """
    Whether the first response is the better one, and by how much of the scale, where ratings are given.

    Raises:
        Unusable: For a tie, or a verdict that cannot be read.
    """
    margin = None
    if form == "LLaVA-Bench":
        if not (match := RATINGS.match(text)):
            raise Unusable("no verdict found")
        first, second = map(float, match.groups())
        verdict = "first" if first > second else "second" if first < second else "tie"
        margin = abs(first - second) / 10
    elif form == "arena":
        verdicts = VERDICT.findall(text)
        verdict = verdicts[-1] if verdicts else None
        verdict = {"A>>B": "first", "A>B": "first", "A=B": "tie", "B>A": "second", "B>>A": "second"}.get(verdict)
    else:
        verdicts = BETTER.findall(text)
        verdict = verdicts[-1] if verdicts else None
        verdict = verdict and ("first" if verdict.lower() in ("first", "1", "a") else "second")
        if verdict is None and "equally good" in text[-300:]:
            verdict = "tie"
    if verdict is None:
        raise Unusable("no verdict found")
    if verdict == "tie":
        raise Unusable("tie")
    return verdict == "first", margin


def pairs(row: dict, root: str | None = None) -> Iterator[dict]:
    """`id`, `source`, `conversations` (a human and a gpt turn) and `image`."""
    turns = {turn["from"]: turn["value"] for turn in row["conversations"]}
    form, parts = parse_question(turns["human"])
    first_is_better, margin = parse_verdict(form, turns["gpt"])
    chosen, rejected = (parts[side] for side in (("first", "second") if first_is_better else ("second", "first")))
    images = [row["image"]] if row.get("image") is not None else []
    prompt = parts["prompt"].replace("<image>", "").strip()
    rating = {"rating_margin": margin, "chosen_first": first_is_better}
    yield build_pair(prompt, chosen, rejected, images, origin=row["id"], **rating)
