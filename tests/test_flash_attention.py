"""
Prefix sharing by transformers' variable-length flash attention, against sdpa that shares nothing.

flash_attn wants a GPU. In its place stands what it computes, written down: each row's queries are the last of its keys.
"""

import pytest
import torch
from test_prefix_sharing import PAIRS, compute, encode, images, in_float64, models  # noqa: F401
from transformers import modeling_flash_attention_utils as transformers_flash

from vl_reward import share_prefixes, unshare_prefixes
from vl_reward.prefix_sharing import shared_forward
from vl_reward.prefix_sharing.packed_rows import Branches, PackedRows
from vl_reward.prefix_sharing.share_prefixes import shares_prefixes


NAMES = ["flash_attention_2", "flash_attention_3", "kernels-community/flash-attn2"]


@pytest.fixture
def calls(monkeypatch):
    """The variable-length calls, each by its numbers of queries and of keys."""
    made = []

    def flash_attn_varlen_func(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, softmax_scale=None, causal=False
    ):
        queries, keys = cu_seqlens_q.diff().tolist(), cu_seqlens_k.diff().tolist()
        assert cu_seqlens_q.dtype == cu_seqlens_k.dtype == torch.int32 and causal
        assert (max_seqlen_q, max_seqlen_k) == (max(queries), max(keys))
        assert (sum(queries), sum(keys), sum(keys)) == (len(q), len(k), len(v))
        made.append((queries, keys))
        outputs, groups = [], q.shape[1] // k.shape[1]
        for of_row, states, values in zip(q.split(queries), k.split(keys), v.split(keys), strict=True):
            states, values = (part.repeat_interleave(groups, 1) for part in (states, values))
            scores = softmax_scale * torch.einsum("qhd,khd->hqk", of_row, states)
            last = torch.arange(len(states) - len(of_row), len(states))  # the last key that a query sees
            scores = scores.masked_fill(torch.arange(len(states)) > last[:, None], -torch.inf)
            outputs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), values))
        return torch.cat(outputs)

    def load(implementation, *arguments, **settings):
        assert implementation in NAMES, implementation
        pads = transformers_flash._pad_input, transformers_flash._unpad_input
        return None, flash_attn_varlen_func, None, *pads

    monkeypatch.setattr(transformers_flash, "_lazy_imports", load)
    monkeypatch.setattr(transformers_flash, "_loaded_implementation", None)
    return made


def with_attention(model, name):
    unshare_prefixes(model).model.language_model.config._attn_implementation = name
    return model


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["reward", "policy"])
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_outputs_and_gradients(models, processor, images, in_float64, calls, kind, name, padding_side):  # noqa: F811
    model = models[kind].double()
    batch = encode(processor, PAIRS, images, padding_side)
    expected, expected_gradients = compute(with_attention(model, "sdpa"), batch)
    outputs, gradients = compute(share_prefixes(with_attention(model, name)), batch)
    assert shares_prefixes(model) and len(calls) == 2
    assert (outputs - expected).abs().max() <= 1e-9 * expected.abs().max()
    largest = max(gradient.abs().max() for gradient in expected_gradients.values())
    for parameter, gradient in expected_gradients.items():
        assert (gradients[parameter] - gradient).abs().max() <= 1e-9 * largest, parameter
    queries, keys = calls[0]
    lengths = batch["attention_mask"].sum(1).tolist()
    assert sorted(keys) == sorted(lengths) and sum(queries) < sum(lengths) / 1.5
    assert sum(new == length for new, length in zip(queries, keys, strict=True)) == 1  # all prompts begin alike
    with_attention(model, "sdpa")


def test_rows_that_are_not_worth_it_take_the_plain_call(models, processor, images, calls, monkeypatch):  # noqa: F811
    monkeypatch.setattr(shared_forward, "WORTH_IT", 0.0)
    model = models["policy"].float()
    batch = encode(processor, [PAIRS[0], PAIRS[1]], images)
    with torch.no_grad():
        expected = with_attention(model, "sdpa")(**batch).logits
        outputs = share_prefixes(with_attention(model, NAMES[0]))(**batch).logits
    used = batch["attention_mask"].bool()
    torch.testing.assert_close(outputs[used], expected[used], rtol=1e-4, atol=1e-4)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert calls == [(lengths, lengths)] * 2
    with_attention(model, "sdpa")


def test_no_mask_is_made(models, processor, images, calls, monkeypatch):  # noqa: F811
    """Under sdpa only for rows that branch off, and under flash attention for none."""
    made = []
    mask = Branches.mask.func
    counted = type(Branches.mask)(lambda self: (made.append(self.first), mask(self))[1])
    counted.__set_name__(Branches, "mask")
    monkeypatch.setattr(Branches, "mask", counted)
    model, batch = models["policy"].float(), encode(processor, PAIRS, images)
    with torch.no_grad():
        share_prefixes(with_attention(model, NAMES[0]))(**batch)
        assert made == [] and len(calls) == 2
        share_prefixes(with_attention(model, "sdpa"))(**batch)
    assert made and all(made)
    unshare_prefixes(model)


def test_where_rows_begin():
    """[1 2 3], [1 2 4 5] and [6]: five and a packed token, the second row's two see its four."""
    codes = torch.tensor([[1, 2, 3, 0], [1, 2, 4, 5], [6, 0, 0, 0]])
    positions = torch.arange(4).expand(3, 3, 4)
    rows = PackedRows.from_rows(codes, positions, codes > 0)
    keys, settings = rows.variable_lengths
    assert codes.flatten()[rows.source].tolist() == [1, 2, 3, 4, 5, 6]
    assert keys.tolist() == [0, 1, 2, 0, 1, 3, 4, 5]
    starts = {side: settings[f"cu_seq_lens_{side}"].tolist() for side in "qk"}
    assert starts == {"q": [0, 3, 5, 6], "k": [0, 3, 7, 8]}
    assert (settings["max_length_q"], settings["max_length_k"]) == (3, 4)
