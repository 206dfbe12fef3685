"""
One prompt, many responses, computed once.

Rows of a batch that begin with the same tokens and the same images at the same positions have the same hidden states
there: two responses to one prompt, or K candidates of it, differ in their own tokens only. [`share_prefixes`] makes the
backbone compute each distinct token once. It packs a batch into the tree of its rows, without padding, runs the decoder
on the packed tokens, and gathers the hidden states back into rows:

    rows in    [P | c]        packed   [P | c | r]        attention   a row's new tokens attend to its whole path
               [P | r]                                    rows out    [P | c], [P | r]

Everything above the backbone (heads, losses, trainers, collators) sees the rows it always saw, and everything below
(embedding, decoder layers, vision tower) is transformers' own. The gather is differentiable, so gradients are those of
the plain computation.
"""

import functools
import itertools
import logging

import torch
from torch import nn
from transformers.utils.generic import is_flash_attention_requested

from ..models.families import BACKBONES, FAMILIES, family_of
from .flash_attention import register_flash_attention
from .packed_rows import ATTENTION, PREFIX
from .shared_forward import shared_forward


logger = logging.getLogger(__name__)


def tower_forward(self: nn.Module, plain_forward, projectors: tuple[str, ...], *args, **kwargs):
    """
    The vision tower's forward pass, which keeps no activations of a frozen tower. Gradient checkpointing under PEFT
    makes the output of its patch embedding require gradients, and so everything after it, for nothing.
    """
    inside = tuple(f"{name}." for name in projectors)
    is_trained = any(
        parameter.requires_grad for name, parameter in self.named_parameters() if not name.startswith(inside)
    )
    if is_trained or not torch.is_grad_enabled():
        return plain_forward(*args, **kwargs)

    def enable_gradients(module, inputs):
        torch.set_grad_enabled(True)

    def disable_gradients(module, inputs, output):
        torch.set_grad_enabled(False)

    *inner, last = (self.get_submodule(name) for name in projectors)
    handles = [last.register_forward_pre_hook(enable_gradients)]  # what follows it belongs to the features
    for module in itertools.chain.from_iterable(inner):  # lists, with one projector for each of some layers
        handles.append(module.register_forward_pre_hook(enable_gradients))
        handles.append(module.register_forward_hook(disable_gradients))
    try:
        with torch.no_grad():
            return plain_forward(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()


def is_wrapped(module: nn.Module) -> bool:
    """Whether [`share_prefixes`] has replaced the module's `forward`."""
    return isinstance(module.forward, functools.partial) and module.forward.func in (shared_forward, tower_forward)


def shares_prefixes(model: nn.Module) -> bool:
    """Whether a model computes what rows have in common once: not under every attention, whatever was asked for."""
    backbones = [module for module in model.modules() if isinstance(module, BACKBONES) and is_wrapped(module)]
    return any(backbone.language_model.config._attn_implementation.startswith(PREFIX) for backbone in backbones)


def calls_tower_once(model: nn.Module) -> bool:
    """Whether the vision tower runs once, and first, whatever images and videos a batch holds."""
    return all(is_wrapped(module) for module in model.modules() if isinstance(module, BACKBONES))


def share_prefixes(model: nn.Module) -> nn.Module:
    """
    Let a model compute each distinct token and each distinct image of a batch once, in place, and keep no
    activations of a frozen vision tower. Scores, losses and gradients are those of the plain computation, up to
    rounding. Generation is left as it is. A forward pass that shares returns no cache: ask for one with
    `use_cache=True`, and the pass is the plain one.

    Sharing works with `attn_implementation` `"sdpa"`, `"eager"`, `"flash_attention_2"` and later ones, and the flash
    attentions of the hub (`"kernels-community/flash-attn2"`). With any other it stays off, with a warning:
    flex_attention, which could, is refused for these families by transformers 5.23 itself
    (huggingface/transformers#34809).

    Args:
        model (`nn.Module`):
            Any model around the backbone of a family that this project knows: [`Qwen2_5_VLForSequenceClassification`],
            [`~transformers.Qwen3VLForConditionalGeneration`], or a `PeftModel` of one of them.

    Returns:
        `nn.Module`: the same model.

    Raises:
        ValueError: If there is no such backbone in it.

    Example:
    ```python
    >>> model = share_prefixes(Qwen2_5_VLForSequenceClassification.from_pretrained("Qwen/Qwen2.5-VL-7B-Instruct"))
    ```
    """
    backbones = [module for module in model.modules() if isinstance(module, BACKBONES)]
    if not backbones:
        families = " or ".join(family.family for family in FAMILIES)
        known = " or ".join(f"`{backbone.__name__}`" for backbone in BACKBONES)
        raise ValueError(
            f"Prefixes are shared in the backbone of {families}, and this {type(model).__name__} holds no {known}. "
            "Pass a model of these families, or leave `share_prefixes` out."
        )
    for backbone in backbones:
        family, text_config = family_of(backbone.config), backbone.language_model.config
        implementation = text_config._attn_implementation.removeprefix(PREFIX)
        is_flash = is_flash_attention_requested(requested_attention_implementation=implementation)
        if is_flash:
            register_flash_attention(implementation)
        if (reason := family.why_not_shared(text_config)) is not None:
            logger.warning(f"Prefixes are not shared: this decoder has {reason}, which know no rows that branch.")
        elif not (is_flash or implementation in ATTENTION):
            logger.warning(
                f"Prefixes are not shared with attn_implementation {implementation!r}: rows that branch off a common "
                f"prompt are attended to with {', '.join(ATTENTION)} or flash attention."
            )
        else:
            text_config._attn_implementation = PREFIX + implementation
        tower = backbone.get_submodule(family.vision_tower)
        if not is_wrapped(backbone):
            backbone.forward = functools.partial(shared_forward, backbone, backbone.forward)
        if not is_wrapped(tower):
            tower.forward = functools.partial(tower_forward, tower, tower.forward, family.projectors)
    return model


def unshare_prefixes(model: nn.Module) -> nn.Module:
    """Undo [`share_prefixes`] and return the model."""
    for module in model.modules():
        if is_wrapped(module):
            module.forward = module.forward.args[1]
        if isinstance(module, BACKBONES):
            text_config = module.language_model.config
            text_config._attn_implementation = text_config._attn_implementation.removeprefix(PREFIX)
    return model
