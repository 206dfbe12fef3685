"""One forward and backward pass of a micro-batch, on tensors that have shapes and no values."""

import contextlib
import dataclasses
from dataclasses import dataclass

import torch
from trl.kernels.chunked_logprob import TOKEN_CHUNK_SIZE

from ..models.whole_weights import whole_weights
from ..prefix_sharing.packed_rows import PackedRows
from ..prefix_sharing.token_log_probs import TRITON_COLUMNS, TokenLogProbs
from .live_tensors import LiveTensors
from .micro_batch import MicroBatch
from .unloaded_model import UnloadedModel


class Chunks(list):
    """Lengths of images, in the place of the cumulative lengths that vision attention takes differences of."""

    def __getitem__(self, index):
        return self

    def __sub__(self, other):
        return self

    def tolist(self):
        """Itself as a list of lengths."""
        return list(self)


class TiledLogProbs(torch.autograd.Function):
    """What [`~trl.kernels.chunked_logprob.ChunkedLogProbFunction`] allocates on a GPU, where Triton folds its tiles."""

    @staticmethod
    def forward(ctx, hidden_states, weight):
        """Log-probabilities of shape `(n_tokens,)`, and what is allocated on the way."""
        ctx.dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else hidden_states.dtype
        ctx.save_for_backward(hidden_states, weight)
        hidden_states.new_empty(min(len(hidden_states), TOKEN_CHUNK_SIZE), TRITON_COLUMNS, dtype=ctx.dtype)
        return hidden_states.new_empty(len(hidden_states), dtype=torch.float32)

    @staticmethod
    def backward(ctx, grad):
        hidden_states, weight = ctx.saved_tensors
        gradients = [
            torch.zeros_like(tensor, dtype=torch.float32) if needed else None
            for tensor, needed in zip(ctx.saved_tensors, ctx.needs_input_grad, strict=True)
        ]
        tile = hidden_states.new_empty(min(len(hidden_states), TOKEN_CHUNK_SIZE), TRITON_COLUMNS, dtype=ctx.dtype)
        weight_tile = weight.new_empty(TRITON_COLUMNS, weight.shape[1], dtype=ctx.dtype)
        del tile, weight_tile
        return tuple(None if gradient is None else gradient.to(hidden_states.dtype) for gradient in gradients)


@dataclass
class TrainingStep:
    """
    A pass of a model over a micro-batch.

    Args:
        model ([`UnloadedModel`]):
            The model, in the dtype that it computes in.
        batch ([`MicroBatch`]):
            Its micro-batch.
        autocast (`bool`):
            Whether matrix products are in bfloat16 by autocast.
        on_gpu (`bool`):
            Whether the log-probabilities are computed by TRL's Triton kernels.
    """

    model: UnloadedModel
    batch: MicroBatch
    autocast: bool
    on_gpu: bool

    def __post_init__(self):
        self.after_images, self.after_decoder, self.head_peak = 0, 0, 0

    def run(self, checkpointing: bool) -> LiveTensors:
        """Compute a step, with or without gradient checkpointing, and return what was alive when."""
        model, rows = self.model.model, self.batch.packed_rows() if self.batch.is_shared else None
        if checkpointing:
            self.model.whole.activation_checkpointing_enable()
        else:
            self.model.whole.activation_checkpointing_disable()
        if rows is not None:
            rows = convert(rows, self.model.fake_mode.from_tensor)
        autocast = torch.autocast("cpu", torch.bfloat16) if self.autocast else contextlib.nullcontext()
        live = LiveTensors(model)
        # Under ZeRO-3 TRL's log-probabilities would gather the head, which is no part of an engine here.
        with whole_weights(), self.model.fake_mode, live:
            with autocast:
                loss = self.forward(live, rows, checkpointing)
            loss.backward()
        model.zero_grad()
        return live

    def forward(self, live: LiveTensors, rows: PackedRows | None, checkpointing: bool) -> torch.Tensor:
        """
        The loss of a pass.

        Args:
            live ([`LiveTensors`]):
                Counts what is alive.
            rows ([`PackedRows`], *optional*):
                The packed rows, where prefixes are shared.
            checkpointing (`bool`):
                Whether the layers are computed again in the backward pass.
        """
        batch, text = self.batch, self.model.backbone.language_model
        images, inner = self.images(checkpointing)
        self.after_images = live.other
        length = batch.row_length if rows is None else len(rows.source)
        shape = (batch.rows if rows is None else 1, length)
        embeddings = text.embed_tokens(torch.zeros(shape, dtype=torch.long))
        is_image = torch.zeros(*shape, 1, dtype=torch.bool)
        embeddings = embeddings.masked_scatter(is_image, images.to(embeddings.dtype))
        # `enable_input_require_grads`, with which TRL checkpoints an adapter's training
        if self.is_adapted and checkpointing:
            embeddings.requires_grad_()
        rotations = [embeddings.new_empty(*shape, text.rotary_emb.inv_freq.shape[0] * 2) for _ in range(2)]
        for number, layer in enumerate(text.layers):
            embeddings = layer(embeddings, attention_mask=rows, position_embeddings=rotations)
            if number < len(inner):  # a copy, to which features are added
                embeddings = embeddings.masked_scatter(is_image, inner[number].to(embeddings.dtype))
        hidden_states = text.norm(embeddings)
        if rows is not None:
            hidden_states = hidden_states[0][rows.unpack]
        self.after_decoder, before = live.other, len(live.timeline)

        def note_head(gradient):
            self.head_peak = max(map(sum, live.timeline[before - 1 :])) - self.after_decoder

        if hidden_states.requires_grad:
            hidden_states.register_hook(note_head)
        return self.head(hidden_states)

    def images(self, checkpointing: bool) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """
        The features of the images, and those that are added inside the decoder, where a family does. A batch has the
        pixels of each image once; they are repeated for rows that are computed separately.
        """
        batch, visual, vision = self.batch, self.model.backbone.visual, self.model.config.vision_config
        patches = batch.image_tokens * vision.spatial_merge_size**2
        numbers = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        self.pixels = torch.empty(batch.prompts * patches, numbers)
        pixels = self.pixels if batch.images == batch.prompts else torch.empty(batch.images * patches, numbers)
        is_trained = any(weight.requires_grad for block in visual.blocks for weight in block.parameters())
        # PEFT's hook on the patch embedding, and what undoes it: see `tower_forward`.
        in_vain = self.is_adapted and checkpointing and not batch.is_shared
        with torch.set_grad_enabled(is_trained or not batch.is_shared):
            hidden_states = visual.patch_embed(pixels)
            if in_vain:
                hidden_states.requires_grad_()
            rotations = [hidden_states.new_empty(len(hidden_states), vision.hidden_size // vision.num_heads)] * 2
            inner, deepstack = [], vision.to_dict().get("deepstack_visual_indexes", ())
            for number, block in enumerate(visual.blocks):
                chunks = Chunks([patches] * batch.images)
                hidden_states = block(hidden_states, cu_seqlens=chunks, position_embeddings=rotations)
                if number in deepstack:
                    inner.append(hidden_states)
        layers = [visual.deepstack_merger_list[number](states) for number, states in enumerate(inner)]
        return visual.merger(hidden_states), layers

    def head(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """A sum over scores, or over the responses' log-probabilities, of the decoder's `hidden_states`."""
        whole, batch = self.model.whole, self.batch
        if "lm_head" not in dict(whole.named_children()):
            return whole.score(hidden_states[:, -1]).sum()
        weight = whole.lm_head.weight
        hidden_states = hidden_states[:, -batch.response_tokens :].flatten(0, 1)
        if self.on_gpu:
            return TiledLogProbs.apply(hidden_states, weight).sum()
        return TokenLogProbs.apply(hidden_states, weight, torch.zeros(len(hidden_states), dtype=torch.long)).sum()

    @property
    def is_adapted(self) -> bool:
        """Whether an adapter is trained."""
        return self.model.model is not self.model.whole


def convert(rows: PackedRows, function) -> PackedRows:
    """The same rows with `function` applied to their tensors."""
    branches = [dataclasses.replace(branch, keys=function(branch.keys)) for branch in rows.branches]
    return PackedRows(function(rows.source), function(rows.unpack), branches, function(rows.order))
