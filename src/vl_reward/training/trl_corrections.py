"""Where TRL 1.16 trains something else than it should, without a word. To be looked at again with each new version."""

from contextlib import contextmanager

import torch
from peft import PeftModel
from peft.utils import ModulesToSaveWrapper
from torch import nn
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel


@torch.no_grad()
def restore_full_modules(model: PeftModel, autocast: bool) -> None:
    """
    Give what is trained beside a LoRA the values that it was loaded with (`modules_to_save`: head, projector), and all
    that is trained the dtype to be trained in: float32 with autocast, else the dtype that the model was loaded in.

    TRL turns all that is trained on a quantized model into bfloat16, as the QLoRA paper does with LoRA's matrices, and
    PEFT leaves modules in full in the base's dtype. In bfloat16 a step of less than 1/256 of a weight is lost, in a
    float32 model such a module no longer fits its inputs, and ZeRO-3 wants one dtype.
    """
    loaded_in = model.get_base_model().get_input_embeddings().weight.dtype
    dtype = torch.float32 if autocast else loaded_in
    for module in model.modules():
        if isinstance(module, ModulesToSaveWrapper):
            loaded = dict(module.original_module.named_parameters())
            for copy in module.modules_to_save.values():
                for name, parameter in copy.named_parameters():
                    if parameter.dtype != loaded[name].dtype:
                        parameter.data = loaded[name].detach().clone()
    for parameter in model.parameters():
        if parameter.requires_grad and parameter.dtype == torch.bfloat16 != dtype:
            parameter.data = parameter.data.to(dtype)


def without_quant_states(model: PeftModel, state_dict: dict, prefix: str, local_metadata: dict) -> None:
    """
    Leave out by what bitsandbytes reads its 4-bit weights, as a hook on the state of a model that trains with PEFT.

    Quantized weights are frozen, and no checkpoint holds them. Under FSDP2 checkpoints held these numbers, which are no
    parameters, and PyTorch 2.14 cannot read such a checkpoint: no QLoRA could be resumed.
    """
    for name in [name for name in state_dict if ".weight." in name]:  # of `...weight`
        del state_dict[name]


def unshard_head(model: PreTrainedModel, *args) -> None:
    """
    Gather the language-model head before a forward pass, as a hook on the model, under FSDP2 and where it is trained.

    TRL computes log-probabilities from `lm_head.weight` without calling the head, so FSDP2 does not gather it, and TRL
    does so by `full_tensor()`. The gradient of that is each process's own: the head's rows on a process would learn
    from the pairs on that process alone. A head that FSDP2 has gathered has its gradient reduced like all others.
    """
    head = model.get_output_embeddings()
    if isinstance(head, FSDPModule) and head.weight.requires_grad and torch.is_grad_enabled():
        head.unshard()


@contextmanager
def gathered(model: nn.Module):
    """
    In this context a model that FSDP2 shards is whole on each process, as TRL does under ZeRO-3 for generation.

    `generate` runs the vision tower ahead where there are images, and nowhere else: processes with other rows would
    gather other weights, and abort. It is also faster: weights are gathered once, not for each token.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(True, recurse=False)
            module.reshard()
