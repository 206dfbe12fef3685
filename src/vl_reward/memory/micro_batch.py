"""What a process computes at a time."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, TrainingArguments
from transformers.utils.generic import is_flash_attention_requested
from trl import GRPOConfig

from ..arguments.model_config import VisionModelConfig
from ..data.videos.frame_limits import FrameLimits
from ..prefix_sharing.packed_rows import PackedRows


PROMPT_TEXT = 128  # tokens of a prompt beside its image
RESPONSE = 1024  # tokens of a response where nothing limits it


@dataclass
class MicroBatch:
    """
    Prompts with an image each, and responses to each of them, all of equal length.

    Args:
        prompts, responses (`int`):
            The number of prompts, and of responses to each.
        image_tokens, text_tokens, response_tokens (`int`):
            Tokens of a prompt's image or video, of its text, and of a response.
        is_shared (`bool`):
            Whether what the rows of a prompt have in common is computed once.
    """

    prompts: int
    responses: int
    image_tokens: int
    text_tokens: int
    response_tokens: int
    is_shared: bool

    @classmethod
    def from_arguments(
        cls, training_args: TrainingArguments, model_args: VisionModelConfig, config: PreTrainedConfig
    ) -> "MicroBatch":
        """
        The largest that a recipe's arguments allow: images of the whole pixel budget, or videos where a limit of theirs
        is given, rows of `max_length`.
        """
        vision, prompts = config.vision_config, training_args.per_device_train_batch_size
        token = (vision.patch_size * vision.spatial_merge_size) ** 2
        image = model_args.image_pixels // token
        if model_args.video_limits:
            limits = FrameLimits(**model_args.video_limits)
            image = max(image, limits.max_frames // vision.temporal_patch_size * (limits.max_pixels // token))
        if isinstance(training_args, GRPOConfig):  # it shuffles the responses to a prompt among micro-batches
            return cls(prompts, 1, image, PROMPT_TEXT, training_args.max_completion_length or RESPONSE, False)
        limit = training_args.max_length or image + PROMPT_TEXT + RESPONSE
        text, image = min(PROMPT_TEXT, limit // 4), min(image, limit // 2)
        attention = model_args.attn_implementation
        is_flash = is_flash_attention_requested(requested_attention_implementation=attention)
        is_shared = model_args.share_prefixes and (is_flash or attention in (None, "sdpa", "eager"))
        return cls(prompts, 2, image, text, limit - image - text, is_shared)

    @property
    def rows(self) -> int:
        """How many conversations there are."""
        return self.prompts * self.responses

    @property
    def row_length(self) -> int:
        """Tokens of a conversation."""
        return self.image_tokens + self.text_tokens + self.response_tokens

    @property
    def images(self) -> int:
        """The images that the vision tower encodes."""
        return self.prompts if self.is_shared else self.rows

    def packed_rows(self) -> PackedRows:
        """The rows as [`share_prefixes`] packs them."""
        prompt, response = self.image_tokens + self.text_tokens, self.response_tokens
        prompts = torch.arange(self.prompts * prompt).view(self.prompts, prompt).repeat(self.responses, 1)
        responses = prompts.max() + 1 + torch.arange(self.rows * response).view(self.rows, response)
        codes = torch.cat([prompts, responses], dim=1)
        positions = torch.arange(self.row_length).expand(3, *codes.shape)
        return PackedRows.from_rows(codes, positions, torch.ones_like(codes).bool())
