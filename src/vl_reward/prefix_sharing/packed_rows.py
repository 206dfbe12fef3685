"""The distinct tokens of a batch, packed without padding, and attention over them."""

import functools
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward


PREFIX = "prefix_sharing|"  # + the attention implementation that does the work
FEW = 32  # queries of a row, for which no call of its own is worth it


@dataclass
class Branches:
    """
    Rows of which queries are taken from one place on, padded at their ends to equal lengths.

    Args:
        keys (`torch.LongTensor` of shape `(num_rows, key_length)`):
            Packed positions of each row's whole path, from its first token to its last, which is repeated as padding.
        first (`int`):
            The place in its row of the first query. The other queries follow, up to the last key.
    """

    keys: torch.Tensor
    first: int

    @property
    def queries(self) -> torch.Tensor:
        """Packed positions of the queries."""
        return self.keys[:, self.first :]

    @functools.cached_property
    def mask(self) -> torch.Tensor:
        """
        Whether a query may attend to a key: to itself and to what comes before it. Of shape `(1, 1, query_length,
        key_length)`, and made where an attention function asks for it.
        """
        size = self.queries.shape[1], self.keys.shape[1]
        return torch.ones(1, 1, *size, dtype=torch.bool, device=self.keys.device).tril(self.first)

    @property
    def bias(self) -> torch.Tensor | None:
        """
        What hides keys from sdpa's queries. Its own causal kernel does so for whole rows, and one query sees all keys.
        On a GPU the kernels for queries that are the last of the keys are asked for, which read no mask.
        """
        num_queries, num_keys = self.queries.shape[1], self.keys.shape[1]
        if self.first == 0 or num_queries == 1:
            return None
        return causal_lower_right(num_queries, num_keys) if self.keys.is_cuda else self.mask


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
            The packed tokens, in groups of rows with about as many new tokens each, from about the same place on.
        order (`torch.LongTensor` of shape `(num_packed,)`):
            Where in the flattened and concatenated queries of `branches` each packed token is new.
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


def first_query(number: int, path: np.ndarray) -> int:
    """
    The place in a row from which its queries are taken: its first new token, or the row's begin where that is near.
    sdpa's causal kernel is for whole rows, and does not compute what it hides.
    """
    first = len(path) - number
    return first if 2 * first > number else 0


def group_paths(
    paths: list[tuple[int, np.ndarray]], num_packed: int, device: torch.device
) -> tuple[list[Branches], torch.Tensor]:
    """
    `branches` and `order` of [`PackedRows`], from each row's number of new tokens and its path. A group's queries are
    taken from one place on, so a row that branches off later has some that are not new. What they give is dropped.
    """
    rows = [(first_query(number, path), number, path) for number, path in paths]
    groups: list[list] = []
    for first, number, path in sorted(rows, key=lambda row: (row[0] > 0, -row[1].bit_length(), row[0], -row[1])):
        group = groups[-1] if groups else []
        start = group[0][0] if group else first
        longest = max(len(other) for *_, other in [*group, (first, number, path)])
        # A group ends where half of a row would be padding or not new.
        if not group or first < start or (first > 0) != (start > 0) or longest - start > max(2 * number, FEW):
            groups.append([])
        groups[-1].append((first, number, path))

    branches, order, offset = [], np.empty(num_packed, dtype=np.int64), 0
    for group in groups:
        start, longest = group[0][0], max(len(path) for *_, path in group)
        keys = np.stack([np.pad(path, (0, longest - len(path)), mode="edge") for *_, path in group])
        branches.append(Branches(torch.from_numpy(keys).to(device), start))
        for _, number, path in group:
            order[path[-number:]] = offset - start + np.arange(len(path) - number, len(path))
            offset += longest - start
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
        mask = branches.bias
        if plain is eager_attention_forward:  # which adds its mask
            mask = torch.zeros_like(branches.mask, dtype=query.dtype)
            mask = mask.masked_fill(~branches.mask, torch.finfo(query.dtype).min)
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
