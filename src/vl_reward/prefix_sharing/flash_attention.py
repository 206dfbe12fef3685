"""
Flash attention over packed tokens, without a mask and without padding.

A row's new tokens attend to the row's whole path: fewer queries than keys, where the last query sees the last key. That
is how a variable-length call aligns its causal mask, so all rows of a batch are one call. It is transformers' own
(`cu_seq_lens_q`, `cu_seq_lens_k`), so whatever implementation transformers finds carries it: `flash_attention_2`, 3 and
4, and the hub's kernels.
"""

import functools

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flash_attention import get_target_dtype
from transformers.masking_utils import flash_attention_mask
from transformers.modeling_flash_attention_utils import _flash_attention_forward

from .packed_rows import PREFIX, PackedRows, packed_mask


def packed_flash_attention(name, module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """
    Attention by the implementation `name`, over packed tokens where they are in the mask's place. Shapes are those of
    [`packed_attention`].
    """
    is_causal = kwargs.pop("is_causal", None)
    if isinstance(attention_mask, PackedRows):
        (positions, settings), attention_mask, is_causal = attention_mask.variable_lengths, None, True
        key, value = (states.index_select(2, positions) for states in (key, value))
        kwargs |= settings
    # As transformers' `flash_attention_forward` does, which would look for an implementation of the prefixed name.
    output = _flash_attention_forward(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        attention_mask,
        query_length=query.shape[2],
        is_causal=module.is_causal if is_causal is None else is_causal,
        dropout=dropout,
        softmax_scale=scaling,
        target_dtype=get_target_dtype(query, module),
        attn_implementation=name,
        **kwargs,
    )
    return output, None


def register_flash_attention(name: str) -> None:
    """Make `PREFIX + name` known to transformers, for a flash attention or a kernel of the hub of this name."""
    AttentionInterface.register(PREFIX + name, functools.partial(packed_flash_attention, name))
    AttentionMaskInterface.register(PREFIX + name, functools.partial(packed_mask, flash_attention_mask))
