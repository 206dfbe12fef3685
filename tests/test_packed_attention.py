"""Attention over packed rows by sdpa, against each row by itself, with a mask and with none."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.bias import CausalBias, causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from vl_reward.prefix_sharing.packed_rows import ATTENTION, FEW, Branches, PackedRows, packed_attention


class Module(torch.nn.Module):
    num_key_value_groups = 2
    is_causal = True


def on_a_gpu(branches):
    """What [`Branches.bias`] is there. On a CPU, PyTorch makes a mask of it."""
    size = branches.queries.shape[1], branches.keys.shape[1]
    return causal_lower_right(*size) if branches.first and size[0] > 1 else None


# Rows of random lengths that have random beginnings in common.
rows = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.integers(1, 2)), min_size=1, max_size=5), min_size=1, max_size=9
).map(lambda rows: [[token for number, token in row for _ in range(number)] for row in rows])


def packed(rows):
    length = max(map(len, rows))
    codes = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    return PackedRows.from_rows(codes, torch.arange(length).expand(3, *codes.shape), codes > 0)


def gradients_of(function, states):
    states = [part.clone().requires_grad_() for part in states]
    output = function(*states)
    (output * torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)).sum().backward()
    return [output.detach(), *(part.grad for part in states)]


@pytest.mark.parametrize("name", ["sdpa", "sdpa on a GPU", "eager"])
@settings(max_examples=60, deadline=None)
@given(rows=rows, seed=st.integers(0, 100))
def test_each_row_attends_to_its_path(name, rows, seed):
    tree, generator = packed(rows), torch.Generator().manual_seed(seed)
    states = [torch.randn(1, heads, len(tree.source), 8, generator=generator).double() for heads in (4, 2, 2)]

    def of_rows(query, key, value):
        """Each row alone, and of a token that rows have in common what the first of them gives."""
        outputs = torch.zeros(1, len(tree.source), 4, 8, dtype=query.dtype)
        for row, places in zip(rows, tree.unpack, strict=True):
            path = places[: len(row)]
            of_path = [part[:, :, path] for part in (query, key, value)]
            output = scaled_dot_product_attention(*of_path, is_causal=True, scale=0.3, enable_gqa=True)
            outputs = outputs.index_copy(1, path, output.transpose(1, 2))
        return outputs

    expected = gradients_of(of_rows, states)
    with pytest.MonkeyPatch.context() as patch:
        if name == "sdpa on a GPU":
            patch.setattr(Branches, "bias", property(on_a_gpu))
            patch.setattr(Branches, "mask", property(lambda branches: pytest.fail("a mask is made")))
        attend = functools.partial(packed_attention, ATTENTION[name.split()[0]], Module())
        found = gradients_of(lambda *parts: attend(*parts, tree, scaling=0.3)[0], states)
    for part, expected_part in zip(found, expected, strict=True):
        # eager takes its softmax in float32
        torch.testing.assert_close(part, expected_part, rtol=0, atol=1e-5 if name == "eager" else 1e-12)


@settings(max_examples=200, deadline=None)
@given(rows=rows)
def test_queries_are_at_most_twice_the_new_tokens(rows):
    tree = packed(rows)
    assert sorted(set(tree.order.tolist())) == sorted(tree.order.tolist())
    queries = torch.cat([branches.queries.flatten() for branches in tree.branches])
    assert queries[tree.order].tolist() == list(range(len(tree.source)))
    assert len(queries) <= 2 * len(tree.source) + FEW * len(tree.paths)


def test_a_prompts_responses_are_two_calls_and_need_one_small_mask():
    prompt = [1] * 300
    tree = packed([prompt + [2] * shared + [3 + i] * (100 - shared) for i, shared in enumerate([0, 0, 3, 5, 9, 9])])
    whole, branching = tree.branches
    assert (whole.first, whole.keys.shape, whole.bias) == (0, (1, 400), None)
    assert (branching.first, branching.keys.shape, branching.bias.shape) == (300, (5, 400), (1, 1, 100, 400))
    assert torch.equal(branching.bias[0, 0], torch.ones(100, 400).tril(300).bool())
    assert torch.equal(branching.bias[0, 0], on_a_gpu(branching)._materialize())
    assert type(on_a_gpu(branching)) is CausalBias and Branches(branching.keys, 399).bias is None
    # A row that is new but for its begin is computed whole, by the kernel that skips what is hidden.
    tree = packed([[1] * 20 + [2] * 300, [1] * 20 + [3] * 320])
    assert [(branches.first, branches.keys.shape) for branches in tree.branches] == [(0, (2, 340))]
