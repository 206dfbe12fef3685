"""The distinct images of a batch: which they are, what stands for them in a row, and where."""

import torch
from transformers import PreTrainedConfig


def unique_images(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> tuple[list[int], list[int]]:
    """
    Find equal images in a batch.

    Returns:
        `tuple[list[int], list[int]]`: the images to keep, by their place in the batch; and for each image of the batch
        which of the kept ones it equals.
    """
    patches = pixel_values.split(image_grid_thw.prod(-1).tolist())
    bits = {8: torch.int64, 4: torch.int32, 2: torch.int16}[pixel_values.element_size()]
    sums = torch.stack([image.contiguous().view(bits).sum(dtype=torch.int64) for image in patches]).tolist()
    kept, same_as, candidates = [], [], {}
    for i, (grid, total) in enumerate(zip(image_grid_thw.tolist(), sums, strict=True)):
        alike = candidates.setdefault((*grid, total), [])
        match = next((number for number in alike if torch.equal(patches[kept[number]], patches[i])), None)
        if match is None:
            match = len(kept)
            alike.append(match)
            kept.append(i)
        same_as.append(match)
    return kept, same_as


def blank_image(config: PreTrainedConfig, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """`pixel_values` and `image_grid_thw` of the smallest image there is, all zeros."""
    vision = config.vision_config
    patch_size = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
    grid = [1, vision.spatial_merge_size, vision.spatial_merge_size]
    return torch.zeros(vision.spatial_merge_size**2, patch_size, device=device), torch.tensor([grid], device=device)


def image_codes(
    config: PreTrainedConfig, input_ids: torch.Tensor, image_grid_thw: torch.Tensor, kept: list[int], same_as: list[int]
) -> torch.Tensor | None:
    """
    Number what stands at each token: the id of a text token; past the vocabulary, for an image token, the row of its
    features among those of the distinct images. `kept` and `same_as` are those of [`unique_images`].

    Returns:
        `torch.LongTensor` of shape `(batch_size, seq_len)`, or `None` if image tokens and images do not fit together.
    """
    lengths = (image_grid_thw.prod(-1) // config.vision_config.spatial_merge_size**2).tolist()
    rows_of = torch.arange(sum(lengths[i] for i in kept)).split([lengths[i] for i in kept])
    rows = torch.cat([rows_of[number] for number in same_as]).to(input_ids.device)
    is_image = input_ids == config.image_token_id
    if len(rows) != is_image.sum():
        return None
    return input_ids.masked_scatter(is_image, config.text_config.vocab_size + rows)


def rope_positions(
    config: PreTrainedConfig, codes: torch.Tensor, attended: torch.Tensor, grids: torch.Tensor
) -> torch.Tensor:
    """
    M-RoPE positions, of shape `(3, batch_size, seq_len)`, as every family's `get_rope_index` gives them for attended
    tokens: a text token stands one after the token before it; the tokens of an image stand at its start plus their
    time, row and column, and the next token at its start plus its longer side. That method loops over all tokens in
    Python.

    `codes` and the distinct images' `grids` are those of [`image_codes`].
    """
    vocab_size, merge_size = config.text_config.vocab_size, config.vision_config.spatial_merge_size
    offsets, advances = [], []
    for frames, height, width in grids.tolist():
        height, width = height // merge_size, width // merge_size
        offsets.append(torch.cartesian_prod(*map(torch.arange, (frames, height, width))))
        advances.append(torch.zeros(len(offsets[-1]), dtype=torch.long))
        advances[-1][-1] = max(height, width)
    is_image = codes >= vocab_size
    rows = (codes[is_image] - vocab_size).cpu()
    advance = torch.ones_like(codes).masked_scatter(is_image, torch.cat(advances)[rows].to(codes.device)) * attended
    positions = (advance.cumsum(1) - advance).expand(3, -1, -1).clone()
    positions[:, is_image] += torch.cat(offsets)[rows].T.to(codes.device)
    return positions
