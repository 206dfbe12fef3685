"""A forward pass that computes each distinct token, image and video of a batch once."""

import functools
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..models.repeated_visuals import repeated
from .packed_images import Visuals, blank_image
from .packed_rows import PREFIX, PackedRows


WORTH_IT = 0.95  # a batch with a larger part than this of its tokens and paddings distinct is left alone
PLAIN_ONLY = (
    "position_ids",
    "past_key_values",
    "inputs_embeds",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
)


@dataclass
class SharedOutput(BaseModelOutputWithPast):
    """
    What a backbone returns where rows have something in common.

    Args:
        packed_states (`torch.FloatTensor` of shape `(1, num_packed, hidden_size)`):
            The hidden states of the distinct tokens.
        unpack (`torch.LongTensor` of shape `(batch_size, seq_len)`):
            Which of them is at each token: `last_hidden_state` is `packed_states[0][unpack]`.
    """

    packed_states: torch.Tensor | None = None
    unpack: torch.Tensor | None = None


@can_return_tuple
def shared_forward(
    self: PreTrainedModel,
    plain_forward,
    input_ids: torch.LongTensor | None = None,
    attention_mask: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.LongTensor | None = None,
    mm_token_type_ids: torch.IntTensor | None = None,
    pixel_values_videos: torch.Tensor | None = None,
    video_grid_thw: torch.LongTensor | None = None,
    image_numbers: torch.LongTensor | None = None,
    video_numbers: torch.LongTensor | None = None,
    **kwargs,
) -> BaseModelOutputWithPast:
    """
    The backbone's forward pass with each distinct token, image and video computed once. With `image_numbers` and
    `video_numbers`, which [`repeated`] explains, the distinct ones are known. Without them, pixels are compared.

    The vision tower runs once and first, then the embedding, then the decoder, whatever the rows hold: where weights
    are sharded (ZeRO-3, FSDP2) each module's call is a collective, and all ranks have to make them in one order.
    """
    of_text = {"input_ids": input_ids, "attention_mask": attention_mask, "mm_token_type_ids": mm_token_type_ids}
    pixels = {"pixel_values": pixel_values, "pixel_values_videos": pixel_values_videos}
    grids = {"image_grid_thw": image_grid_thw, "video_grid_thw": video_grid_thw}
    numbers = {"image_numbers": image_numbers, "video_numbers": video_numbers}
    cache = kwargs.get("past_key_values")
    encoded = kwargs.get("mm_encoder_outputs") is not None
    if input_ids is None or encoded or (cache is not None and cache.get_seq_length()):
        return plain_forward(**of_text, **repeated(pixels | grids | numbers), **kwargs)

    visuals = Visuals.of_batch(pixels | grids | numbers | kwargs)
    pixels, of_each = blank_image(self.config, input_ids.device) if visuals is None else (visuals.pixels, visuals.grids)
    # One call for both kinds: `get_video_features` runs the same tower.
    features = VisualFeatures(self.get_image_features(pixels, of_each, return_dict=True))

    packed = None
    other_inputs = any(kwargs.get(key) is not None and kwargs[key] is not False for key in PLAIN_ONLY)
    if self.language_model.config._attn_implementation.startswith(PREFIX) and not other_inputs:
        packed = pack(self.config, input_ids, attention_mask, mm_token_type_ids, visuals)
    if packed is None:
        plain = functools.partial(plain_forward, **of_text, **repeated(grids | numbers), **kwargs)
        return with_features(self, features, features.of_batch(visuals), plain)

    rows, codes, position_ids = packed
    input_ids, codes = input_ids.flatten()[rows.source], codes.flatten()[rows.source]
    shown = features.of_tokens(self.config, input_ids, codes)
    kwargs |= {
        "input_ids": input_ids[None],
        "attention_mask": rows,
        "position_ids": position_ids.flatten(1)[:, None, rows.source],
        "use_cache": False,
    }
    outputs = with_features(self, features, shown, functools.partial(plain_forward, **kwargs))
    states = outputs.last_hidden_state
    return SharedOutput(last_hidden_state=states[0][rows.unpack], packed_states=states, unpack=rows.unpack)


@dataclass
class VisualFeatures:
    """
    What the vision tower gives for the distinct images and videos of a batch.

    Args:
        outputs (`BaseModelOutputWithPooling`):
            Its `pooler_output` has a tensor for each of them. So has each layer of `deepstack_features`, where a family
            adds features inside the decoder, too.
    """

    outputs: BaseModelOutputWithPooling

    @property
    def layers(self) -> list[tuple[torch.Tensor, ...]]:
        return [self.outputs.pooler_output, *self.outputs.get("deepstack_features", ())]

    def of_batch(self, visuals: Visuals | None) -> dict[str, BaseModelOutputWithPooling]:
        """Those of a batch's images and videos, as `mm_encoder_outputs` takes them."""
        if visuals is None:
            return {}
        numbers = {"image": visuals.numbers[: visuals.n_images], "video": visuals.numbers[visuals.n_images :]}
        return {
            kind: self.replaced([tuple(layer[number] for number in of_kind) for layer in self.layers])
            for kind, of_kind in numbers.items()
            if of_kind
        }

    def of_tokens(
        self, config: PreTrainedConfig, input_ids: torch.Tensor, codes: torch.Tensor
    ) -> dict[str, BaseModelOutputWithPooling]:
        """Those of image and video tokens, by their codes, which are rows among all features."""
        layers, shown = [torch.cat(layer) for layer in self.layers], {}
        for kind, token in (("image", config.image_token_id), ("video", config.video_token_id)):
            rows = codes[(input_ids == token) & (codes >= config.text_config.vocab_size)]
            if len(rows):
                rows = rows - config.text_config.vocab_size
                shown[kind] = self.replaced([(layer[rows],) for layer in layers])
        return shown

    def replaced(self, layers: list[tuple[torch.Tensor, ...]]) -> BaseModelOutputWithPooling:
        deepstack = {"deepstack_features": layers[1:]} if "deepstack_features" in self.outputs else {}
        return type(self.outputs)(pooler_output=layers[0], **deepstack)


def with_features(
    backbone: PreTrainedModel, features: VisualFeatures, shown: dict[str, BaseModelOutputWithPooling], forward
):
    """
    A forward pass with the features of images and videos, `shown` in the order of their tokens. Features that no token
    shows take part all the same, without an effect: DDP and ZeRO-3 wait for their gradients, where the others' are
    made.
    """
    if shown:
        return forward(mm_encoder_outputs=shown)

    def add_nothing(module, inputs, embeddings):
        return embeddings + 0 * sum(torch.cat(layer).sum() for layer in features.layers).to(embeddings.dtype)

    handle = backbone.get_input_embeddings().register_forward_hook(add_nothing)
    try:
        return forward()
    finally:
        handle.remove()


def pack(
    config: PreTrainedConfig,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    mm_token_type_ids: torch.Tensor | None,
    visuals: Visuals | None,
) -> tuple[PackedRows, torch.Tensor, torch.Tensor] | None:
    """The rows of a batch as [`PackedRows`], with the codes and the positions of their tokens, where it is worth it."""
    if attention_mask is not None and not (torch.is_tensor(attention_mask) and attention_mask.ndim == 2):
        return None
    attended = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    codes, position_ids = input_ids, torch.arange(input_ids.shape[1], device=input_ids.device)
    position_ids = position_ids.expand(3, *input_ids.shape)
    if visuals is not None:
        codes = visuals.codes(config, input_ids)
        # The plain pass says what is wrong, or gives images the positions of text.
        if codes is None or mm_token_type_ids is None:
            return None
        types = (input_ids == config.image_token_id).int() + 2 * (input_ids == config.video_token_id).int()
        if not torch.equal(mm_token_type_ids.int(), types):
            return None
        position_ids = visuals.positions(config, input_ids, attended)
    rows = PackedRows.from_rows(codes, position_ids, attended)
    return (rows, codes, position_ids) if 0 < len(rows.source) <= WORTH_IT * input_ids.numel() else None
