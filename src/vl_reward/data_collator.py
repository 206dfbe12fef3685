"""Preference rows with images, without, or both, to one batch for a reward model."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.data.data_collator import DataCollatorMixin

from .encoding import as_messages, encode_conversations


@dataclass
class DataCollatorForVisionReward(DataCollatorMixin):
    """
    Data collator for vision-preference rows, all chosen responses first and then all rejected ones, the order that
    TRL's `RewardTrainer` splits its scores by.

    Each row is a dictionary in TRL's vision-preference format with the keys `"prompt"`, `"chosen"` and `"rejected"`
    (lists of messages, or plain strings for one turn), `"images"` (a list, which may be empty), and optionally
    `"margin"` (a float) and `"id"` (for error messages). Rows of one batch may hold different numbers of images.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        max_length (`int`, *optional*):
            Refuse a pair with a response longer than this many tokens, prompt and image tokens included.
        return_tensors (`str`, *optional*, defaults to `"pt"`):
            Type of tensor to return. Only `"pt"` is supported.

    Raises:
        ValueError: What [`encode_conversations`] refuses, with the row named.

    Example:
    ```python
    >>> collator = DataCollatorForVisionReward(processor)
    >>> batch = collator([{
    ...     "images": [image],
    ...     "prompt": [{"role": "user", "content": "What is the sum?"}],
    ...     "chosen": [{"role": "assistant", "content": "9"}],
    ...     "rejected": [{"role": "assistant", "content": "8"}],
    ... }])
    >>> batch["input_ids"].shape, batch["image_grid_thw"]  # one pair is two rows, each with its own image
    (torch.Size([2, 35]), tensor([[1, 4, 8], [1, 4, 8]]))
    ```
    """

    processor: ProcessorMixin
    max_length: int | None = None
    return_tensors: str = "pt"

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = encode_conversations(
            self.processor,
            [as_messages(row["prompt"], row[side]) for side in ("chosen", "rejected") for row in examples],
            [row["images"] for row in examples] * 2,
            [f"{side} response of row {row.get('id', '?')}" for side in ("chosen", "rejected") for row in examples],
            self.max_length,
        )
        if "margin" in examples[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in examples], dtype=torch.float32)
        return batch
