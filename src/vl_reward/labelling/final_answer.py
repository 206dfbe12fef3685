"""What a response gives as its answer, wherever and in whatever form it does."""

import re

from .plain_text import without_markup


THOUGHTS = re.compile(
    r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)|\A.*</(?:think|thinking|thought|reasoning)>", re.DOTALL
)
BRACES = re.compile(r"\\(?:boxed|fbox)\s*\{|[{}]")
TAGGED = re.compile(
    r"<(?:final_?)?answer>(?P<tag>.*?)(?:</(?:final_?)?answer>|\Z)"
    r"|<\|begin_of_box\|>(?P<box>.*?)(?:<\|end_of_box\|>|\Z)",
    re.DOTALL | re.IGNORECASE,
)
# "The answer is in the picture" gives none.
NOT_THAT = r"""(?!\s*(?:not|n't|in|on|at|that|wrong|incorrect|correct|right|obtained|given|found|based|supported|clear
    |obvious|shown|visible|located|because|as\s+follows|unknown|错|不)(?!\w))"""
ADVERB = r"(?:\s*,?\ ?(?:therefore|thus|hence|indeed|clearly|likely|probably|definitely|then),?(?=\s))?"
# The embedded world says "Answer:", MPO's prompts "Final Answer:". What follows may be on a line of its own, or be a
# formula of several lines.
LINE = re.compile(
    rf"""(?:(?<![A-Za-z])(?:answer|ans|solution)\b\.?["']?
            (?:\ (?:to|for|of)\b[^\n.:]{{0,100}}?|,?\ (?:choice|option|letter|here|then|therefore|thus),?)?
            \s*(?:[:=]>?|-+>|-+\s|\b(?:is|would\ be|should\ be|must\ be)\b\s*:?{NOT_THAT}{ADVERB})
        |\b(?:selected\ |chosen\ )?(?:option|choice|selection|final|response|result|conclusion)\s*:(?=\s*\(?[A-Z]\b)
        |\b(?:it|this)\ (?:is|should\ be|must\ be)\s+(?=(?:option\ )?\(?[A-Z]\)?\.?\s*(?:\n|$))
        |\b(?:correct|right|best|final|my)\ (?:option|choice|letter)\s*
            (?::|\b(?:is|would\ be|should\ be|must\ be)\b\s*:?{NOT_THAT})
        |(?:^|\n)[ \t]*(?:final\ |my\ )?answer[ \t]*\n
        |\bfinal\ answer[ \t]+(?=\(?[A-Z]\b|-?\d)
        |\b(?:I|we)(?:'d|\ would|\ will)?\ (?:choose|pick|select|go\ with)\b(?:\ (?:option|answer|choice))?
        |(?:答案|正确选项|正确的选项|最终结果)\s*(?:应该|应当|应|就|可能)?\s*(?:[:=]|(?:是|为|选择|选)\s*:?{NOT_THAT})
        |(?:答案|正确选项|选择|选)\s*:?\s*(?=[\[(]?[A-Z][\])]?(?![A-Za-z]))
        |(?:^|\n|\.\ )[ \t]*答\s*:)
        \s*(?=(?P<answer>\$\$.+?\$\$|\\\[.+?\\\]|[^\n]+))""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
STATED = re.compile(
    r"(?<![\w'])(?<!and )(?<!or )(?<![A-Z)], )(?<!& )[\[(]?(?P<letter>[A-Z])[\])]? is (?:indeed |therefore )?"
    r"(?:the )?(?:most )?(?:correct|right|best|answer)\b"
    r"|(?:选项)\s*(?P<one>[A-Z])\s*(?:是)?(?:正确|对)|(?<![A-Za-z,和与])(?P<two>[A-Z])\s*(?:选项|项)?\s*(?:是)?正确"
)
REASONED = re.compile(r"\b(?:because|since)\b|因为|由于", re.IGNORECASE)
# A response, or its last line, that is nothing but an answer: a letter, a number or a formula.
BARE = re.compile(
    r"(?:[\[(]?[A-Za-z][\])]?|\$[^$]+\$|\\\(.+\\\)|\\\[.+\\\]"
    r"|[-+]?[$€£¥]?\d[\d,.]*(?:/\d+)?\s?(?:%|°C?|[A-Za-z]+|[\u4e00-\u9fff]{1,2})?[²³]?)[.!]?"
)
# A whole response may also be an option with its text, or one word.
BARE_RESPONSE = re.compile(
    r"[A-Z](?:[.:),]\s| because\b| since\b| -+ ).+|(?:[Oo]ption|[Cc]hoice) \(?[A-Z]\)?\b.*|[\[(][A-Z][\])].+"
    r"|[^\s\u3000-\u9fff]{1,30}|[\u4e00-\u9fff]{1,3}[.!]?\s?"
)


def final_answer(response: str) -> str | None:
    r"""
    What a response gives as its answer, `None` if it gives none. The last mark counts: `\boxed{}`, an `<answer>`,
    `Answer:`, "the answer is", "B is correct", and their like in Chinese. Without a mark, a response that is nothing
    but an answer is one, and so is such a last line. Thoughts do not count.
    """
    text = visible(response)
    if (marked := marked_answer(text)) is not None or LINE.search(text + " ") or "boxed" in text:
        return marked
    lines = text.splitlines() or [""]
    bare = BARE.fullmatch(lines[-1].strip()) or len(lines) == 1 and BARE_RESPONSE.fullmatch(text)
    return trimmed(text.splitlines()[-1]) if bare and not text.endswith(":") else None


def visible(response: str) -> str:
    """A response without its thoughts and its markup."""
    return without_markup(THOUGHTS.sub("", response)).strip()


def marked_answer(text: str) -> str | None:
    """What the last mark in a text without markup points to."""
    closed = [*boxes(text), *((m.start(), m.end(), m["tag"] or m["box"] or "") for m in TAGGED.finditer(text))]
    marks = [one for one in closed if not any(start < one[0] < end for start, end, _ in closed)]
    lines = [(m.start(), m.end("answer"), m["answer"]) for m in LINE.finditer(text)]
    lines = [one for one in lines if not REASONED.search(text, text.rfind("\n", 0, one[0]) + 1, one[0])]
    marks += [one for one in lines if not any(start < one[0] < end for start, end, _ in closed)]
    for match in STATED.finditer(text):
        if not any(start < match.start() < end for start, end, _ in closed + lines):
            marks.append((match.start(), match.end(), match["letter"] or match["one"] or match["two"]))
    if not marks:
        return None
    content = max(marks)[2]
    return marked_answer(content) or trimmed(content)


def boxes(text: str) -> list[tuple[int, int, str]]:
    r"""Start, end and content of each `\boxed{}` that is closed."""
    found, opened = [], []
    for match in BRACES.finditer(text):
        if match.group() != "}":
            opened.append(match)
        elif opened and len((start := opened.pop()).group()) > 1:
            found.append((start.start(), match.end(), text[start.end() : match.start()]))
    return found


def trimmed(answer: str) -> str | None:
    """An answer without what is around it, `None` if nothing is left."""
    answer = answer.strip().strip("*").lstrip("}").strip()
    for opening, closing in (("$$", "$$"), ("$", "$"), ('"', '"'), (r"\[", r"\]"), (r"\(", r"\)")):
        inner = answer[len(opening) : -len(closing)]
        if answer.startswith(opening) and answer.endswith(closing) and opening not in inner and closing not in inner:
            answer = inner.strip()
    if answer.endswith("}") and answer.count("}") > answer.count("{"):  # of JSON
        answer = answer[:-1].strip().strip("\"'")
    return answer if re.search(r"\w|[^\x00-\x7f]", answer) else None
