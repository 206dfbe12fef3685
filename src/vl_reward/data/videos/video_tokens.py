"""Videos as a processor's patches, and the text that stands for them."""

import torch
from transformers import BatchFeature, ProcessorMixin

from ...models.repeated_visuals import distinct
from .video import Sampling, Video


def process_videos(processor: ProcessorMixin, videos: list[Video]) -> BatchFeature:
    """`pixel_values_videos`, `video_grid_thw` and `video_metadata` of videos whose frames are scaled already."""
    return processor.video_processor(
        videos=[video.frames for video in videos],
        video_metadata=[video.sampling.metadata for video in videos],
        do_resize=False,
        do_sample_frames=False,
        cap_pixels_per_frame=False,  # what it would resize to; without a value there is a warning
        input_data_format="channels_first",
        return_metadata=True,
        return_tensors="pt",
    )


def grid_of(processor: ProcessorMixin, sampling: Sampling) -> list[int]:
    """The patches of a video, of which `sampling` says what is seen, in time, height and width."""
    of_videos = processor.video_processor
    frames = len(sampling.indices) // of_videos.temporal_patch_size
    return [frames, sampling.height // of_videos.patch_size, sampling.width // of_videos.patch_size]


def text_for(processor: ProcessorMixin, sampling: Sampling) -> str:
    """What the processor puts in the place of a video: its visual tokens and, in Qwen3-VL, the times between them."""
    held = {
        "video_grid_thw": torch.tensor([grid_of(processor, sampling)]),
        "video_metadata": [sampling.metadata],
    }
    return processor.replace_video_token(held, video_idx=0)


def times_in_text(processor: ProcessorMixin) -> bool:
    """Whether a video's times stand in the text, as Qwen3-VL's do, and not in its positions."""
    return "second_per_grid_ts" not in processor.model_input_names


def model_inputs(processor: ProcessorMixin, videos: list[Video]) -> dict[str, torch.Tensor]:
    """
    What a model takes of a batch's videos, each distinct one once, and `video_numbers`: which of them each video is.
    An empty dictionary without any.
    """
    if not videos:
        return {}
    different, numbers = distinct(videos, lambda video: (video.frames.shape, video.frames.numpy()))
    processed = process_videos(processor, different)
    inputs = {key: processed[key] for key in ("pixel_values_videos", "video_grid_thw")}
    inputs["video_numbers"] = torch.tensor(numbers)
    if not times_in_text(processor):
        step = processor.video_processor.temporal_patch_size
        seconds = [step / video.sampling.metadata.sampled_fps for video in videos]
        inputs["second_per_grid_ts"] = torch.tensor(seconds)  # in 32 bits, as the processor gives them
    return inputs
