"""Which options of a multiple-choice question an answer names."""

import re

from .plain_text import without_brackets, without_markup


LETTER = r"""[\[({<"'$]*(?:\\\()?(?P<letter>[A-Za-z])(?![A-Za-z0-9_'’+#])(?:\\\))?[\])}>"'$]*"""
BEFORE = re.compile(
    r"(?:the |both |either |option|choice|answer|letter|选项|选择|选|答案|[s:])*\s*(?:is |are )?\s*", re.IGNORECASE
)
HEAD = re.compile(LETTER)
NEXT = re.compile(rf"\s*(?:,?\s*\b(?:and|or)\b|,?\s*(?:和|或者|或|与|及|以及)|[,;/&+])\s*{LETTER}")
# What may follow the letters: nothing, the option's text after a sign, a reason, or that they are right.
AFTER = re.compile(
    r"\s*$|\s*[,;:!)\]}]|\s*\.(?![A-Za-z]\b)|\s+[-–—(\[]|[-–—]\s|\n|\s*(?:选项|项|是|因为|由于|正确|对)(?!不|错)"
    r"|\s+(?:because|since|due to|given that|as|so|which)\b"
    r"|\s+(?:is|are)(?: both| all)?(?: the)?(?: most)? (?:correct|right|best|answers?|only|options?|choices?)\b"
)
REASON = re.compile(
    r"[\s,.;:-]*(?:because|since|as|due to|given|which|reason|explanation|因为|由于|理由|解释)", re.IGNORECASE
)
LABEL = re.compile(r"(?:^|[\s,;])(?:\([A-Z]\)|[A-Z][.:)])(?=\s|$)")
TAKEN_BACK = re.compile(
    r"\b(?:no|wait|actually|scratch that|correction)\b|^\s*(?:is|are)n't\b|^\s*(?:is|are) (?:not|wrong|incorrect)\b"
    r"|^\s*(?:是)?(?:不|错)|[,.] ?(?:不对|不,)",
    re.IGNORECASE,
)
TOGETHER = re.compile(r"[A-J]{2,6}|[A-Z](?:\s+[A-Z])+")


def option_letters(answer: str) -> frozenset[str] | None:
    """
    The letters that an answer names: `{"B"}` of `(B) a cat` and of `B, because it is red`, `{"A", "C"}` of `A and C`.
    `None` where it cannot be told, as for `a cat`, `A cat` or `not B`.
    """
    text = without_brackets(without_markup(answer))
    if TOGETHER.fullmatch(text):
        letters = text.replace(" ", "")
        return frozenset(letters) if sorted(set(letters)) == list(letters) else None
    match = HEAD.match(text, BEFORE.match(text).end()) or HEAD.match(text)
    if match is None:
        return None
    letters, end = {match["letter"]}, match.end()
    while (following := NEXT.match(text, end)) and following["letter"].isupper() == match["letter"].isupper():
        letters.add(following["letter"])
        end = following.end()
    rest = text[end:]
    closed = text[end - 1] in ")]}>"
    if not closed and (not AFTER.match(rest) or match["letter"].islower() and re.match(r"\s+\w", rest)):
        return None
    if not REASON.match(rest) and (LABEL.search(rest) or TAKEN_BACK.search(rest)):
        return None
    return frozenset(letter.upper() for letter in letters)
