"""
Formulas, as math-verify reads them. Its extraction from a whole response takes a box before a later answer, a number
out of prose, and letters after a number for a unit, so that 3ab is 3: it is given what [`final_answer`] found.
"""

import re
import threading
from functools import lru_cache
from typing import Any

from .plain_text import without_markup
from .quantities import is_unit


TIMEOUT_SECONDS = 5
LONGEST = 500  # characters
# Words that a formula may have. Of others, math-verify would multiply the letters.
WORDS = re.compile(
    r"\\(?:begin|end)\{[a-z]+\*?\}|\\[A-Za-z]+|(?<![A-Za-z])(?:a?(?:sin|cos|tan|cot|sec|csc)h?|arc(?:sin|cos|tan)|log|ln|exp|sqrt|pi|and|or|max|min"
    r"|mod|infty|inf)(?![A-Za-z])"
)
# What stands for a command of LaTeX.
FRACTIONS = dict(zip("½⅓⅔¼¾⅕⅖⅗⅘⅙⅛⅜⅝⅞", "12 13 23 14 34 15 25 35 45 16 18 38 58 78".split(), strict=True))
SIGNS = {sign: rf"\frac{{{number[0]}}}{{{number[1]}}}" for sign, number in FRACTIONS.items()}
SIGNS |= {
    "²": "^2",
    "³": "^3",
    "**": "^",
    "·": r"\cdot ",
    "×": r"\times ",
    "÷": r"\div ",
    "∞": r"\infty ",
    "≤": r"\le ",
}
SIGNS |= {"≥": r"\ge ", "π": r"\pi ", "±": r"\pm "}
ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\w+))|\bsqrt\s*\(([^()]*)\)")
MIXED = re.compile(r"(?<![\w.])(\d+)\s+(\d+)/(\d+)(?![\w.])")
PROSE = re.compile(r"[A-Za-z]{3,}|[A-Za-z] [A-Za-z]{2}|[\u4e00-\u9fff]")
WITH_UNIT = re.compile(r"(?P<formula>.*(?:[\d})π]|\\pi))(?P<blank>\s*)(?P<unit>[^\d\s{}()π][^{}()]*)", re.DOTALL)

# What one text may have, and another that means the same may not.
NOTATIONS = [re.compile(r"[<>≤≥]|\\(?:le|ge|leq|geq|lt|gt)(?![a-z])"), re.compile("matrix")]
NOTATIONS += [re.compile(r"log(?![a-z_])", re.IGNORECASE), re.compile(r"^[A-Z]\s*\(.*,.*\)$", re.IGNORECASE)]


@lru_cache(maxsize=4096)  # the correct answer is parsed once, not once per response
def formula(text: str) -> Any:
    """The meaning of a text that is a formula, but for a unit; `None` where it is none."""
    from math_verify import LatexExtractionConfig, parse  # takes seconds to import: only for who verifies so
    from math_verify.parser import NormalizationConfig

    text = without_markup(text[: 2 * LONGEST]).strip().strip("$").strip().rstrip(".")
    if (match := WITH_UNIT.fullmatch(text)) and len(match["unit"]) > 1 and is_unit(match["unit"], bool(match["blank"])):
        text = match["formula"]
    for sign, command in SIGNS.items():
        text = text.replace(sign, command)
    text = MIXED.sub(
        r"\1\\frac{\2}{\3}", ROOT.sub(lambda match: rf"\sqrt{{{''.join(filter(None, match.groups()))}}}", text)
    )
    if len(text) > LONGEST or PROSE.search(WORDS.sub(" ", text)):
        return None
    normalization = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="all", equations=False
    )
    config = LatexExtractionConfig(normalization_config=normalization)
    found = parse(f"${text}$", [config], "no_fallback", parsing_timeout=timeout_seconds())
    return found[0] if found else None


def number_in(text: str) -> Any:
    """What math-verify extracts of prose; `None` if nothing."""
    from math_verify import parse

    found = parse(text[-LONGEST:], fallback_mode="no_fallback", parsing_timeout=timeout_seconds())
    return found[0] if found else None


def same_formula(given: Any, answer: Any) -> bool | None:
    """Whether two of [`formula`] are equal; `None` where one is none, or it cannot be found out."""
    from math_verify import verify
    from math_verify.errors import TimeoutException

    if given is None or answer is None:
        return None
    try:
        return verify(answer, given, timeout_seconds=timeout_seconds(), raise_on_error=True)
    except (Exception, TimeoutException):  # the latter is no Exception
        return None


def may_be_same(given: str, answer: str) -> bool:
    """
    Whether two texts that are not equal by [`same_formula`] may mean the same: one is a rounded value of the other, has
    a comma where the other has a point, says an interval by its bounds, a column by its entries, or a point by its
    name; and whoever writes `log` has a base in mind.
    """
    for one, other in ((given, answer), (answer, given)):
        if any(pattern.search(one) and not pattern.search(other) for pattern in NOTATIONS):
            return True
        if re.fullmatch(r"-?\d+,\d{1,2}", one) and one.replace(",", ".") == other:
            return True
        if (digits := re.fullmatch(r"-?\d*\.(\d{2,})", one)) and (value := number_of(other)) is not None:
            if abs(value - float(one)) <= 0.5001 * 10 ** -len(digits[1]):
                return True
    return False


def number_of(text: str) -> float | None:
    """The value of a formula, `None` where it has none."""
    try:
        return float(formula(text))
    except (TypeError, ValueError, AttributeError, OverflowError):
        return None


def timeout_seconds() -> int | None:
    """math-verify's timeouts are signals, which only the main thread may set."""
    return TIMEOUT_SECONDS if threading.current_thread() is threading.main_thread() else None
