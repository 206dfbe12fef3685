"""
The interface of the flash_attn package over the FlashAttention-2 kernels that PyTorch holds.

The package itself is compiled for an hour, so the tests on a GPU take PyTorch's copy of the same kernels where it is
not installed. Put this folder's parent on `PYTHONPATH`.
"""

import torch


__version__ = "2.8.3"  # whose interface this is, as far as transformers uses it


def flash_attn_func(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False):
    """Tensors of shape `(batch_size, seq_len, num_heads, head_dim)`."""
    lengths = None, None, q.shape[1], k.shape[1]
    return torch.ops.aten._flash_attention_forward(q, k, v, *lengths, dropout_p, causal, False, scale=softmax_scale)[0]


def flash_attn_varlen_func(
    q,
    k,
    v,
    cu_seqlens_q,
    cu_seqlens_k,
    max_seqlen_q,
    max_seqlen_k,
    dropout_p=0.0,
    softmax_scale=None,
    causal=False,
):
    """Tensors of shape `(num_tokens, num_heads, head_dim)`, and where each sequence begins."""
    lengths = cu_seqlens_q, cu_seqlens_k, int(max_seqlen_q), int(max_seqlen_k)
    return torch.ops.aten._flash_attention_forward(q, k, v, *lengths, dropout_p, causal, False, scale=softmax_scale)[0]


def flash_attn_with_kvcache(*args, **kwargs):
    raise NotImplementedError("PyTorch's kernels have no such function. Install flash_attn.")
