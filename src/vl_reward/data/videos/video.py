"""The one way this project reads a video, so that training, labelling and evaluation see the same frames."""

import dataclasses
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from qwen_vl_utils.vision_process import FRAME_FACTOR
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import pil_to_tensor, resize
from transformers import ProcessorMixin
from transformers.video_utils import VideoMetadata

from ..images import blank_image, image_key, image_size, load_image, white
from .frame_limits import FrameLimits
from .video_file import decode, look_at, opened
from .video_source import VideoSource, frames_of, given_fps, named_errors, unwrapped


@dataclass(frozen=True)
class Sampling:
    """
    Which frames of a video are seen, and how large.

    Args:
        indices (`tuple[int, ...]`):
            The places of the frames among all, at even distances. An odd number of frames in a list or a folder is made
            even: the last is repeated.
        total (`int`):
            How many frames there are.
        fps (`float`):
            How many of them a second has.
        height (`int`), width (`int`):
            What the frames are scaled to.
    """

    indices: tuple[int, ...]
    total: int
    fps: float
    height: int
    width: int

    @property
    def seconds_per_frame(self) -> float:
        """The distance in time of the frames that are seen."""
        return self.total / (len(self.indices) * self.fps)

    @property
    def metadata(self) -> VideoMetadata:
        """As transformers' processors take it."""
        return VideoMetadata(total_num_frames=self.total, fps=self.fps, frames_indices=list(self.indices))

    def record(self) -> dict:
        """What was sampled, for files that are kept."""
        return {"frames": len(self.indices), "seconds_per_frame": self.seconds_per_frame} | dataclasses.asdict(self)


@dataclass(frozen=True, eq=False)
class Video:
    """
    The frames of a video that a model sees.

    Args:
        frames (`torch.Tensor` of shape `(num_frames, 3, height, width)`):
            Scaled, in 8 bits.
        sampling ([`Sampling`]):
            Which they are.
    """

    frames: torch.Tensor
    sampling: Sampling


def token_size(processor: ProcessorMixin) -> int:
    """The side of a visual token in pixels."""
    return processor.video_processor.patch_size * processor.video_processor.merge_size


def sample_list(frames: list, fps: float | None, limits: FrameLimits, factor: int) -> Sampling:
    """
    Which frames of a list are seen: all up to the limit, or as many at even distances. Where their rate is known, they
    are sampled as a file's are.

    Args:
        frames (`list`):
            What [`load_image`] takes.
        fps (`float`, *optional*):
            How many of them a second has. Without it they have been sampled already, at the `fps` of `limits`.
        limits ([`FrameLimits`]):
            What is taken of a video.
        factor (`int`):
            The side of a visual token in pixels.

    Raises:
        ValueError: For frames of different sizes, and what [`FrameLimits`] refuses.
    """
    sizes = {image_size(frame) for frame in {image_key(frame): frame for frame in frames}.values()}
    if len(sizes) > 1:
        raise ValueError(f"its frames are of different sizes, such as {sorted(sizes)[:2]}: scale them to one")
    ((width, height),) = sizes
    if fps is not None:
        return sample(len(frames), fps, limits, limits.frame_size(height, width, factor))
    total = len(frames) + len(frames) % FRAME_FACTOR
    number = min(total, limits.max_frames // FRAME_FACTOR * FRAME_FACTOR)
    return Sampling(even_indices(total, number), total, limits.fps, *limits.frame_size(height, width, factor))


def sample(total: int, fps: float, limits: FrameLimits, size: tuple[int, int]) -> Sampling:
    """Which of `total` frames at `fps` are seen within `limits`, scaled to `size` (height and width)."""
    return Sampling(even_indices(total, limits.number_of_frames(total, fps)), total, fps, *size)


def even_indices(total: int, number: int) -> tuple[int, ...]:
    """The places of `number` frames among `total`, from the first to the last, at even distances."""
    return tuple(torch.linspace(0, total - 1, number).round().long().tolist())  # as `qwen_vl_utils` rounds


def blank_video(source: VideoSource) -> dict:
    """
    A white video with as many frames, of the same size and at the same rate as another one, which is not decoded.

    Raises:
        ValueError: What [`load_video`] does, but for frames themselves.
    """
    with named_errors(source):
        plain, fps = unwrapped(source), given_fps(source)
        if (frames := frames_of(plain)) is not None:
            return {"frames": list(map(blank_image, frames)), "fps": fps}
        with opened(plain) as (container, stream):
            file = look_at(container, stream)
        return {"frames": [white((file.width, file.height))] * file.total, "fps": file.fps}


def sampling_of(source: VideoSource, processor: ProcessorMixin) -> Sampling:
    """
    What [`load_video`] will take of a video, from its headers. It takes the same arguments, and raises the same, but
    for frames themselves. Of a turned file, height and width are those before it is turned.
    """
    limits, factor = FrameLimits.of(processor), token_size(processor)
    with named_errors(source):
        plain = unwrapped(source)
        if (frames := frames_of(plain)) is not None:
            return sample_list(frames, given_fps(source), limits, factor)
        check_no_fps(source)
        with opened(plain) as (container, stream):
            file = look_at(container, stream)
        return sample(file.total, file.fps, limits, limits.frame_size(file.height, file.width, factor))


def check_no_fps(source: VideoSource) -> None:
    """
    Raises:
        ValueError: If a file is given with an `fps`: it has its own.
    """
    if given_fps(source) is not None:
        raise ValueError("its `fps` is given, and a file has its own: leave `fps` out, it is for frames")


def load_video(source: VideoSource, processor: ProcessorMixin) -> Video:
    """
    Decode a video's frames: as many, at such distances and as large as `qwen_vl_utils.fetch_video` takes them within
    the processor's [`FrameLimits`], turned as the file says.

    `fetch_video` itself reads no files without `torchcodec`, `decord` or torchvision's `read_video`, which 0.29 has no
    more; it follows URLs, and scales frames that are given as a list twice.

    Args:
        source (`str`, `Path`, `bytes`, `list` or `dict`):
            A file, a folder of frames, a file's bytes, a list of frames (what [`load_image`] takes), or a dictionary
            with one of these under `path`, `bytes` or `frames`. There, `fps` may say how many frames a second has;
            without it they have been sampled already, at [`FrameLimits`]' `fps`.
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.

    Returns:
        [`Video`]: its frames in 8 bits, of shape `(num_frames, 3, height, width)`, and which they are.

    Raises:
        ValueError: If the video is missing, cut, damaged, of no known format, a URL, has no frame or too many, or
            frames that are too large. It is named.
    """
    limits, factor = FrameLimits.of(processor), token_size(processor)
    with named_errors(source):
        plain = unwrapped(source)
        if (frames := frames_of(plain)) is not None:
            sampling = sample_list(frames, given_fps(source), limits, factor)
            loaded = [load_image(frames[min(i, len(frames) - 1)]) for i in sampling.indices]
            return Video(torch.stack([scaled(frame, sampling) for frame in loaded]), sampling)
        check_no_fps(source)
        with opened(plain) as (container, stream):
            file, scaled_frames = look_at(container, stream), []
            sampling = sample(file.total, file.fps, limits, limits.frame_size(file.height, file.width, factor))
            for how_often, frame in decode(container, stream, file, file.nearest(np.array(sampling.indices))):
                if frame.size != (file.width, file.height) and not scaled_frames:  # it is turned
                    sampling = dataclasses.replace(sampling, height=sampling.width, width=sampling.height)
                scaled_frames += [scaled(frame, sampling)] * how_often
            return Video(torch.stack(scaled_frames), sampling)


def first_frame(source: VideoSource) -> tuple[Image.Image, int]:
    """A video's first frame as it is stored, and how many there are. Raises what [`load_video`] does for its file."""
    with named_errors(source):
        plain = unwrapped(source)
        if (frames := frames_of(plain)) is not None:
            return load_image(frames[0]), len(frames)
        with opened(plain) as (container, stream):
            file = look_at(container, stream)
            _, frame = next(decode(container, stream, file, np.array([0])))
        return frame, file.total


def scaled(frame: Image.Image, sampling: Sampling) -> torch.Tensor:
    """A frame at the size that is seen: 8 bits, of shape `(3, height, width)`."""
    size = [sampling.height, sampling.width]
    return resize(pil_to_tensor(frame), size, interpolation=InterpolationMode.BICUBIC, antialias=True)
