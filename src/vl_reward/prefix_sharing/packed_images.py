"""The distinct images and videos of a batch: which they are, what stands for them in a row, and where."""

import functools
from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig

from ..models.families import family_of
from ..models.repeated_visuals import KINDS


@dataclass
class Visuals:
    """
    The images of a batch and, after them, its videos. All of them pass the vision tower in one call, since ranks whose
    batches hold other kinds have to make the same calls.

    Args:
        pixels (`torch.Tensor` of shape `(num_patches, patch_dim)`):
            Patches of the distinct ones.
        grids (`torch.LongTensor` of shape `(num_distinct, 3)`):
            Patches of each distinct one in time, height and width.
        numbers (`list[int]`):
            Of each image in the rows, and after them of each video, which of the distinct ones it is.
        n_images (`int`):
            How many of `numbers` are images'.
        seconds (`torch.Tensor` of shape `(num_videos,)`, *optional*):
            Between the patches of each video in time, where positions say it.
    """

    pixels: torch.Tensor
    grids: torch.Tensor
    numbers: list[int]
    n_images: int
    seconds: torch.Tensor | None = None

    @classmethod
    def of_batch(cls, inputs: dict) -> "Visuals | None":
        """
        Those of a model's inputs. `None` without any. Where they come without numbers, equal ones are found by
        comparing them.
        """
        pixels, grids, numbers, n_images, all_given = [], [], [], 0, True
        for key, (of_pixels, of_grids) in KINDS.items():
            if inputs.get(of_pixels) is None:
                continue
            given, first = inputs.get(key), sum(map(len, grids))
            pixels.append(inputs[of_pixels])
            grids.append(inputs[of_grids])
            numbers += range(first, first + len(grids[-1])) if given is None else (first + given).tolist()
            n_images = len(numbers) if key == "image_numbers" else n_images
            all_given &= given is not None
        if not pixels:
            return None
        pixels, grids = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in (pixels, grids))
        if not all_given:
            kept, same_as = unique_images(pixels, grids)
            patches, numbers = pixels.split(grids.prod(-1).tolist()), [same_as[number] for number in numbers]
            pixels, grids = torch.cat([patches[i] for i in kept]), grids[kept]
        return cls(pixels, grids, numbers, n_images, inputs.get("second_per_grid_ts"))

    def codes(self, config: PreTrainedConfig, input_ids: torch.Tensor) -> torch.Tensor | None:
        """
        Number what stands at each token: the id of a text token; past the vocabulary, for a token of an image or a
        video, the row of its features among those of the distinct ones.

        Returns:
            `torch.LongTensor` of shape `(batch_size, seq_len)`, or `None` if tokens and pixels do not fit together.
        """
        lengths = (self.grids.prod(-1) // config.vision_config.spatial_merge_size**2).tolist()
        rows_of = torch.arange(sum(lengths)).split(lengths)
        codes = input_ids
        for token, numbers in (
            (config.image_token_id, self.numbers[: self.n_images]),
            (config.video_token_id, self.numbers[self.n_images :]),
        ):
            is_visual = input_ids == token
            rows = torch.cat([rows_of[number] for number in numbers]) if numbers else torch.arange(0)
            if len(rows) != is_visual.sum():
                return None
            codes = codes.masked_scatter(is_visual, config.text_config.vocab_size + rows.to(input_ids.device))
        return codes

    def positions(self, config: PreTrainedConfig, input_ids: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        """
        M-RoPE positions, of shape `(3, batch_size, seq_len)`, as every family's `get_rope_index` gives them for
        attended tokens: a text token stands one after the token before it; the tokens of an image or a video stand at
        its start plus their time, row and column, and the next token at its start plus its longer side. That method
        loops over all tokens in Python.
        """
        offsets = torch.zeros(*input_ids.shape, 3, dtype=torch.long, device=input_ids.device)
        advance = torch.ones_like(input_ids)
        for token, blocks in (
            (config.image_token_id, [(*grid, 1) for grid in self.grids[self.numbers[: self.n_images]].tolist()]),
            (config.video_token_id, self.blocks_of_videos(config)),
        ):
            if blocks:
                is_visual, merge_size = input_ids == token, config.vision_config.spatial_merge_size
                shifts, steps = zip(*(block(merge_size, *one) for one in blocks), strict=True)
                offsets[is_visual] = torch.cat(shifts).to(input_ids.device)
                advance[is_visual] = torch.cat(steps).to(input_ids.device)
        advance = advance * attended
        return (advance.cumsum(1) - advance) + offsets.permute(2, 0, 1)

    def blocks_of_videos(self, config: PreTrainedConfig) -> list[tuple[int, int, int, float]]:
        """
        The grids of videos, as they stand in one piece in a row, and how far their steps in time are apart. Where times
        are in the text, each step is a piece by itself.
        """
        grids = self.grids[self.numbers[self.n_images :]].tolist()
        if family_of(config).times_in_text:
            return [(1, height, width, 1) for frames, height, width in grids for _ in range(frames)]
        seconds = [1] * len(grids) if self.seconds is None else self.seconds
        seconds = seconds.cpu() if torch.is_tensor(seconds) else seconds
        rate = config.vision_config.tokens_per_second
        return [(*grid, float(rate * one)) for grid, one in zip(grids, seconds, strict=True)]


@functools.lru_cache(maxsize=256)
def block(merge_size: int, frames: int, height: int, width: int, interval: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Of each token of a grid the time, row and column, and what the next token is away from it."""
    height, width = height // merge_size, width // merge_size
    times = (torch.arange(frames) * interval).long()  # as `get_vision_position_ids` rounds
    steps = torch.zeros(frames * height * width, dtype=torch.long)
    steps[-1] = max(height, width)
    return torch.cartesian_prod(times, torch.arange(height), torch.arange(width)), steps


def unique_images(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor) -> tuple[list[int], list[int]]:
    """
    Find equal images, or videos, in a batch.

    Returns:
        `tuple[list[int], list[int]]`: those to keep, by their place in the batch; and for each of the batch which of
        the kept ones it equals.
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
