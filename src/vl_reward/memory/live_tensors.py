"""How much memory the tensors of a computation take. On fake tensors, which have shapes alone, it is not computed."""

import weakref

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """
    Counts the bytes of the tensors that are alive, operation by operation. A model's weights are not counted, and its
    gradients are counted apart: how much of them stays depends on how they are sharded.

    Args:
        model (`nn.Module`):
            The model that is computed with.

    Attributes:
        timeline (`list[tuple[int, int]]`):
            After each operation that allocates: bytes of gradients, and bytes of all else.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.known = {tensor.untyped_storage()._cdata for tensor in [*model.parameters(), *model.buffers()]}
        self.other, self.gradients = 0, 0
        self.timeline: list[tuple[int, int]] = [(0, 0)]
        self.hooks = [
            parameter.register_post_accumulate_grad_hook(self.count_as_gradient)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]

    def __exit__(self, *exception):
        super().__exit__(*exception)
        for hook in self.hooks:
            hook.remove()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outputs = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(outputs):
            if isinstance(tensor, torch.Tensor):
                self.count(tensor.untyped_storage())
        return outputs

    def count(self, storage: torch.UntypedStorage) -> None:
        """Count the bytes of a tensor's storage until it is freed. A model's weights are not counted."""
        key = storage._cdata
        if key in self.sizes or key in self.known:
            return
        self.sizes[key] = storage.nbytes()
        self.other += storage.nbytes()
        self.timeline.append((self.gradients, self.other))
        weakref.finalize(storage, self.forget, key)

    def forget(self, key: int) -> None:
        """Take away what [`count`] added for a storage that is freed."""
        self.other -= self.sizes.pop(key, 0)  # a gradient stays where it was counted

    def count_as_gradient(self, parameter: nn.Parameter) -> None:
        """Count the gradient of a parameter apart, from when it is there."""
        size = self.sizes.pop(parameter.grad.untyped_storage()._cdata)
        self.gradients += size
        self.other -= size
        self.timeline.append((self.gradients, self.other))

    def peak(self, gradients_kept: float = 1.0) -> tuple[float, float]:
        """Gradients and all else, in bytes, where their sum is largest and `gradients_kept` of the gradients stay."""
        return max(
            ((gradients_kept * gradients, other) for gradients, other in self.timeline), key=lambda parts: sum(parts)
        )
