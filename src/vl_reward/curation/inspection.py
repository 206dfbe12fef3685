"""What curation needs to know of each pair, in one pass that decodes every image once."""

import hashlib
import os
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import ProcessorMixin

from ..data.encoding import count_tokens, render
from ..data.image_similarity import perceptual_hash, pixel_hash, thumbnail
from ..data.images import image_key, load_image
from ..data.messages import as_messages, text_of
from ..data.text_keys import text_key
from .steps.text_similarity import signature, words_key


INSPECTION_FEATURES = Features(
    {
        "id": Value("string"),
        "prompt_key": Value("int64"),
        "prompt_words": Value("int64"),
        "chosen_key": Value("int64"),
        "rejected_key": Value("int64"),
        "answer_keys": List(Value("int64")),  # of the prompt with either response
        "pixel_hashes": List(Value("string")),
        "perceptual_hashes": List(Value("string")),  # in hexadecimal digits
        "thumbnails": List(Value("binary")),
        "signature": Value("binary"),  # of both responses
        "n_tokens": Value("int64"),  # of the longer conversation, with its visual tokens
        "n_characters": List(Value("int64")),  # of the chosen and the rejected response
        "bad_image": Value("string"),  # why, and which one
        "bad_image_path": Value("string"),
        "bad_text": Value("string"),
    }
)


def content_id(prompt: list[dict], chosen: str, rejected: str, pixel_hashes: list[str]) -> str:
    """A stable hash of what a pair shows and says: 16 hexadecimal digits of SHA-256."""
    roles = "\0".join(message["role"] for message in prompt)
    content = "\0".join([roles, text_of(prompt), chosen, rejected, *pixel_hashes])
    return hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def inspect_images(images: list[dict], known: dict) -> tuple[list[tuple], str | None, str | None]:
    """
    Look at the images of a row.

    Args:
        images (`list[dict]`):
            What [`located`] gives.
        known (`dict`):
            What was found of images that were decoded before. That of these is added.

    Returns:
        `tuple[list[tuple], str | None, str | None]`: pixel hash, perceptual hash and thumbnail of each; and of the
        first bad image why it cannot be used, and its path.
    """
    shown = []
    for image in images:
        path = image["path"] or "bytes"
        if image["bytes"] is None and path.startswith("refused: "):
            path, reason = path.removeprefix("refused: ").split(": ", 1)
            return [], reason, path
        key = image_key(image)
        if key not in known:
            try:
                decoded = load_image(image)
                hashes = pixel_hash(decoded), f"{perceptual_hash(decoded):016x}"
                known[key] = *hashes, thumbnail(decoded).tobytes()
            except ValueError as error:
                known[key] = f"could not be decoded: {error.__cause__}".replace(f"'{path}'", "the file")
        if isinstance(known[key], str):
            return [], known[key], os.path.relpath(path) if image["path"] else path
        shown.append(known[key])
    return shown, None, None


def count_pair_tokens(processor: ProcessorMixin, row: dict) -> int:
    """
    Tokens of the longer of the two conversations of `row`, a pair in `PAIR_FEATURES`, as [`encode_conversations`] makes
    them with `processor`.

    Raises:
        ValueError: For text with control tokens, which the collator would refuse, too.
    """
    lengths = []
    for side in ("chosen", "rejected"):
        text = render(processor, row["source"], as_messages(row["prompt"], row[side]), row["images"])
        lengths.append(count_tokens(processor, row["source"], [text], row["images"]))
    return max(lengths)


def inspect_batch(batch: dict[str, list], processor: ProcessorMixin | None) -> dict[str, list]:
    """A batch in [`PAIR_FEATURES`] to a batch in [`INSPECTION_FEATURES`]. Without `processor`, no token is counted."""
    rows, known = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)], {}
    inspected = []
    for row in rows:
        prompt, chosen, rejected = (text_of(row[key]) for key in ("prompt", "chosen", "rejected"))
        shown, bad_image, bad_image_path = inspect_images(row["images"], known)
        pixels, perceptual, thumbnails = ([of_image[k] for of_image in shown] for k in range(3))
        n_tokens, bad_text = None, None
        if processor is not None and bad_image is None:
            try:
                n_tokens = count_pair_tokens(processor, row)
            except ValueError as error:
                bad_text = str(error)
        inspected.append(
            {
                "id": content_id(row["prompt"], chosen, rejected, pixels),
                "prompt_key": text_key(prompt),
                "prompt_words": words_key(prompt),
                "chosen_key": text_key(chosen),
                "rejected_key": text_key(rejected),
                "answer_keys": [text_key(prompt, chosen), text_key(prompt, rejected)],
                "pixel_hashes": pixels,
                "perceptual_hashes": perceptual,
                "thumbnails": thumbnails,
                "signature": signature(chosen, rejected).tobytes(),
                "n_tokens": n_tokens,
                "n_characters": [len(chosen), len(rejected)],
                "bad_image": bad_image,
                "bad_image_path": bad_image_path,
                "bad_text": bad_text,
            }
        )
    return {key: [row[key] for row in inspected] for key in INSPECTION_FEATURES}


class PairInspection:
    """
    Inspects pairs.

    Args:
        processor ([`~transformers.ProcessorMixin`], *optional*):
            Counts tokens and knows the control tokens. Without it neither is looked at.
        num_proc (`int`, *optional*):
            Processes that decode images and hash texts.
    """

    def __init__(self, processor: ProcessorMixin | None = None, num_proc: int | None = None):
        self.processor, self.num_proc = processor, num_proc

    def __call__(self, pairs: Dataset, work_dir: Path) -> Dataset:
        """
        Args:
            pairs (`Dataset`):
                Pairs in `PAIR_FEATURES`.
            work_dir (`Path`):
                Where intermediate files go.

        Returns:
            `Dataset`: one row in [`INSPECTION_FEATURES`] per pair, in the same order.
        """
        columns = ["source", "prompt", "images", "chosen", "rejected"]
        return pairs.select_columns(columns).map(
            inspect_batch,
            batched=True,
            batch_size=100,
            remove_columns=columns,
            features=INSPECTION_FEATURES,
            fn_kwargs={"processor": self.processor},
            num_proc=self.num_proc if self.num_proc and len(pairs) > 1000 else None,
            cache_file_name=str(work_dir / "inspected.arrow"),
            load_from_cache_file=False,
            desc="Images, texts and lengths",
        )


class Signatures:
    """
    The signatures that [`PairInspection`] wrote, each read where it is asked for: a million take half a gigabyte, and
    only those of pairs with a common prompt are looked at.

    Args:
        inspected (`Dataset`):
            What [`PairInspection`] says of each pair, in its file.
    """

    def __init__(self, inspected: Dataset):
        assert inspected._indices is None  # else rows of the file would not be those of the dataset
        self.column = inspected.data.column("signature")

    def __getitem__(self, i: int) -> np.ndarray:
        """Of shape `(128,)`, `uint32`."""
        return np.frombuffer(self.column[i].as_buffer(), np.uint32)
