"""Videos as vLLM takes them: the frames that training sees, their times, and what vLLM would place otherwise."""

import base64
import contextlib
import io
from dataclasses import asdict

from torchvision.transforms.functional import to_pil_image
from transformers import ProcessorMixin, Qwen3VLProcessor

from .video import Sampling, Video
from .video_tokens import grid_of, times_in_text


# The frames come as this project chose and scaled them; transformers' processor would do both again.
AS_GIVEN = {"do_resize": False, "do_sample_frames": False, "cap_pixels_per_frame": False}

# A server takes 32 frames of a video otherwise. It would choose a reader of files by the processor, though no file is
# read, and vLLM 0.30 fails there with transformers 5.23, which has the class under the name of its backend.
MEDIA_KWARGS = {"video": {"num_frames": -1, "video_backend": "opencv"}}


def processor_kwargs(processor: ProcessorMixin, videos: list[Video]) -> dict:
    """What vLLM hands to transformers' processor with a prompt's videos."""
    if times_in_text(processor):  # vLLM itself adds each video's metadata, and `do_sample_frames`
        return {"videos_kwargs": {name: AS_GIVEN[name] for name in ("do_resize", "cap_pixels_per_frame")}}
    return {"videos_kwargs": {**AS_GIVEN, "video_metadata": [asdict(video.sampling.metadata) for video in videos]}}


@contextlib.contextmanager
def places_without_videos():
    """
    Let Qwen3-VL's processor take a text with places of videos that are not given with it.

    vLLM 0.30 processes each video by itself, and then the whole text without them, and fills in their places. This is
    what transformers 5.23 refuses ("Found 1 <|video_pad|> tokens in the text but no videos were passed"), and vLLM 0.32
    calls it likewise. Goes when a vLLM runs `tests/real_vllm/test_qwen3_vl.py` without it.
    """
    check = Qwen3VLProcessor.validate_inputs

    def check_what_is_given(self, images=None, text=None, videos=None, **kwargs):
        if videos is None:
            text = [one.replace(self.video_token, "") for one in ([text] if isinstance(text, str) else text)]
        check(self, images=images, text=text, videos=videos, **kwargs)

    Qwen3VLProcessor.validate_inputs = check_what_is_given
    try:
        yield
    finally:
        del Qwen3VLProcessor.validate_inputs  # what it inherits is back


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
    Why vLLM would place the text after a video of Qwen2.5-VL elsewhere than transformers does, or `None` if it would
    not.

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
