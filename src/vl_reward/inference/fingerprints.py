"""Hashes by which work that is written down is found again, and never mistaken for another model's or another row's."""

import contextlib
import hashlib
import json
from dataclasses import asdict
from pathlib import Path

import av
import torch
import transformers
from transformers import PreTrainedModel, ProcessorMixin
from transformers.integrations import is_deepspeed_zero3_enabled

from ..data.encoding import named_row
from ..data.images import as_image_list, image_key
from ..data.messages import as_messages
from ..data.videos.frame_limits import FrameLimits
from ..data.videos.video_source import as_video_list, frames_of, given_fps, shown_video, unwrapped, videos_of


def settings_fingerprint(processor: ProcessorMixin, **settings) -> str:
    """
    A hash of a processor's chat template, tokenizer, image and video processing, of the versions of transformers and of
    PyAV, which decodes videos, and of `settings`.
    """
    settings = {
        **settings,
        "template": processor.chat_template,
        "tokenizer": processor.tokenizer.get_vocab(),
        "images": processor.image_processor.to_dict(),
        "videos": [processor.video_processor.to_dict(), asdict(FrameLimits.of(processor)), av.__version__],
        "transformers": transformers.__version__,
    }
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def model_fingerprint(model: PreTrainedModel, processor: ProcessorMixin, **settings) -> str:
    """
    A hash of all that decides what a model says of a row: weights in their dtype, attention, chat template, tokenizer,
    image and video processing, the version of transformers, between which results are not comparable, and `settings`.
    Under ZeRO-3 every process has to call it: a parameter is gathered to be read.
    """
    settings |= {"attention": model.config._attn_implementation}
    digest = hashlib.sha256(settings_fingerprint(processor, **settings).encode())
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        with gathered(tensor):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            values = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            digest.update(values.numpy().data)
    return digest.hexdigest()


def gathered(tensor: torch.Tensor):
    """A context in which a parameter is whole on each process. Under ZeRO-3 each holds a part."""
    if not is_deepspeed_zero3_enabled():
        return contextlib.nullcontext()
    import deepspeed  # starts compilers and looks for devices: only where it is in use

    return deepspeed.zero.GatheredParameters([tensor])


def row_key(fingerprint: str, row: dict) -> str:
    """
    A hash of a row and of what it is asked of: the bytes of its `images` and `videos`, and all other columns but its
    `id`. A row that cannot be used has one, too: where a prompt is no conversation it is taken as it is, and where
    there is no file, that is what the hash is of.

    Args:
        fingerprint (`str`):
            That of the model, see [`model_fingerprint`].
        row (`dict`):
            The row. Its `id` stands in the message where it cannot be hashed.

    Raises:
        ValueError: If `images` or `videos` are neither one nor a list.
    """
    with named_row(f"row {row.get('id', '?')}"):
        texts = {key: value for key, value in row.items() if key not in ("id", "images", "videos", "video")}
        with contextlib.suppress(ValueError):
            texts["prompt"] = as_messages(row.get("prompt"), [])
        digest = hashlib.sha256(json.dumps([fingerprint, texts], sort_keys=True).encode())
        for image in as_image_list(row["images"]):
            digest.update(image_digest(image))
        for video in as_video_list(videos_of(row)):
            digest.update(b"video")
            digest.update(video_digest(video))
        return digest.hexdigest()


def image_digest(image) -> bytes:
    """A hash of an image's file, or of the pixels of a decoded one."""
    key = image_key(image)
    if isinstance(key, int):  # a decoded image
        key = repr((image.mode, image.size)).encode() + image.tobytes()
    elif isinstance(key, str):
        key = key.encode() if key.startswith("data:") else file_bytes(key)
    return hashlib.sha256(key).digest()


def video_digest(video) -> bytes:
    """A hash of a video's file, or of its frames in their order."""
    try:
        source, fps = unwrapped(video), given_fps(video)
        frames = frames_of(source)
    except (ValueError, OSError):  # it cannot be used, and that is what the hash is of
        return hashlib.sha256(shown_video(video).encode()).digest()
    if frames is not None:
        return hashlib.sha256(b"".join([repr(fps).encode(), *map(image_digest, frames)])).digest()
    return hashlib.sha256(source if isinstance(source, bytes) else file_bytes(source)).digest()


def file_bytes(path: str) -> bytes:
    """A file's bytes, or the path where it cannot be read. Pipes and devices, which might never end, are not opened."""
    try:
        return Path(path).read_bytes() if Path(path).is_file() else repr(path).encode()
    except (OSError, ValueError):
        return repr(path).encode()
