"""How large an image may be, in pixels or in visual tokens, and how much of a video is seen."""

from dataclasses import dataclass, field

from transformers import AutoConfig


def image_pixels(path: str, revision: str | None, max_pixels: int | None, max_image_tokens: int | None) -> int | None:
    """
    The pixels of a budget.

    Args:
        path (`str`), revision (`str`, *optional*):
            The checkpoint. Its config says how many pixels a visual token has: 28 x 28 of Qwen2.5-VL and 32 x 32 of
            Qwen3-VL.
        max_pixels (`int`, *optional*):
            The budget, where `max_image_tokens` is not given.
        max_image_tokens (`int`, *optional*):
            The budget in visual tokens, which mean the same in every family.
    """
    if max_image_tokens is None:
        return max_pixels
    vision = AutoConfig.from_pretrained(path, revision=revision).vision_config
    return max_image_tokens * (vision.patch_size * vision.spatial_merge_size) ** 2


@dataclass
class VideoBudget:
    """
    What a model sees of a video. What is not given is the checkpoint's, which was trained with it, or else
    [`FrameLimits`]' default.

    Parameters:
        video_fps (`float`, *optional*):
            Frames per second that are sampled.
        video_max_frames (`int`, *optional*):
            A longer video is sampled at larger distances.
        video_max_pixels (`int`, *optional*):
            Larger frames are scaled down to this many pixels.
    """

    video_fps: float | None = field(
        default=None, metadata={"help": "Frames taken of each second of a video. Default: as in training, else 2."}
    )
    video_max_frames: int | None = field(
        default=None, metadata={"help": "The most frames taken of a video. Default: as in training, else 64."}
    )
    video_max_pixels: int | None = field(
        default=None,
        metadata={"help": "The most pixels of a frame; larger ones shrink. Default: as in training, else 151200."},
    )

    @property
    def video_limits(self) -> dict[str, float | int]:
        """What is given, by the names of [`FrameLimits`]."""
        given = {"fps": self.video_fps, "max_frames": self.video_max_frames, "max_pixels": self.video_max_pixels}
        return {name: value for name, value in given.items() if value is not None}
