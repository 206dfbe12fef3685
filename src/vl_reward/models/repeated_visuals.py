"""
Batches that hold each distinct image and video once.

Beside `pixel_values` and `image_grid_thw` of the distinct images, such a batch has `image_numbers`: of each image that
its rows show, in their order, which of the distinct ones it is. So it is with `pixel_values_videos`, `video_grid_thw`
and `video_numbers`. K responses to one image are K numbers.
"""

import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


KINDS = {
    "image_numbers": ("pixel_values", "image_grid_thw"),
    "video_numbers": ("pixel_values_videos", "video_grid_thw"),
}


def distinct(items: list, content: Callable[[Any], tuple]) -> tuple[list, list[int]]:
    """
    Tell images, or videos, apart.

    Args:
        items (`list`):
            Images or videos. The same one may come several times, as one object or as several.
        content (`Callable`):
            From an item to its shape and its pixels, as a buffer.

    Returns:
        `tuple[list, list[int]]`: the distinct ones, in the order in which they come first; and for each item which of
        them it is.
    """
    objects, keys = {id(item): item for item in items}, {}
    for key, item in objects.items():
        shape, pixels = content(item) if len(objects) > 1 else (None, b"")  # one object is alone without a look
        keys[key] = shape, hashlib.sha256(pixels).digest()
    found = {}
    for key, item in objects.items():
        found.setdefault(keys[key], item)
    numbers = {key: number for number, key in enumerate(found)}
    return list(found.values()), [numbers[keys[id(item)]] for item in items]


def repeated(inputs: dict) -> dict:
    """
    Inputs of a model with each image and each video as often as rows show it, as transformers' own models take them.

    Example:
    ```python
    >>> batch = DataCollatorForVisionReward(processor)(rows)
    >>> Qwen2_5_VLForConditionalGeneration.from_pretrained(path)(**repeated(batch))
    ```
    """
    inputs = dict(inputs)
    for key, (pixels, grids) in KINDS.items():
        numbers = inputs.pop(key, None)
        if numbers is None or numbers.tolist() == list(range(len(inputs[grids]))):
            continue
        if inputs.get(pixels) is not None:
            patches = inputs[pixels].split(inputs[grids].prod(-1).tolist())
            inputs[pixels] = torch.cat([patches[number] for number in numbers.tolist()])
        inputs[grids] = inputs[grids][numbers]
    return inputs


def for_backbone(backbone: nn.Module, inputs: dict) -> dict:
    """A model's inputs as its backbone takes them: each image once after `share_prefixes`, else [`repeated`]."""
    takes_numbers = KINDS.keys() <= inspect.signature(backbone.forward).parameters.keys()
    return inputs if takes_numbers else repeated(inputs)
