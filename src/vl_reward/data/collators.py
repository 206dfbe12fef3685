"""Preference rows with images, with videos, with both or neither, to one batch: for a reward model, and for MPO."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from transformers.data.data_collator import DataCollatorMixin
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from .encoding import check_length, encode_conversations, load_columns, named_row, render, render_prompt, tokenize
from .messages import join_turns, split_pair
from .videos.video import Video
from .videos.video_source import videos_of


def read_pairs(examples: list[dict[str, Any]], names: list[str]) -> list[tuple[list[dict], list[dict], list[dict]]]:
    """[`split_pair`] of each row, and errors with its name."""
    pairs = []
    for name, row in zip(names, examples, strict=True):
        with named_row(name):
            pairs.append(split_pair(row.get("prompt"), row.get("chosen"), row.get("rejected")))
    return pairs


def images_of(row: dict[str, Any]) -> list | None:
    """A row's `images`, or its one `image`."""
    return [row["image"]] if row.get("images") is None and row.get("image") is not None else row.get("images")


@contextmanager
def named_batch(names: list[str]) -> Iterator[None]:
    """What goes wrong in no single row, too, has to be an error: a `StopIteration` would end the epoch."""
    try:
        yield
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(f"one of {', '.join(names)}: {type(error).__name__}: {error}") from error


@dataclass
class DataCollatorForVisionReward(DataCollatorMixin):
    """
    Data collator for vision-preference rows, all chosen responses first and then all rejected ones, the order that
    TRL's `RewardTrainer` splits its scores by.

    Each row is a dictionary in TRL's vision-preference format with the keys `"prompt"`, `"chosen"` and `"rejected"`
    (lists of messages, or plain strings for one turn; [`split_pair`] parts whole conversations), `"images"` and
    `"videos"` (lists, or `None` for none), and optionally `"margin"` (a float) and `"id"` (for error messages). Rows of
    one batch may hold different numbers of images and videos. Each distinct one is in the batch once: [`repeated`]
    makes of it what transformers' own models take.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        max_length (`int`, *optional*):
            Refuse a pair with a response longer than this many tokens, prompt and image tokens included.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of tensor to return. Only `"pt"` is supported.

    Raises:
        ValueError: What [`split_pair`] and [`encode_conversations`] refuse, with the row named.

    Example:
    ```python
    >>> collator = DataCollatorForVisionReward(processor)
    >>> batch = collator([{
    ...     "images": [image],
    ...     "prompt": [{"role": "user", "content": "What is the sum?"}],
    ...     "chosen": [{"role": "assistant", "content": "9"}],
    ...     "rejected": [{"role": "assistant", "content": "8"}],
    ... }])
    >>> batch["input_ids"].shape, batch["image_grid_thw"]  # one pair is two rows with one image
    (torch.Size([2, 35]), tensor([[1, 4, 8]]))
    >>> batch["image_numbers"]  # of the image in each row, which of the distinct ones it is
    tensor([0, 0])
    ```
    """

    processor: ProcessorMixin
    max_length: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        names = [f"row {row.get('id', '?')}" for row in examples]
        with named_batch(names):
            pairs, images = read_pairs(examples, names), list(map(images_of, examples))
            batch = encode_conversations(
                self.processor,
                [join_turns(pair[0], pair[side]) for side in (1, 2) for pair in pairs],
                images * 2,
                [f"{side} response of {name}" for side in ("chosen", "rejected") for name in names],
                self.max_length,
                list(map(videos_of, examples)) * 2,
            )
        if any(row.get("margin") is not None for row in examples):
            margins = [read_margin(name, row) for name, row in zip(names, examples, strict=True)]
            batch["margin"] = torch.tensor(margins, dtype=torch.float32)
        return batch


def read_margin(name: str, row: dict[str, Any]) -> float:
    """
    The margin of the pair called `name`.

    Raises:
        ValueError: If it is missing or not a finite number.
    """
    with named_row(name):
        margin = float("nan") if row.get("margin") is None else float(row["margin"])
        if not math.isfinite(margin):
            raise ValueError(f"`margin` is {row.get('margin')}, and other rows have one. Give each row a number.")
        return margin


@dataclass
class DataCollatorForMPO(DataCollatorForVisionPreference):
    """
    TRL's vision-preference collator, which refuses what TRL's would cut or let through. Rows are read as
    [`DataCollatorForVisionReward`] reads them, and prompts are rendered as a sampler sees them: an answer that a prompt
    has begun is part of the prompt, and what comes after it is learnt.

    Args:
        max_pair_length (`int`, *optional*):
            Refuse a pair with a response longer than this many tokens, prompt and image tokens included. TRL's
            `max_length` cuts: a response can lose all of its tokens, and the loss is then reported as 0.

    The batch has the rows' names under `"id"`, and `"ref_chosen_logps"` and `"ref_rejected_logps"` where rows do. Each
    distinct image and video is in it once.

    Raises:
        ValueError: For an empty response, control tokens in a message, an image or a video that cannot be decoded, or a
            pair that is too long. The row is named.
    """

    max_pair_length: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        names = [f"row {row.get('id', '?')}" for row in examples]
        with named_batch(names):
            pairs, columns = read_pairs(examples, names), [list(map(of, examples)) for of in (images_of, videos_of)]
            images, videos = load_columns(self.processor, names, *columns)
            # TRL takes plain strings for rendered ones.
            rows = [self.render_pair(*row) for row in zip(names, pairs, images, videos, strict=True)]
            collator = DataCollatorForVisionPreference(PromptProcessor(self.processor, videos * 2), self.max_length)
            batch = collator.torch_call(rows)
        for name, length in zip(names * 2, batch["attention_mask"].sum(1).tolist(), strict=True):
            check_length(f"{name}: a response", length, self.max_pair_length)
        if "pixel_values" not in batch and "pixel_values_videos" not in batch:
            add_blank_image(self.processor, batch)
        batch["id"] = names
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            if key in examples[0]:
                batch[key] = torch.tensor([row[key] for row in examples])
        return batch

    def render_pair(
        self, name: str, pair: tuple[list[dict], list[dict], list[dict]], images: list, videos: Sequence = ()
    ) -> dict[str, Any]:
        """A row in the chat template: the prompt up to where the response begins, and what comes after it."""
        row = {"prompt": render_prompt(self.processor, name, pair[0], images, videos), "images": images}
        for side, answer in zip(("chosen", "rejected"), pair[1:], strict=True):
            text = render(self.processor, f"{name}, {side} response", join_turns(pair[0], answer), images, videos)
            if not text.startswith(row["prompt"]):
                raise ValueError(
                    f"{name}: the chat template changes the prompt when the {side} response is there, so what comes "
                    "after the prompt is not what is sampled. Use a template that only adds to it."
                )
            row[side] = text[len(row["prompt"]) :]
        return row


@dataclass
class PromptProcessor:
    """
    A processor as TRL's collator calls it, which hands it no videos: for the prompts, on the left, with their images,
    and for the responses, on the right.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        videos (`list[list[Video]]`):
            Of each prompt.
    """

    processor: ProcessorMixin
    videos: list[list[Video]]

    @property
    def tokenizer(self):
        return self.processor.tokenizer

    def __call__(self, text: list[str], padding_side: str, images: list[list] | None = None, **kwargs) -> BatchFeature:
        none = [[]] * len(text)
        videos = self.videos if padding_side == "left" else none
        return tokenize(self.processor, text, images or none, videos, padding_side)


def add_blank_image(processor: ProcessorMixin, batch: dict[str, Any]) -> None:
    """
    Give a batch without images a blank one, in place, that no token attends to and no loss is taken of: under ZeRO-3
    and DDP a process whose batch has none would leave out the vision tower, for which the others wait.
    """
    size = 2 * processor.image_processor.patch_size * processor.image_processor.merge_size
    batch |= processor.image_processor(images=[Image.new("RGB", (size, size), "white")], return_tensors="pt")
    batch["image_numbers"] = torch.tensor([0])
    n_tokens = batch["image_grid_thw"].prod().item() // processor.image_processor.merge_size**2
    pads = {"input_ids": processor.tokenizer.pad_token_id, "attention_mask": 0, "completion_mask": 0}
    batch["mm_token_type_ids"] = batch.get("mm_token_type_ids", torch.zeros_like(batch["input_ids"]))
    for key, value in (pads | {"mm_token_type_ids": 0}).items():
        batch[key] = torch.nn.functional.pad(batch[key], (0, n_tokens), value=value)
    batch["input_ids"][0, -n_tokens:] = processor.image_token_id
    batch["mm_token_type_ids"][0, -n_tokens:] = 1
