"""TRL's model arguments, and the one that vision-language models need besides."""

from dataclasses import dataclass, field

from trl import ModelConfig


@dataclass
class VisionModelConfig(ModelConfig):
    """
    [`~trl.ModelConfig`] with the pixel budget of an image.

    Parameters:
        max_pixels (`int`, *optional*, defaults to `1003520`):
            Larger images are scaled down to this many pixels. One visual token of Qwen2.5-VL is 28 x 28 pixels, so this
            is 1,280 tokens; the limit in the hub's checkpoints is 16,384.
        share_prefixes (`bool`, *optional*, defaults to `True`):
            Whether the tokens and images that rows of a batch have in common are computed once.
    """

    max_pixels: int = field(
        default=1280 * 28 * 28,
        metadata={
            "help": "Larger images are scaled down to this many pixels. One visual token of Qwen2.5-VL is 28 x 28 "
            "pixels, so this is 1,280 tokens; the limit in the hub's checkpoints is 16,384."
        },
    )
    share_prefixes: bool = field(
        default=True,
        metadata={"help": "Whether the tokens and images that rows of a batch have in common are computed once."},
    )
