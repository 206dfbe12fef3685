"""How many frames of a video a model sees, and how large: settings that go with the processor."""

import dataclasses
import math
from dataclasses import dataclass

from qwen_vl_utils.vision_process import (
    FRAME_FACTOR,
    VIDEO_MIN_TOKEN_NUM,
    floor_by_factor,
    smart_nframes,
    smart_resize,
)
from transformers import ProcessorMixin


KEPT_AS = "frame_limits"  # an attribute of the video processor, which is saved and loaded with it


@dataclass(frozen=True)
class FrameLimits:
    """
    What is taken of a video, as `qwen_vl_utils` takes it.

    Args:
        fps (`float`, *optional*, defaults to `2.0`):
            Frames per second that are sampled, at even distances.
        max_frames (`int`, *optional*, defaults to `64`):
            A longer video is sampled at larger distances.
        max_pixels (`int`, *optional*, defaults to `151200`):
            Larger frames are scaled down to this many pixels. Two frames are one visual token for each 28 x 28 pixels
            of Qwen2.5-VL, and 32 x 32 of Qwen3-VL. Frames of less than 128 tokens are scaled up to them, or to
            `max_pixels` if that is less.

    Raises:
        ValueError: For a limit that no video meets.
    """

    fps: float = 2.0
    max_frames: int = 64
    max_pixels: int = 360 * 420

    def __post_init__(self):
        if not (math.isfinite(self.fps) and self.fps > 0):
            raise ValueError(f"`video_fps` is {self.fps}, and frames per second are a number above 0.")
        if self.max_frames < FRAME_FACTOR:
            raise ValueError(
                f"`video_max_frames` is {self.max_frames}, and {FRAME_FACTOR} frames are the least: they are one step "
                "in time of the vision tower. Raise it, or give one frame as an image."
            )
        if self.max_pixels < 1:
            raise ValueError(f"`video_max_pixels` is {self.max_pixels}, and a frame needs some. Raise it.")

    @classmethod
    def of(cls, processor: ProcessorMixin) -> "FrameLimits":
        """Those that a processor was saved with, or the defaults."""
        return cls(**(getattr(processor.video_processor, KEPT_AS, None) or {}))

    @classmethod
    def keep(cls, processor: ProcessorMixin, **given) -> None:
        """
        Give a processor other limits, in place, and all checkpoints that it is saved with.

        Args:
            processor ([`~transformers.ProcessorMixin`]):
                The processor.
            **given:
                Those of its limits that change, by their names.

        Raises:
            ValueError: For a limit that no video meets.
        """
        dataclasses.replace(cls.of(processor), **given).keep_in(processor)

    def keep_in(self, processor: ProcessorMixin) -> None:
        """Make these the processor's, in place, and those of all checkpoints that it is saved with."""
        setattr(processor.video_processor, KEPT_AS, dataclasses.asdict(self))

    def number_of_frames(self, total: int, fps: float) -> int:
        """
        How many frames of a file are sampled, of `total` at `fps`: an even number.

        Raises:
            ValueError: If there are fewer than two.
        """
        if total < FRAME_FACTOR:
            raise ValueError(f"it has {total} frame, and {FRAME_FACTOR} are the least: give one frame as an image")
        asked = {"fps": self.fps, "max_frames": self.max_frames}
        if self.fps >= fps:  # all that there are: it would come to the same, with a warning for every video
            asked = {"nframes": floor_by_factor(min(total, self.max_frames), FRAME_FACTOR)}
        return smart_nframes(asked, total, fps)

    def frame_size(self, height: int, width: int, factor: int) -> tuple[int, int]:
        """
        Height and width that frames are scaled to, in whole visual tokens.

        Args:
            height (`int`), width (`int`):
                Of a frame, in pixels.
            factor (`int`):
                The side of a visual token in pixels.

        Raises:
            ValueError: If `max_pixels` is less than one token, or no token is left of a thin frame.
        """
        if self.max_pixels < factor**2:
            raise ValueError(
                f"`video_max_pixels` is {self.max_pixels}, and one visual token is {factor} x {factor} pixels: raise it"
            )
        least = min(VIDEO_MIN_TOKEN_NUM * factor**2, self.max_pixels)
        height, width = smart_resize(height, width, factor, min_pixels=least, max_pixels=self.max_pixels)
        if not height or not width:
            raise ValueError(f"its frames are so long and thin that no token of {self.max_pixels} pixels is left")
        return height, width
