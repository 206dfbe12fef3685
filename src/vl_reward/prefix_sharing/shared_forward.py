"""A forward pass that computes each distinct token and each distinct image of a batch once."""

import functools

import torch
from transformers import Qwen2_5_VLConfig
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
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


@can_return_tuple
def shared_forward(
    self: Qwen2_5_VLModel,
    plain_forward,
    input_ids: torch.LongTensor | None = None,
    attention_mask: torch.Tensor | None = None,
    pixel_values: torch.Tensor | None = None,
    image_grid_thw: torch.LongTensor | None = None,
    mm_token_type_ids: torch.IntTensor | None = None,
    **kwargs,
) -> BaseModelOutputWithPast:
    """
    [`Qwen2_5_VLModel.forward`] with each distinct token and each distinct image computed once.

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
    features = self.get_image_features(pixels, grids, return_dict=True).pooler_output

    packed = None
    other_inputs = any(kwargs.get(key) is not None and kwargs[key] is not False for key in PLAIN_ONLY)
    if self.language_model.config._attn_implementation.startswith(PREFIX) and not other_inputs:
        packed = pack(self.config, input_ids, attention_mask, mm_token_type_ids, image_grid_thw, kept, same_as)
    if packed is None:
        return with_features(self, features, [features[number] for number in same_as], plain)

    (rows, codes, position_ids), shown = packed, torch.cat(features)
    feature_rows = codes.flatten()[rows.source] - self.config.text_config.vocab_size
    shown = shown[feature_rows[feature_rows >= 0]]
    kwargs |= {
        "input_ids": input_ids.flatten()[rows.source][None],
        "attention_mask": dict.fromkeys(self.config.text_config.layer_types, rows),
        "position_ids": position_ids.flatten(1)[:, None, rows.source],
        "use_cache": False,
    }
    outputs = with_features(self, features, [shown] if len(shown) else [], functools.partial(plain_forward, **kwargs))
    return BaseModelOutputWithPast(last_hidden_state=outputs.last_hidden_state[0][rows.unpack])


def with_features(backbone: Qwen2_5_VLModel, features: tuple, shown: list[torch.Tensor], forward):
    """
    A forward pass with the features of images, `shown` in the order of their tokens. Features that no token shows take
    part all the same, without an effect: DDP and ZeRO-3 wait for their gradients, where the others' are made.
    """
    if shown:
        return forward(mm_encoder_outputs={"image": BaseModelOutputWithPooling(pooler_output=tuple(shown))})

    def add_nothing(module, inputs, embeddings):
        return embeddings + 0 * torch.cat(features).sum().to(embeddings.dtype)

    handle = backbone.get_input_embeddings().register_forward_hook(add_nothing)
    try:
        return forward()
    finally:
        handle.remove()


def pack(
    config: Qwen2_5_VLConfig,
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
        if codes is None:
            return None  # the plain pass says what is wrong
        if mm_token_type_ids is not None:
            if not torch.equal(mm_token_type_ids == 1, codes >= config.text_config.vocab_size):
                return None
            position_ids = rope_positions(config, codes, attended, image_grid_thw[kept])
    rows = PackedRows.from_rows(codes, position_ids, attended)
    return (rows, codes, position_ids) if 0 < len(rows.source) <= WORTH_IT * input_ids.numel() else None
