"""The distinct tokens of a batch, packed without padding, and attention over them."""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward


PREFIX = "prefix_sharing|"  # + the attention implementation that does the work


@dataclass
class Branches:
    """
    New tokens of several rows, padded to equal lengths, and what they attend to.

    Args:
        queries (`torch.LongTensor` of shape `(num_rows, query_length)`):
            Packed positions of each row's new tokens, the last one repeated as padding.
        keys (`torch.LongTensor` of shape `(num_rows, key_length)`):
            Packed positions of the row's whole path, from its first token to its last.
        places (`torch.LongTensor` of shape `(num_rows, query_length)`):
            Where in its row each query is.
        is_causal (`bool`):
            Whether all rows are new from their first token, so that the mask is the ordinary causal one.
    """

    queries: torch.Tensor
    keys: torch.Tensor
    places: torch.Tensor
    is_causal: bool

    @functools.cached_property
    def mask(self) -> torch.Tensor:
        """
        Whether a query may attend to a key: to itself and to what comes before it in its row. Of shape `(num_rows, 1,
        query_length, key_length)`, and made where an attention function asks for it.
        """
        return torch.arange(self.keys.shape[1], device=self.keys.device) <= self.places[:, None, :, None]

    @classmethod
    def from_paths(cls, paths: list[np.ndarray], num_new: np.ndarray, device: torch.device) -> "Branches":
        """Paths are the packed positions of whole rows; the last `num_new` of each are its new tokens."""
        lengths = np.array([len(path) for path in paths])
        keys = np.stack([np.pad(path, (0, lengths.max() - len(path)), mode="edge") for path in paths])
        firsts = lengths - num_new
        places = np.minimum(firsts[:, None] + np.arange(num_new.max()), lengths[:, None] - 1)  # of queries, in rows
        queries = np.take_along_axis(keys, places, axis=1)
        tensors = (torch.from_numpy(array).to(device) for array in (queries, keys, places))
        return cls(*tensors, is_causal=bool((firsts == 0).all()))


@dataclass
class PackedRows:
    """
    The distinct tokens of a batch. It is handed to the decoder in the attention mask's place, so no attention function
    but [`packed_attention`] can take it for a mask and go on. transformers asks a mask for its dimensions before
    [`packed_mask`] hands it through.

    Args:
        source (`torch.LongTensor` of shape `(num_packed,)`):
            Where in the flattened batch each packed token is taken from.
        unpack (`torch.LongTensor` of shape `(batch_size, seq_len)`):
            The packed position of each token of the batch; 0 at padding.
        branches (`list[Branches]`):
            The packed tokens, in groups of rows with about as many new tokens each.
        order (`torch.LongTensor` of shape `(num_packed,)`):
            Where in the flattened and concatenated queries of `branches` each packed token is.
        paths (`list[tuple[int, np.ndarray]]`):
            Of each row with new tokens how many they are, and the packed positions of the whole row, in packed order.
    """

    source: torch.Tensor
    unpack: torch.Tensor
    branches: list[Branches]
    order: torch.Tensor
    paths: list[tuple[int, np.ndarray]] = field(default_factory=list)

    @functools.cached_property
    def variable_lengths(self) -> tuple[torch.Tensor, dict]:
        """
        The rows in one call of variable lengths, whose queries are the packed tokens as they are: the packed positions
        of its keys, which are the rows' paths one after the other, and where rows begin, as transformers names it.
        """
        lengths = {"q": [number for number, _ in self.paths], "k": [len(path) for _, path in self.paths]}
        settings = {f"max_length_{side}": max(of_side) for side, of_side in lengths.items()}
        for side, of_side in lengths.items():
            starts = torch.tensor([0, *np.cumsum(of_side)], dtype=torch.int32)
            settings[f"cu_seq_lens_{side}"] = starts.to(self.source.device)
        keys = torch.from_numpy(np.concatenate([path for _, path in self.paths]))
        return keys.to(self.source.device), settings

    @property
    def shape(self) -> torch.Size:
        return self.source.shape

    @property
    def ndim(self) -> int:
        return self.source.ndim

    @classmethod
    def from_rows(cls, codes: torch.Tensor, position_ids: torch.Tensor, attended: torch.Tensor) -> "PackedRows":
        """
        Args:
            codes (`torch.LongTensor` of shape `(batch_size, seq_len)`):
                A number for what is embedded at each token.
            position_ids (`torch.LongTensor` of shape `(3, batch_size, seq_len)`):
                M-RoPE positions. Tokens are equal if their codes and positions are, and all before them.
            attended (`torch.BoolTensor` of shape `(batch_size, seq_len)`):
                False for padding, which is left out.
        """
        tokens = torch.stack([codes, *position_ids], dim=-1).int().cpu().numpy()
        columns = [np.flatnonzero(row) for row in attended.cpu().numpy()]
        rows = [np.ascontiguousarray(row[used]) for row, used in zip(tokens, columns, strict=True)]

        # In sorted order a row shares most with the one just before it.
        source, unpack, paths = [], np.zeros(codes.shape, dtype=np.int64), []
        last_row, last_path, num_packed = rows[0][:0], np.arange(0), 0
        for i in sorted(range(len(rows)), key=lambda i: rows[i].tobytes()):
            overlap = min(len(rows[i]), len(last_row))
            different = (rows[i][:overlap] != last_row[:overlap]).any(axis=1)
            shared = int(different.argmax()) if different.any() else overlap
            num_new = len(rows[i]) - shared
            last_path = np.concatenate([last_path[:shared], np.arange(num_packed, num_packed + num_new)])
            last_row = rows[i]
            num_packed += num_new
            source.append(columns[i][shared:] + i * codes.shape[1])
            unpack[i, columns[i]] = last_path
            if num_new:
                paths.append((num_new, last_path))

        device = codes.device
        branches, order = group_paths(paths, num_packed, device)
        source = torch.from_numpy(np.concatenate(source)).to(device)
        return cls(source, torch.from_numpy(unpack).to(device), branches, order.to(device), paths)


def group_paths(
    paths: list[tuple[int, np.ndarray]], num_packed: int, device: torch.device
) -> tuple[list[Branches], torch.Tensor]:
    """`branches` and `order` of [`PackedRows`], from each row's number of new tokens and its path."""
    groups: list[list] = []
    # Rows that are new from their first token come first, by themselves: sdpa's causal kernel is theirs, which does not
    # compute what a mask hides.
    branching = [(number < len(path), number, path) for number, path in paths]
    for branches_off, number, path in sorted(branching, key=lambda entry: (entry[0], -entry[1])):
        first = groups[-1][0] if groups else (0, path)
        # Rows are padded to the longest of their group, so a group ends where half of a row would be padding.
        if not groups or 2 * number < first[0] or branches_off != (first[0] < len(first[1])):
            groups.append([])
        groups[-1].append((number, path))

    branches, order, start = [], np.empty(num_packed, dtype=np.int64), 0
    for group in groups:
        num_new = np.array([number for number, _ in group])
        branches.append(Branches.from_paths([path for _, path in group], num_new, device))
        for number, path in group:
            order[path[-number:]] = start + np.arange(number)
            start += num_new.max()
    return branches, torch.from_numpy(order)


def packed_attention(plain, module, query, key, value, attention_mask, **kwargs):
    """
    Attention over packed tokens: each row's new tokens attend to the row's path, by the implementation `plain`.

    Queries, keys and values are of shape `(1, num_heads, num_packed, head_dim)`, the output is of shape
    `(1, num_packed, num_heads, head_dim)`.
    """
    if not isinstance(attention_mask, PackedRows):
        return plain(module, query, key, value, attention_mask, **kwargs)

    def gather(states, positions):
        states = states[0].transpose(0, 1).index_select(0, positions.flatten())
        return states.view(*positions.shape, *states.shape[1:]).transpose(1, 2)

    outputs = []
    for branches in attention_mask.branches:
        if plain is eager_attention_forward:  # which adds its mask
            mask = torch.zeros_like(branches.mask, dtype=query.dtype)
            mask = mask.masked_fill(~branches.mask, torch.finfo(query.dtype).min)
        else:
            mask = None if branches.is_causal else branches.mask  # without one, sdpa's own causal kernel is faster
        keys, values = gather(key, branches.keys), gather(value, branches.keys)
        output, _ = plain(module, gather(query, branches.queries), keys, values, mask, **kwargs)
        outputs.append(output.flatten(0, 1))
    return torch.cat(outputs).index_select(0, attention_mask.order)[None], None


def packed_mask(plain, *args, attention_mask=None, **kwargs):
    """The mask that the decoder makes of what it is given: packed rows stay what they are."""
    if isinstance(attention_mask, PackedRows):
        return attention_mask
    return plain(*args, attention_mask=attention_mask, **kwargs)


ATTENTION = {"sdpa": ALL_ATTENTION_FUNCTIONS["sdpa"], "eager": eager_attention_forward}
for name, function in ATTENTION.items():
    AttentionInterface.register(PREFIX + name, functools.partial(packed_attention, function))
    AttentionMaskInterface.register(PREFIX + name, functools.partial(packed_mask, ALL_MASK_ATTENTION_FUNCTIONS[name]))
