"""Videos as vLLM takes them: the frames that training sees, their times, and what vLLM would place otherwise."""

import base64
import io
from dataclasses import asdict

from torchvision.transforms.functional import to_pil_image
from transformers import ProcessorMixin

from .video import Sampling, Video
from .video_tokens import grid_of


# The frames come as this project chose and scaled them; transformers' processor would do both again.
AS_GIVEN = {"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False}

# A server takes 32 frames of a video otherwise. It would choose a reader of files by the processor, though no file is
# read, and vLLM 0.30 fails there with transformers 5.23, which has the class under the name of its backend.
MEDIA_KWARGS = {"video": {"num_frames": -1, "video_backend": "opencv"}}


def processor_kwargs(videos: list[Video]) -> dict:
    """What vLLM hands to transformers' processor with a prompt's videos."""
    return {"videos_kwargs": {**AS_GIVEN, "video_metadata": [asdict(video.sampling.metadata) for video in videos]}}


def as_video_url(video: Video) -> str:
    """
    A video's frames as data in a URL, without loss. vLLM takes a list of images under the name `video/jpeg` alone, and
    reads each by its own header.
    """
    frames = []
    for frame in video.frames:
        buffer = io.BytesIO()
        to_pil_image(frame).save(buffer, "PNG")
        frames.append(base64.b64encode(buffer.getvalue()).decode())
    return f"data:video/jpeg;base64,{','.join(frames)}"


def placed_otherwise(processor: ProcessorMixin, sampling: Sampling, tokens_per_second: float) -> str | None:
    """
    Why vLLM would place the text after a video elsewhere than transformers does, or `None` if it would not.

    After a video, transformers 5.23 goes on with the position that follows the longer side of a frame in tokens. vLLM
    0.30 goes on after the last position in time as well.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        sampling ([`Sampling`]):
            Which of its frames the model sees, and how large.
        tokens_per_second (`float`):
            Positions per second of the model, from its configuration.
    """
    frames, *size = grid_of(processor, sampling)
    seconds = processor.video_processor.temporal_patch_size / sampling.metadata.sampled_fps
    steps = int((frames - 1) * seconds * tokens_per_second)
    longer = max(size) // processor.video_processor.merge_size
    if steps < longer:
        return None
    return (
        f"a video is {steps + 1} places long in time and {longer} in size: vLLM would put the text after it elsewhere"
        " than training does. Lower `video_max_frames`, raise `video_max_pixels`, or set `engine: transformers`."
    )
