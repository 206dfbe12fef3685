"""
The log-probabilities of responses under a language model, as [`MPOTrainer`] takes them from it.

Of a batch, only what predicts a response's token passes the language-model head, and what rows have in common passes
once. The vocabulary's logits are never in memory at once.
"""

import functools
import types

import torch
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast
from trl.kernels.chunked_logprob import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput, maybe_gather_lm_head_ctx

from ..models.repeated_visuals import for_backbone
from .shared_forward import SharedOutput


ROWS, COLUMNS = 512, 4096  # tokens and words of a tile: 8 MiB in float32, which stays in a CPU's cache
KEPT = 2**27  # logits that are kept for the backward pass, as many as in a tile of TRL's; others are computed again
TRITON_COLUMNS = 32768  # words of a tile of TRL's on a GPU, as TRL sets it


class TokenLogProbs(torch.autograd.Function):
    """
    The log-probability of each target token, `log_softmax(hidden_states @ weight.T)[target]`, made for a CPU.

    TRL's [`~trl.kernels.chunked_logprob.ChunkedLogProbFunction`] has a Triton kernel that passes a tile of logits once.
    Without Triton it passes each tile some twenty times, and tiles are of half a gigabyte. Here a logit is computed and
    exponentiated once, and those beyond the first `KEPT` twice. With p the probabilities and g the gradient of a
    token's log-probability, the gradients are g · (weight[target] − p · weight) and, for the weight, the sum of
    g · hidden_state at the target less pᵀ · (g · hidden_states).
    """

    @staticmethod
    def forward(ctx, hidden_states, weight, targets):
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(num_tokens, hidden_size)`):
                What predicts each token.
            weight (`torch.Tensor` of shape `(vocab_size, hidden_size)`):
                The head's. Products are in autocast's dtype, if it is on, and sums in float32 or better.
            targets (`torch.LongTensor` of shape `(num_tokens,)`):
                The tokens.

        Returns:
            `torch.Tensor` of shape `(num_tokens,)`
        """
        device, num_tokens = hidden_states.device.type, len(hidden_states)
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden_states.dtype
        ctx.tiles, room = [], KEPT if any(ctx.needs_input_grad) else 0
        states, accumulated = hidden_states.to(ctx.dtype), torch.promote_types(ctx.dtype, torch.float32)
        top = torch.full((num_tokens,), -torch.inf, dtype=accumulated, device=states.device)
        total = torch.zeros_like(top)
        for rows, columns in tiles(num_tokens, len(weight)):
            logits = (states[rows] @ weight[columns].to(ctx.dtype).T).to(accumulated)
            highest = torch.maximum(top[rows], logits.amax(1))
            exponentials = logits.sub_(highest[:, None]).exp_()
            total[rows] = total[rows] * (top[rows] - highest).exp() + exponentials.sum(1)
            top[rows] = highest
            room -= exponentials.numel()
            if room >= 0:
                ctx.tiles.append((exponentials, highest))
        log_total = top + total.log()
        ctx.save_for_backward(hidden_states, weight, targets, log_total)
        own = (states * weight[targets].to(ctx.dtype)).sum(1, dtype=accumulated)
        return own - log_total

    @staticmethod
    def backward(ctx, gradient):
        hidden_states, weight, targets, log_total = ctx.saved_tensors
        accumulated = log_total.dtype
        states, gradient = hidden_states.to(ctx.dtype), gradient.to(accumulated)[:, None]
        weighted = gradient * states
        with maybe_gather_lm_head_ctx(weight):
            of_states = gradient * weight[targets] if ctx.needs_input_grad[0] else None
            of_weight = None
            if ctx.needs_input_grad[1]:
                of_weight = torch.zeros(weight.shape, dtype=accumulated, device=weight.device)
                of_weight.index_add_(0, targets, weighted)
            for number, (rows, columns) in enumerate(tiles(len(states), len(weight))):
                words = weight[columns].to(ctx.dtype)
                if number < len(ctx.tiles):
                    exponentials, highest = ctx.tiles[number]
                else:
                    highest = log_total[rows]
                    logits = (states[rows] @ words.T).to(accumulated)
                    exponentials = logits.sub_(highest[:, None]).exp_()
                scale = (highest - log_total[rows]).exp()[:, None]  # to probabilities
                if of_states is not None:
                    of_states[rows] -= gradient[rows] * scale * (exponentials @ words.to(accumulated))
                if of_weight is not None:
                    of_weight[columns].addmm_(exponentials.T, weighted[rows] * scale, alpha=-1)
        return (
            None if of_states is None else of_states.to(hidden_states.dtype),
            None if of_weight is None else of_weight.to(weight.dtype),
            None,
        )


def tiles(num_tokens: int, vocab_size: int):
    """The slices of the logits' rows and columns that are computed at a time."""
    for column in range(0, vocab_size, COLUMNS):
        for row in range(0, num_tokens, ROWS):
            yield slice(row, row + ROWS), slice(column, column + COLUMNS)


def token_log_probs(states: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """[`TokenLogProbs`] on a CPU, and TRL's Triton kernel on a GPU."""
    if states.device.type == "cpu":
        return TokenLogProbs.apply(states, weight, targets)
    bias, temperature, softcapping, scale, outputs = None, 1.0, None, 1.0, ("log_probs",)
    settings = (temperature, TRITON_COLUMNS, softcapping, scale, outputs)
    return ChunkedLogProbFunction.apply(states, weight, bias, targets, *settings)[0]


def add_token_log_probs(model: PreTrainedModel) -> None:
    """
    Let a model with [`~trl.trainer.utils.add_fused_lm_head`] project each distinct token of the responses once, in
    place, and compute nothing but its log-probability. What TRL computes besides over the vocabulary (entropy, mean
    logits, top-1) is `None`.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            A causal language model whose head has no bias. Called without `fused_lm_head=True` it is what it was, but
            takes batches that hold each image once ([`repeated`]).
    """
    trl_forward = model.forward

    # The signature is what `generate` validates its arguments by.
    @functools.wraps(type(model).forward)
    def forward(self, *args, fused_lm_head=False, labels=None, **kwargs):
        kwargs = for_backbone(self.base_model, kwargs)
        if not fused_lm_head:
            if labels is not None:
                kwargs["labels"] = labels
            return trl_forward(*args, **kwargs)
        outputs = self.base_model(*args, **kwargs)
        head = self.get_output_embeddings()  # looked up now: FSDP2 and PEFT replace it
        assert head.bias is None
        weight = head.weight.full_tensor() if isinstance(head.weight, DTensor) else head.weight
        targets = labels[:, 1:]
        is_response = targets != -100
        states, targets, inverse = distinct(outputs, is_response, targets[is_response])
        with maybe_gather_lm_head_ctx(weight):  # under ZeRO-3
            log_probs = token_log_probs(states, weight, targets)
        per_token = log_probs.new_zeros(is_response.shape).masked_scatter(is_response, log_probs[inverse])
        return FusedCausalLMOutput(log_probs=per_token, label_mask=is_response)

    model.forward = types.MethodType(forward, model)


def distinct(
    outputs: BaseModelOutputWithPast, is_response: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    The hidden states that predict the responses' tokens, the tokens, both without repetition, and for each token of the
    responses which of them it is. Rows with a common prefix have its states in common.
    """
    if isinstance(outputs, SharedOutput):
        states, places = outputs.packed_states[0], outputs.unpack
    else:
        states = outputs.last_hidden_state.flatten(0, 1)
        places = torch.arange(len(states), device=states.device).view(outputs.last_hidden_state.shape[:2])
    predicted = torch.stack([places[:, :-1][is_response], targets])
    (places, targets), inverse = torch.unique(predicted, dim=1, return_inverse=True)
    return states[places], targets, inverse
