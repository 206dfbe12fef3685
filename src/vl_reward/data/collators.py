"""Preference rows with images, without, or both, to one batch: for a reward model, and for MPO."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers import ProcessorMixin
from transformers.data.data_collator import DataCollatorMixin
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from .encoding import check_control_tokens, encode_conversations, load_images
from .messages import as_messages, text_of


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


@dataclass
class DataCollatorForMPO(DataCollatorForVisionPreference):
    """
    TRL's vision-preference collator, which refuses what TRL's would cut or let through.

    Args:
        max_pair_length (`int`, *optional*):
            Refuse a pair with a response longer than this many tokens, prompt and image tokens included. TRL's
            `max_length` cuts: a response can lose all of its tokens, and the loss is then reported as 0.

    The batch has the rows' names under `"id"`, and `"ref_chosen_logps"` and `"ref_rejected_logps"` where rows do.

    Raises:
        ValueError: For an empty response, control tokens in a message, an image that cannot be decoded, or a pair that
            is too long. The row is named.
    """

    max_pair_length: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        names = [f"row {row.get('id', '?')}" for row in examples]
        rows = [
            {
                "prompt": as_messages(row["prompt"], []),
                "chosen": as_messages([], row["chosen"]),
                "rejected": as_messages([], row["rejected"]),
                "images": load_images(name, row["images"]),
            }
            for name, row in zip(names, examples, strict=True)
        ]
        for name, row in zip(names, rows, strict=True):
            check_control_tokens(self.processor, name, row["prompt"] + row["chosen"] + row["rejected"])
            for side in ("chosen", "rejected"):
                if not text_of(row[side]).strip():
                    raise ValueError(
                        f"{name}: the {side} response is empty, so there is nothing to learn from. Leave the pair out."
                    )

        batch = super().torch_call(rows)
        for name, length in zip(names * 2, batch["attention_mask"].sum(1).tolist(), strict=True):
            if self.max_pair_length is not None and length > self.max_pair_length:
                raise ValueError(
                    f"{name}: a response has {length} tokens, image tokens included, and `max_length` is "
                    f"{self.max_pair_length}. It is not cut. Raise `max_length`, lower the processor's "
                    "`max_pixels`, or leave the pair out."
                )
        batch["id"] = names
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            if key in examples[0]:
                batch[key] = torch.tensor([row[key] for row in examples])
        return batch
