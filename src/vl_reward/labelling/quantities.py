"""Numbers with their units, in the ways in which they are written."""

import re
from dataclasses import dataclass
from fractions import Fraction

from .plain_text import without_brackets, without_markup


LONGEST = 200  # characters; Python reads no number of thousands of digits
NUMBER = (
    r"[-+]?(?:\d{1,3}(?:(?:,|\{,\}|\s)\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?:\s*/\s*0*[1-9]\d*|[eE][-+]?\d{1,3}(?!\w))?"
)
QUANTITY = re.compile(
    rf"(?:(?:about|approximately|around|roughly|exactly|大约|约|≈|\\approx)\s*)?(?:[a-z]\s*=\s*)?"
    rf"(?P<currency>\\?\$|[€£¥])?\s*(?P<number>{NUMBER})(?P<blank>\s*)(?P<unit>\D.*)?"
)
# How a unit is written, and the name by which two are compared.
UNITS = {
    "%": r"\\?%|percent|per cent|percentage|pct",
    "dollar": r"\\?\$|usd|dollars?|美元",
    "yuan": "¥|元|yuan|rmb",
    "euro": "€|euros?",
    "pound": "£|pounds?",
    "degree": r"°|\^\\?circ|\^\{\\circ\}|\\circ|degrees?|deg|度",
    "celsius": r"°\s?c|degrees celsius|摄氏度",
    "fahrenheit": r"°\s?f|degrees fahrenheit",
    "meter": "m|met(?:er|re)s?|米",
    "centimeter": "cms?|centimet(?:er|re)s?|厘米",
    "millimeter": "mm|millimet(?:er|re)s?|毫米",
    "kilometer": "km|kilomet(?:er|re)s?|千米|公里",
    "foot": "ft|foot|feet",
    "inch": "in|inch|inches",
    "gram": "g|grams?|克",
    "kilogram": "kgs?|kilograms?|千克|公斤",
    "second": "s|secs?|seconds?|秒",
    "minute": "mins?|minutes?|分钟",
    "hour": "h|hrs?|hours?|小时",
    "liter": "l|lit(?:er|re)s?|升",
    "milliliter": "ml|millilit(?:er|re)s?|毫升",
    "volt": "(?-i:V)|volts?",
    "newton": "(?-i:N)|newtons?",
    "joule": "(?-i:J)|joules?",
    "watt": "(?-i:W)|watts?",
}
SHORT = r"(?:[a-zμΩ]{1,4}\s?(?:\^?\{?-?[23]\}?|[²³])?)"
# Known units, those made of them (m/s^2), words, and Chinese measure words.
KNOWN = re.compile("|".join(f"(?:{unit})" for unit in UNITS.values()), re.IGNORECASE)
MADE = re.compile(
    rf"(?:cm|mm|km|m|ft|in|kg|g|mg|mph|ml|kwh|hz|khz|mhz|gb|mb|pa|kpa|mol|am|pm|units?)\s?(?:\^?\{{?[23]\}}?|[²³])?"
    rf"|{SHORT}(?:/|·| per ){SHORT}|(?:cm|km|m|kg)\s?(?:·\s?)?[a-z]\^\{{?-\d\}}?",
    re.IGNORECASE,
)
WORDS = re.compile(r"[A-Za-z]{3,}(?:[ -][A-Za-z]{2,}){0,2}|[\u4e00-\u9fff]{1,4}")
# They make another number, or another answer, of what is before them.
NO_UNIT = re.compile(
    r"\b(?:or|and|to|not|no|nor|than|more|less|fewer|plus|minus|times|over|half|halves|dozen|hundred|thousand|million"
    r"|billion|trillion|sqrt|sin|cos|tan|log|exp|squared|cubed|mod|but|if|is|are|was)\b|[十百千万亿兆半或和至到多]",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Quantity:
    """
    Args:
        value (`Fraction`):
            The number.
        unit (`str`):
            What follows it, or the currency before it; empty where there is none.
    """

    value: Fraction
    unit: str

    @classmethod
    def read(cls, text: str) -> "Quantity | None":
        """The quantity that a text is, all of it: `1,234.5 cm`, `$5`, `50%`, `1/2`, `about 9 apples`."""
        match = QUANTITY.fullmatch(without_brackets(without_markup(text)))
        if match is None or len(text) > LONGEST or re.search(r"\d!$", text.strip()):  # a factorial
            return None
        unit = (match["unit"] or match["currency"] or "").strip()
        if unit and not is_unit(unit, bool(match["blank"])):
            return None
        number, _, divisor = re.sub(r"[{},\s]", "", match["number"]).partition("/")
        return cls(Fraction(number) / Fraction(divisor or 1), unit_name(unit))

    def equals(self, other: "Quantity") -> bool | None:
        """Whether two are the same; `None` where their units differ. 50% is 50, and 0.5."""
        if self.unit and other.unit and self.unit != other.unit:
            return None
        if self.value != other.value and (self.unit == "%") != (other.unit == "%"):
            percent, plain = (self, other) if self.unit == "%" else (other, self)
            return percent.value == 100 * plain.value
        return self.value == other.value


def is_unit(text: str, apart: bool) -> bool:
    """Whether a text after a number is a unit. One that is not known has to be `apart`: 3ab is no 3."""
    if KNOWN.fullmatch(text) or MADE.fullmatch(text):
        return True
    return (apart or text[0] > "\u3000") and WORDS.fullmatch(text) is not None and not NO_UNIT.search(text)


def unit_name(unit: str) -> str:
    """One name for all ways to write a unit."""
    for name, written in UNITS.items():
        if re.fullmatch(written, unit, re.IGNORECASE):
            return name
    return unit.casefold().replace("^", "").replace("²", "2").replace("³", "3").replace(" ", "").rstrip("s")
