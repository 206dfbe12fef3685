"""
Whether a response gives the correct answer, without a model. A verifier says `True` or `False`; `False`, too, where no
answer is given. It says `None` where one is given in a form that it cannot read: to call that incorrect would train
against right answers.

The correct answer is a string, a number, a boolean or a list of those, each of which is accepted.
"""

import hashlib
import math
import re
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from ..data.encoding import named_row
from .final_answer import final_answer, visible
from .formulas import LONGEST, formula, may_be_same, number_in, same_formula
from .option_letters import option_letters
from .plain_text import comparable, without_markup, without_reason
from .quantities import Quantity


YES_AND_NO = {True: ["yes", "true", "是", "是的", "对", "正确"], False: ["no", "false", "否", "不是", "不对", "错误"]}
WORDS = [word for words in YES_AND_NO.values() for word in words]
NUMBER_WORDS = "zero one two three four five six seven eight nine ten eleven twelve".split()
NUMBER_WORDS = {word: str(number) for number, word in enumerate(NUMBER_WORDS)}
NUMBER_WORDS |= {word: str(number) for number, word in enumerate("零一二三四五六七八九十")}


def exact(response: str, answer: Any) -> bool | None:
    """
    Whether the final answer is `answer`, but for markup, case, blanks, the unit of a number, and a reason after it. An
    answer that holds more than `answer`, or a part of it, cannot be read.
    """
    accepted = accepted_answers(answer)
    if (given := final_answer(response)) is None or not accepted:
        return None if not accepted or told(response, accepted) else False
    return either(same_text(given, one) for one in accepted)


def multiple_choice(response: str, answer: Any) -> bool | None:
    """
    Whether the final answer names the option `answer` and no other: `B`, `(B)`, `B. a cat`, `B, because it is red`.
    Where `answer` has several letters, as `A, C`, all of them have to be named.

    Raises:
        ValueError: If `answer` names no option.
    """
    accepted = accepted_answers(answer)
    letters = [option_letters(one) for one in accepted]
    if accepted and not any(letters):
        raise ValueError(
            f"the answer is {answer!r}, and `multiple_choice` compares the letters of options. Write it as a letter, "
            "or choose another `verifier`."
        )
    if (given := final_answer(response)) is None or not accepted:
        return None if not accepted or mentioned(response, letters) else False
    if any(comparable(given) == comparable(one) for one in accepted):
        return True
    named = option_letters(given)
    return None if named is None else named in letters


def mathematical(response: str, answer: Any) -> bool | None:
    """Whether the final answer equals `answer` as mathematics: `1/2` is `0.5` (the math-verify package)."""
    accepted = accepted_answers(answer)
    if not accepted:
        return None
    if (given := final_answer(response)) is None:
        # It may be there, unmarked, where math-verify finds it.
        line = visible(response).rpartition("\n")[2]
        found = number_in(line)
        there = any(same_formula(found, formula(one)) or same_value(line, one) for one in accepted)
        return None if there or told(response, accepted) else False
    return either(same_value(given, one) for one in accepted)


VERIFIERS = {"exact": exact, "multiple_choice": multiple_choice, "mathematical": mathematical}


def either(verdicts: Iterable[bool | None]) -> bool | None:
    """`True` if one of the verdicts is, else `None` if one of them is."""
    verdicts = list(verdicts)
    return True if True in verdicts else None if None in verdicts else False


def accepted_answers(answer: Any) -> list[str]:
    """
    The accepted answers as strings, none if a prompt has no answer: `None`, NaN, and what is empty. 0 and `False` are
    answers.
    """
    if isinstance(answer, (list, tuple, set)):
        return [text for one in answer for text in accepted_answers(one)]
    if isinstance(answer, bool):
        return YES_AND_NO[answer]
    if answer is None or isinstance(answer, float) and math.isnan(answer):
        return []
    if isinstance(answer, dict):
        raise ValueError(f"the answer is {answer!r}: a string, a number, a boolean, or a list of those is needed.")
    return [str(answer)] if str(answer).strip() else []


def same_text(given: str, answer: str) -> bool | None:
    """[`exact`] for one accepted answer."""
    texts = [comparable(given), comparable(without_reason(given)), comparable(without_label(given))]
    texts = [NUMBER_WORDS.get(text, text) for text in texts]
    wanted = NUMBER_WORDS.get(comparable(answer), comparable(answer))
    if wanted in texts or tight(wanted) in map(tight, texts):
        return True
    if wanted in WORDS and (begun := re.match(r"([^\s,.;:!]+)[,.;:!]", texts[0] + ".")) and begun.group(1) in WORDS:
        return begun.group(1) == wanted
    quantities = [Quantity.read(texts[1]), Quantity.read(wanted)]
    if all(quantities):
        return quantities[0].equals(quantities[1])
    return None if holds(texts[1], wanted) or holds(wanted, texts[1]) else False


def tight(text: str) -> str:
    """A text without blanks at signs: `(1, 2)` is `(1,2)`."""
    return re.sub(r"\s*([^\w\s])\s*", r"\1", text)


def holds(text: str, part: str) -> bool:
    """Whether `part` is in `text`, as words of their own."""
    return part != "" and re.search(rf"(?<![a-z0-9]){re.escape(part)}(?![a-z0-9])", text) is not None


def told(response: str, accepted: list[str]) -> bool:
    """Whether the last line has one of the accepted answers in it: without a mark, it may be what is answered."""
    line = comparable(visible(response).rpartition("\n")[2])
    return any(holds(line, comparable(one)) for one in accepted)


def mentioned(response: str, options: list[frozenset | None]) -> bool:
    """Whether the last line has the letters of one of the options: without a mark, they may be the answer."""
    words = re.findall(r"(?<![A-Za-z'])[A-Z](?![A-Za-z'])", visible(response).rpartition("\n")[2])
    return any(letters and letters <= set(words) for letters in options)


def same_value(given: str, answer: str) -> bool | None:
    """[`mathematical`] for one accepted answer."""
    factorial = re.search(r"\d!$", given) is not None  # or enthusiasm
    if as_written(given) == as_written(answer):
        return None if factorial and not answer.endswith("!") else True
    given = without_label(given) if factorial else without_reason(without_label(given))
    if len(given) < LONGEST and (
        said := re.fullmatch(r"[^=]*[A-Za-z]{2}[^=]*?(?:=|\bis\b)([^=]+)", given)
    ):  # the area is 5
        given = said.group(1).strip()
    texts = [NUMBER_WORDS.get(comparable(text), text) for text in (given, answer)]
    quantities = [Quantity.read(text) for text in texts]
    if all(quantities):
        equal = quantities[0].equals(quantities[1])
        return None if equal is False and may_be_same(*texts) else equal
    verdict = same_formula(*map(formula, texts))
    # What is at a number may be a unit that is not known.
    unsure = factorial or any(re.match(r"\d[\d.,]*\s+(?!or\b|and\b)[A-Za-z]|[A-Za-z]+\$", text) for text in texts)
    return None if verdict is False and (unsure or may_be_same(*texts)) else verdict


def as_written(text: str) -> str:
    """A text but for markup, case, blanks and a stop. Brackets say which interval it is."""
    return "".join(without_markup(text).casefold().split()).strip("$.!")


def without_label(given: str) -> str:
    """An option's text, without its letter."""
    return re.sub(r"^\s*(?:\([A-Z]\)|[A-Z][.):])\s+(?=\S)", "", given)


def check_answers(verify: Callable, rows: Iterable[dict], needed: bool = False) -> None:
    """
    Read the answers of all rows, before anything is done with them.

    Args:
        verify (`Callable`):
            One of `VERIFIERS`.
        rows (`Iterable[dict]`):
            Rows with `answer`, and `id` to be named by.
        needed (`bool`, *optional*, defaults to `False`):
            Whether each has to have one.

    Raises:
        ValueError: With the row's id, for an answer that `verify` cannot read, or that is missing.
    """
    for number, row in enumerate(rows):
        with named_row(f"row {row.get('id', number)}"):
            if not accepted_answers(row.get("answer")) and needed:
                raise ValueError("it has no `answer` that a response could be compared with. Leave it out.")
            verify("", row.get("answer"))


def read_responses(verify: Callable, rows: Iterable[dict]) -> dict[str, list]:
    """
    The answer and the verdict of each response.

    Args:
        verify (`Callable`):
            One of `VERIFIERS`.
        rows (`Iterable[dict]`):
            Rows with `responses`, and `answer` where they have one. Without it, the verdicts are `None`.
    """
    rows = list(rows)
    return {
        "answers": [[final_answer(text) for text in row["responses"]] for row in rows],
        "is_correct": [[verify(text, row.get("answer")) for text in row["responses"]] for row in rows],
    }


def fingerprint(verifier: str) -> str:
    """A hash of a verifier's name and of the code that reads answers: verdicts of another are not taken for its own."""
    digest = hashlib.sha256(f"{verifier} {metadata.version('math-verify')}".encode())
    for name in ("final_answer", "formulas", "option_letters", "plain_text", "quantities", "verifiers"):
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()
