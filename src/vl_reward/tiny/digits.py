"""Handwritten digits as visual questions with verifiable answers.

scikit-learn ships 1,797 scanned handwritten digits of 8 x 8 pixels (UCI "Optical Recognition of Handwritten Digits").
Two of them are drawn on one canvas, or on two images, and a question is asked whose answer needs both to be read. The
scans are divided once, by image, so that no handwriting seen in one split is seen in another.
"""

import random
from collections.abc import Iterator

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits


SPLITS = {"sft": slice(0, 900), "preference": slice(900, 1350), "test": slice(1350, 1797)}
SPLIT_SEED = 2505  # one split for every run: the base model is trained on "sft" once and shared between seeds
CELL = 56  # a digit fills 56 x 56 pixels, which is 4 visual tokens at Qwen2.5-VL's patch 14 and merge 2

QUESTIONS = {
    "sum": "What is the sum of the two digits?",
    "difference": "What is the difference of the two digits?",
    "larger": "Which digit is the larger?",
    "smaller": "Which digit is the smaller?",
    "first": "What is the first digit?",
    "second": "What is the second digit?",
    "equal": "Are the two digits equal?",
    "more": "Is the first digit larger than the second?",
}


def solve(kind: str, first: int, second: int) -> str:
    """The correct answer to the question `kind` of [`QUESTIONS`] about the digits `first` and `second`."""
    if kind == "equal":
        return "yes" if first == second else "no"
    if kind == "more":
        return "yes" if first > second else "no"
    numbers = {
        "sum": first + second,
        "difference": abs(first - second),
        "larger": max(first, second),
        "smaller": min(first, second),
        "first": first,
        "second": second,
    }
    return str(numbers[kind])


def respond(first: int, second: int, answer: str) -> str:
    """The response form: what is read, then the answer. `respond(4, 5, "9")` is `"I see 4 and 5. Answer: 9"`."""
    return f"I see {first} and {second}. Answer: {answer}"


def load_scans(split: str) -> dict[int, np.ndarray]:
    """The scans of one split, by digit: `{digit: array of shape (n, 8, 8), values 0 (paper) to 16 (ink)}`."""
    scans, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))[SPLITS[split]]
    return {digit: scans[order][labels[order] == digit].reshape(-1, 8, 8) for digit in range(10)}


def draw(scan: np.ndarray, rng: random.Random) -> Image.Image:
    """Draw a scan as dark ink on white in 56 x 56 pixels, turned, scaled and shifted a little, as `rng` decides."""
    ink = Image.fromarray((255 - scan * (255 / 16)).astype(np.uint8))
    size = rng.randint(38, 48)
    ink = ink.resize((size, size), Image.Resampling.BICUBIC).rotate(
        rng.uniform(-10, 10), Image.Resampling.BICUBIC, fillcolor=255
    )
    cell = Image.new("L", (CELL, CELL), 255)
    cell.paste(ink, (rng.randint(0, CELL - size), rng.randint(0, CELL - size)))
    return cell


def compose(split: str, seed: int) -> Iterator[dict]:
    """
    Compose questions without end, reproducibly. Half show the two digits side by side on one image, half on two images.
    Digits are drawn uniformly and independently, so the text of a response says nothing about whether it is correct
    (for "equal", half of the pairs are equal).

    Yields:
        `dict` with keys `"kind"`, `"first"`, `"second"`, `"question"`, `"answer"` and `"images"` (list of RGB images of
        112 x 56 pixels, or two of 56 x 56).
    """
    scans, rng = load_scans(split), random.Random(f"{split}-{seed}")
    while True:
        kind = rng.choice(list(QUESTIONS))
        first = rng.randrange(10)
        second = first if kind == "equal" and rng.random() < 0.5 else rng.randrange(10)
        cells = [draw(rng.choice(scans[digit]), rng) for digit in (first, second)]
        if rng.random() < 0.5:
            canvas = Image.new("L", (2 * CELL, CELL), 255)
            canvas.paste(cells[0], (0, 0))
            canvas.paste(cells[1], (CELL, 0))
            cells = [canvas]
        yield {
            "kind": kind,
            "first": first,
            "second": second,
            "question": QUESTIONS[kind],
            "answer": solve(kind, first, second),
            "images": [cell.convert("RGB") for cell in cells],
        }


def compose_text(seed: int) -> Iterator[dict]:
    """The same questions without an image: the digits are named in the question. Keys as in [`compose`]."""
    rng = random.Random(f"text-{seed}")
    while True:
        kind, first, second = rng.choice(list(QUESTIONS)), rng.randrange(10), rng.randrange(10)
        second = first if kind == "equal" and rng.random() < 0.5 else second
        yield {
            "kind": kind,
            "first": first,
            "second": second,
            "question": f"The digits are {first} and {second}. {QUESTIONS[kind]}",
            "answer": solve(kind, first, second),
            "images": [],
        }
