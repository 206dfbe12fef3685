"""The checkpoint layout of Skywork-VL-Reward-7B: a plain Qwen2.5-VL, and the head in a file of its own."""

import torch
from safetensors.torch import load_file
from transformers.utils import cached_file


VALUE_HEAD = "value_head.safetensors"


def load_value_head(path: str, revision: str = "main") -> tuple[torch.Tensor, float] | None:
    """
    Read `value_head.safetensors`, as LLaMA-Factory writes it beside a checkpoint trained with `stage: rm`.

    Args:
        path (`str`):
            The checkpoint's folder, or its name on the hub.
        revision (`str`, *optional*, defaults to `"main"`):
            Of the checkpoint on the hub.

    Returns:
        `tuple[torch.Tensor, float]`: the weight of shape `(1, hidden_size)`, and the bias, which adds the same to every
        score; or `None` if there is no such file.

    Raises:
        ValueError: If the file holds other tensors than a head's, or a head that was never trained.
    """
    file = cached_file(path, VALUE_HEAD, revision=revision, _raise_exceptions_for_missing_entries=False)
    if file is None:
        return None
    head = load_file(file)
    if head.keys() != {"v_head.summary.weight", "v_head.summary.bias"}:
        raise ValueError(f"{file} holds {sorted(head)}, where `v_head.summary.weight` and `.bias` are needed.")
    weight, bias = (head[f"v_head.summary.{name}"].float() for name in ("weight", "bias"))
    if not weight.isfinite().all() or weight.std() == 0:
        raise ValueError(f"{file} holds a head whose weights are not finite or all equal: it was never trained.")
    return weight, bias.item()
