"""Preference pairs about digits: a correct response against a corrupted one, or against one of the policy's own."""

import hashlib
import io
import itertools
import random
from collections.abc import Iterator

from datasets import Features, Image, List, Value

from ..inference.transformers_sampler import ResponseSampler
from ..labelling.verifiers import exact
from .digits import compose, respond, solve


MESSAGES = List({"role": Value("string"), "content": Value("string")})
PREFERENCE_FEATURES = Features(
    {
        "id": Value("string"),
        "source": Value("string"),
        "prompt": MESSAGES,
        "images": List(Image()),
        "chosen": MESSAGES,
        "rejected": MESSAGES,
    }
)
PROMPT_FEATURES = Features(
    {"id": Value("string"), "prompt": MESSAGES, "images": List(Image()), "answer": Value("string")}
)


def content_id(row: dict, *texts: str) -> str:
    """A stable hash of a composed question, its images and `texts`: 16 hexadecimal digits."""
    digest = hashlib.sha256("\0".join([row["question"], *texts]).encode())
    for image in row["images"]:
        digest.update(image.tobytes())
    return digest.hexdigest()[:16]


def corrupt(row: dict, rng: random.Random, hard: bool = False) -> tuple[str, str]:
    """
    An incorrect response to a question, as `(name of the error, response)`:

    - `misread`: another digit is read, and the answer follows from it, so only the picture shows the error. Both
      responses of such a pair are equally likely as texts: "equal" is left out since its digits are not independent.
    - `wrong_answer`: the digits are read correctly, and the answer does not follow.
    - `wrong_format`: no answer is given.

    `hard` makes most of the errors `wrong_answer`, and half of those such as a policy makes: off by one or two, or the
    answer to another question.
    """
    first, second, kind = row["first"], row["second"], row["kind"]
    shares = [0.4, 0.55, 0.05] if hard else [0.65, 0.3, 0.05]
    error = rng.choices(["misread", "wrong_answer", "wrong_format"], shares)[0]
    if error == "misread" and kind != "equal":
        if rng.random() < 0.5:
            first = rng.choice([digit for digit in range(10) if digit != first])
        else:
            second = rng.choice([digit for digit in range(10) if digit != second])
        return error, respond(first, second, solve(kind, first, second))
    if error == "wrong_format":
        return error, f"I see {first} and {second}."
    if kind in ("equal", "more"):
        return "wrong_answer", respond(first, second, "no" if row["answer"] == "yes" else "yes")
    wrong = range(19 if kind == "sum" else 10)
    if hard and rng.random() < 0.5:
        slips = {first, second, first + second, abs(first - second)}
        slips |= {int(row["answer"]) + step for step in (-2, -1, 1, 2)}
        wrong = sorted(slip for slip in slips if slip >= 0)
    return "wrong_answer", respond(
        first, second, str(rng.choice([number for number in wrong if str(number) != row["answer"]]))
    )


def preference_row(row: dict, source: str, rejected: str) -> dict:
    """A composed question (`row`) with the correct response and `rejected`, in the preference format."""
    chosen = respond(row["first"], row["second"], row["answer"])
    return {
        "id": content_id(row, chosen, rejected),
        "source": source,
        "prompt": [{"role": "user", "content": row["question"]}],
        "images": row["images"],
        "chosen": [{"role": "assistant", "content": chosen}],
        "rejected": [{"role": "assistant", "content": rejected}],
    }


def corrupted_pairs(
    rows: Iterator[dict], n_questions: int, seed: int, per_question: int = 1, hard: bool = False
) -> list[dict]:
    """
    Pairs of a correct response and a corrupted one. The source is `image/<error>` or `text/<error>`.

    Args:
        rows (`Iterator[dict]`):
            What [`compose`] gives.
        n_questions (`int`):
            How many of them are taken.
        seed (`int`):
            Decides the errors.
        per_question (`int`, *optional*, defaults to `1`):
            The most different pairs of a question, which are next to each other.
        hard (`bool`, *optional*, defaults to `False`):
            As [`corrupt`] takes it.
    """
    rng, pairs = random.Random(seed), []
    for row in itertools.islice(rows, n_questions):
        modality = "image" if row["images"] else "text"
        errors = [corrupt(row, rng, hard) for _ in range(per_question)]
        sources = {rejected: f"{modality}/{error}" for error, rejected in errors}
        pairs += [preference_row(row, source, rejected) for rejected, source in sources.items()]
    return pairs


def policy_pairs(
    sampler: ResponseSampler, split: str, n_questions: int, seed: int, per_question: int = 1
) -> list[dict]:
    """
    Pairs of a correct response and the policy's own incorrect samples, of four that are drawn of each question.

    Args:
        sampler ([`ResponseSampler`]):
            Samples from the policy.
        split (`str`), seed (`int`):
            As [`compose`] takes them.
        n_questions (`int`):
            How many questions are asked.
        per_question (`int`, *optional*, defaults to `1`):
            The most pairs of a question.
    """
    rows = list(itertools.islice(compose(split, seed), n_questions))
    responses, finish_reasons = sampler([row["question"] for row in rows], [row["images"] for row in rows], 4)
    pairs = []
    for row, samples, reasons in zip(rows, responses, finish_reasons, strict=True):
        finished = dict.fromkeys(text for text, reason in zip(samples, reasons, strict=True) if reason == "stop")
        incorrect = [text for text in finished if text.strip() and not exact(text, row["answer"])]
        pairs += [preference_row(row, "image/policy_sample", text) for text in incorrect[:per_question]]
    return pairs


def shuffle_questions(pairs: list[dict], seed: int) -> list[dict]:
    """Shuffle `pairs` by `seed`, but keep those of a question together: it is computed once in a batch."""
    questions = [list(group) for _, group in itertools.groupby(pairs, key=lambda pair: id(pair["images"]))]
    random.Random(seed).shuffle(questions)
    return list(itertools.chain.from_iterable(questions))


def as_png(rows: list[dict]) -> list[dict]:
    """Encode the images of rows, each image once, as `datasets` stores them."""
    encoded = {}
    for row in rows:
        for image in row["images"]:
            if id(image) not in encoded:
                image.save(buffer := io.BytesIO(), "PNG", compress_level=1)
                encoded[id(image)] = {"bytes": buffer.getvalue(), "path": None}
    return [{**row, "images": [encoded[id(image)] for image in row["images"]]} for row in rows]


def prompt_rows(split: str, n: int, seed: int) -> list[dict]:
    """`n` prompts with their verifiable answers, of the questions that [`compose`] gives for `split` and `seed`."""
    return [
        {
            "id": content_id(row),
            "prompt": [{"role": "user", "content": row["question"]}],
            "images": row["images"],
            "answer": row["answer"],
        }
        for row in itertools.islice(compose(split, seed), n)
    ]
