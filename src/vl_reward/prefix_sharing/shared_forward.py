"""A forward pass that computes each distinct token and each distinct image of a batch once."""

import functools
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from .packed_images import blank_image, image_codes, rope_positions, unique_images
from .packed_rows import PREFIX, PackedRows


WORTH_IT = 0.95  # a batch with a larger part than this of its tokens and paddings distinct is left alone
PLAIN_ONLY = (
    "position_ids",
    "past_key_values",
    "inputs_embeds",
    "use_cache",
    "pixel_values_videos",
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
    **kwargs,
) -> BaseModelOutputWithPast:
    """
    The backbone's forward pass with each distinct token and each distinct image computed once.

    The vision tower runs once and first, then the embedding, then the decoder, whatever the rows hold: where weights
    are sharded (ZeRO-3, FSDP2) each module's call is a collective, and all ranks have to make them in one order.
    """
    plain = functools.partial(
        plain_forward,
        input_ids=input_ids,
        attention_mask=attention_mask,
        image_grid_thw=image_grid_thw,
        mm_token_type_ids=mm_token_type_ids,
        **kwargs,
    )
    cache = kwargs.get("past_key_values")
    encoded = kwargs.get("mm_encoder_outputs") is not None
    if input_ids is None or encoded or (cache is not None and cache.get_seq_length()):
        return plain(pixel_values=pixel_values)

    if pixel_values is None:
        (pixels, grids), kept, same_as = blank_image(self.config, input_ids.device), [], []
    else:
        kept, same_as = unique_images(pixel_values, image_grid_thw)
        patches = pixel_values.split(image_grid_thw.prod(-1).tolist())
        pixels, grids = torch.cat([patches[i] for i in kept]), image_grid_thw[kept]
    features = ImageFeatures(self.get_image_features(pixels, grids, return_dict=True))

    packed = None
    other_inputs = any(kwargs.get(key) is not None and kwargs[key] is not False for key in PLAIN_ONLY)
    if self.language_model.config._attn_implementation.startswith(PREFIX) and not other_inputs:
        packed = pack(self.config, input_ids, attention_mask, mm_token_type_ids, image_grid_thw, kept, same_as)
    if packed is None:
        images = features.of_images(same_as) if same_as else None
        return with_features(self, features, images, plain)

    rows, codes, position_ids = packed
    feature_rows = codes.flatten()[rows.source] - self.config.text_config.vocab_size
    feature_rows = feature_rows[feature_rows >= 0]
    shown = features.of_tokens(feature_rows) if len(feature_rows) else None
    kwargs |= {
        "input_ids": input_ids.flatten()[rows.source][None],
        "attention_mask": rows,
        "position_ids": position_ids.flatten(1)[:, None, rows.source],
        "use_cache": False,
    }
    outputs = with_features(self, features, shown, functools.partial(plain_forward, **kwargs))
    states = outputs.last_hidden_state
    return SharedOutput(last_hidden_state=states[0][rows.unpack], packed_states=states, unpack=rows.unpack)


@dataclass
class ImageFeatures:
    """
    What the vision tower gives for the distinct images of a batch.

    Args:
        outputs (`BaseModelOutputWithPooling`):
            Its `pooler_output` has a tensor for each image. So has each layer of `deepstack_features`, where a family
            adds features inside the decoder, too.
    """

    outputs: BaseModelOutputWithPooling

    @property
    def layers(self) -> list[tuple[torch.Tensor, ...]]:
        return [self.outputs.pooler_output, *self.outputs.get("deepstack_features", ())]

    def of_images(self, numbers: list[int]) -> BaseModelOutputWithPooling:
        """Those of a batch's images, by the number of the distinct image that each equals."""
        return self.replaced([tuple(layer[number] for number in numbers) for layer in self.layers])

    def of_tokens(self, rows: torch.Tensor) -> BaseModelOutputWithPooling:
        """Those of image tokens, by their rows among all features."""
        return self.replaced([(torch.cat(layer)[rows],) for layer in self.layers])

    def replaced(self, layers: list[tuple[torch.Tensor, ...]]) -> BaseModelOutputWithPooling:
        deepstack = {"deepstack_features": layers[1:]} if "deepstack_features" in self.outputs else {}
        return type(self.outputs)(pooler_output=layers[0], **deepstack)


def with_features(
    backbone: PreTrainedModel, features: ImageFeatures, shown: BaseModelOutputWithPooling | None, forward
):
    """
    A forward pass with the features of images, `shown` in the order of their tokens. Features that no token shows take
    part all the same, without an effect: DDP and ZeRO-3 wait for their gradients, where the others' are made.
    """
    if shown is not None:
        return forward(mm_encoder_outputs={"image": shown})

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
    image_grid_thw: torch.Tensor | None,
    kept: list[int],
    same_as: list[int],
) -> tuple[PackedRows, torch.Tensor, torch.Tensor] | None:
    """The rows of a batch as [`PackedRows`], with the codes and the positions of their tokens, where it is worth it."""
    if attention_mask is not None and not (torch.is_tensor(attention_mask) and attention_mask.ndim == 2):
        return None
    attended = torch.ones_like(input_ids).bool() if attention_mask is None else attention_mask.bool()
    codes, position_ids = input_ids, torch.arange(input_ids.shape[1], device=input_ids.device)
    position_ids = position_ids.expand(3, *input_ids.shape)
    if same_as:
        codes = image_codes(config, input_ids, image_grid_thw, kept, same_as)
        # The plain pass says what is wrong, or gives images the positions of text.
        if codes is None or mm_token_type_ids is None:
            return None
        if not torch.equal(mm_token_type_ids == 1, codes >= config.text_config.vocab_size):
            return None
        position_ids = rope_positions(config, codes, attended, image_grid_thw[kept])
    rows = PackedRows.from_rows(codes, position_ids, attended)
    return (rows, codes, position_ids) if 0 < len(rows.source) <= WORTH_IT * input_ids.numel() else None
