"""Text without its markup: Markdown, LaTeX's text commands, HTML tags and full-width signs say nothing of an answer."""

import re
import unicodedata


# The full-width forms of ASCII, and what else stands for a sign of it.
SIGNS = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)}
SIGNS |= str.maketrans(
    "\u3000\xa0\u202f\u2009\u2212【】〔〕〈〉《》⟨⟩“”„「」『』‘’", "    -[][]<><><>" + 7 * '"' + "''"
)
SIGNS |= str.maketrans({"。": ". ", "、": ", ", "→": "->", "\u200b": "", "\u200e": "", "\ufeff": ""})
SIGNS |= {0x24B6 + i: f"({chr(65 + i)})" for i in range(26)}  # a letter in a circle
LATEX_TEXT = re.compile(
    r"\\(?:text|mathrm|mathbf|mathsf|mathit|mathtt|operatorname|mbox|emph|underline|boldsymbol|textcolor\{\w+\}|color\{\w+\})[a-z]{0,2}\s*\{([^{}]*)\}"
)
LATEX_STYLE = re.compile(
    r"\\(?:bf|rm|it|sf|tt|bfseries|displaystyle|left|right|quad|qquad)(?![A-Za-z])|\\[,;:!]|~(?=\S)"
)
TAGS = re.compile(r"</?(?:b|strong|i|em|u|p|br|span|code|div|mark|center|font)(?:\s[^<>]*)?/?>")
EMPHASIS = [
    (re.compile(r"(?<![\w)\]])\*\*|\*\*(?![\w(\[])"), ""),  # elsewhere it is a power
    (re.compile(r"(?<!\w)__(?=\S)|(?<=\S)__(?!\w)"), ""),
    (re.compile(r"(?<![\w)\]*])\*(?=[^\s*])([^*\n]*[^\s*])\*(?![\w(\[*])"), r"\1"),
    (re.compile(r"(?<!\w)_(?=[^\s_])([^_\n]*[^\s_])_(?!\w)"), r"\1"),
    (re.compile(r"`+"), ""),
    (re.compile(r"^[ \t]*(?:#{1,6}|>|[-*•])[ \t]+", re.MULTILINE), ""),
]
BRACKETS = {"(": ")", "[": "]", "{": "}", "<": ">", '"': '"', "'": "'", "$": "$", r"\(": r"\)", r"\[": r"\]"}


def without_markup(text: str) -> str:
    """A text as its reader sees it, formulas aside."""
    text = unicodedata.normalize("NFC", text).translate(SIGNS).replace("&nbsp;", " ")
    while (bare := LATEX_TEXT.sub(r"\1", text)) != text:
        text = bare
    text = TAGS.sub("", LATEX_STYLE.sub(" ", text))
    for pattern, replacement in EMPHASIS:
        text = pattern.sub(replacement, text)
    return text


def without_brackets(text: str) -> str:
    """A text without the brackets, quotes and dollars around all of it, and without the stop at its end."""
    text = text.strip().rstrip(".,;!:").strip()
    for opening, closing in BRACKETS.items():
        inner = text[len(opening) : -len(closing)]
        if text.startswith(opening) and text.endswith(closing) and len(text) > len(opening + closing):
            if opening not in inner and closing not in inner:
                return without_brackets(inner)
    return text


def comparable(text: str) -> str:
    """A text but for markup, brackets, case, blanks, an article and a stop: what two equal answers have in common."""
    words = without_brackets(without_markup(text)).casefold().split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


REASON = re.compile(
    r"[,;]?\s*\b(?:because|since|as it|as the|due to|given that|so that|which is|which are)\b"
    r"|[,;]?\s*(?:因为|由于|理由|所以|原因)"
    r"|[.;!?](?:\s+(?=\S)|$)|\s+(?:--|[–—])\s+|\n",
    re.IGNORECASE,
)


def without_reason(text: str) -> str:
    """An answer up to its reason or its first sentence's end: `9` of `9, because 4 + 5 is 9`."""
    return REASON.split(text.strip(), maxsplit=1)[0].strip().rstrip(".,;:")
