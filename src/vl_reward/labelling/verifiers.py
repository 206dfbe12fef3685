"""Whether a response gives the correct answer, without a model."""

import re


# The last of these that a response holds. The embedded world says "Answer:", MPO's prompts "Final Answer:".
ANSWER = re.compile(r"(?:final answer|answer|答案)\s*[:：]\s*(?P<answer>[^\n]+)", re.IGNORECASE)


def final_answer(response: str) -> str | None:
    r"""What a response gives as its answer: in its last `\boxed{}`, or on the line of its last `Answer:`."""
    if (start := response.rfind(r"\boxed{")) >= 0:
        depth, begin = 0, start + len(r"\boxed")
        for position in range(begin, len(response)):
            depth += {"{": 1, "}": -1}.get(response[position], 0)
            if depth == 0:
                return response[begin + 1 : position].strip() or None
    answers = ANSWER.findall(response)
    return answers[-1].strip().strip("*").strip() or None if answers else None


def exact(response: str, answer: str) -> bool:
    """Whether the final answer is `answer`, but for case, blanks and a full stop."""
    given = final_answer(response)
    return given is not None and plain(given) == plain(answer)


def multiple_choice(response: str, answer: str) -> bool:
    """Whether the final answer begins with the letter `answer`, alone or in brackets: `B`, `(B)`, `B. a cat`."""
    match = re.match(r"\(?([A-Za-z])\)?(?:[.:)\s]|$)", final_answer(response) or "")
    return match is not None and match.group(1).upper() == answer.strip().strip("().").upper()


def mathematical(response: str, answer: str) -> bool:
    """Whether the final answer equals `answer` as mathematics: `1/2` is `0.5` (the math-verify package)."""
    from math_verify import parse, verify  # takes seconds to import, and is not needed by who does not verify so

    given = final_answer(response)
    return given is not None and verify(parse(f"${answer}$"), parse(f"${given}$"))


def plain(answer: str) -> str:
    return " ".join(answer.casefold().split()).rstrip(".")


VERIFIERS = {"exact": exact, "multiple_choice": multiple_choice, "mathematical": mathematical}
