"""Texts of models and data sets as a page may show them: nothing hidden, nothing that turns the line around."""

import json
import math
import unicodedata


def visible(text: str) -> str:
    """Control characters, bidirectional and other invisible marks, and half surrogates are shown by their numbers."""
    return "".join(map(shown, text)) if not (text.isascii() and text.isprintable()) else text


def shown(character: str) -> str:
    """A character, or its number where it would not be seen: `⟨U+202E⟩`. Line breaks and tabs stay."""
    hidden = unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return f"\u27e8U+{ord(character):04X}\u27e9" if hidden and character not in "\n\t" else character


def script_json(data) -> str:
    """JSON that ends no script element, whatever is in it."""
    text = json.dumps(finite(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def finite(data):
    """JSON has no NaN and no infinities: a diverged loss is kept as its name."""
    if isinstance(data, dict):
        return {key: finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [finite(value) for value in data]
    return str(data) if isinstance(data, float) and not math.isfinite(data) else data
