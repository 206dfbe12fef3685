"""What a row may give as a video, told apart without opening it."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import av
from PIL import Image

from ..images import DECODING_ERRORS, data_url_bytes, image_key, shown


VideoSource = str | Path | bytes | dict | Sequence
FRAME_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


def as_video_list(videos: Sequence | str | Path | bytes | dict | None) -> list:
    """
    A row's videos: a list, one video alone, or `None` for none. A list of images is that many videos: the frames of one
    are a list in the list.

    Raises:
        ValueError: For anything else.
    """
    if videos is None:
        return []
    if isinstance(videos, str | bytes | Path | dict):
        return [videos]
    if not isinstance(videos, Sequence):
        raise ValueError(f"`videos` is {shown_video(videos)}, and a video or a list of videos is needed.")
    return list(videos)


def videos_of(row: dict) -> list | None:
    """A row's `videos`, or its one `video`."""
    return [row["video"]] if row.get("videos") is None and row.get("video") is not None else row.get("videos")


def unwrapped(source: VideoSource) -> str | Path | bytes | list:
    """
    A path, bytes, or a list of frames, from what rows hold: also a dictionary, as a dataset stores it.

    Raises:
        ValueError: For what is none of these, for a URL, and for what is empty.
    """
    if isinstance(source, dict):
        known = [source.get(key) for key in ("frames", "bytes", "path")]
        source = next((value for value in known if value is not None), None)
    if isinstance(source, Image.Image) or not isinstance(source, str | bytes | Path | Sequence):
        raise ValueError(f"it is a {type(source).__name__}, and no path, bytes, or list of frames")
    if isinstance(source, str) and source.startswith("data:"):
        return data_url_bytes(source)
    if isinstance(source, str) and "://" in source:
        raise ValueError("it is a URL, and nothing is fetched while a model runs: download it first")
    if not isinstance(source, Path) and len(source) == 0:
        raise ValueError("it is empty: it has neither frames, bytes nor a path")
    return source if isinstance(source, str | bytes | Path) else list(source)


def given_fps(source: VideoSource) -> float | None:
    """
    How many of its frames a second has, where a dictionary with frames says it under `fps`.

    Raises:
        ValueError: For what is no rate.
    """
    fps = source.get("fps") if isinstance(source, dict) else None
    if fps is not None and not (isinstance(fps, int | float) and math.isfinite(fps) and fps > 0):
        raise ValueError(f"its `fps` is {fps!r}, and frames per second are a number above 0")
    return fps


def frame_files(folder: str | Path) -> list[str]:
    """The frames of a video that is a folder of images, in the order of their names. What is no folder has none."""
    files = Path(folder).iterdir() if Path(folder).is_dir() else ()
    return sorted(str(file) for file in files if file.suffix.lower() in FRAME_SUFFIXES)


def frames_of(source: str | Path | bytes | list) -> list | None:
    """
    The frames of a video that is given as such, and `None` for a file's.

    Raises:
        ValueError: For a folder without frames.
    """
    if isinstance(source, list):
        return source
    if isinstance(source, bytes) or not Path(source).is_dir():
        return None
    if not (frames := frame_files(source)):
        raise ValueError(f"it is a folder without a frame, which is {', '.join(FRAME_SUFFIXES)}")
    return frames


def video_key(source: VideoSource) -> object:
    """
    What two sources have in common if they are the same file, the same bytes or the same frames, at one rate. Raises
    what [`unwrapped`] and [`given_fps`] do, with the video named.
    """
    with named_errors(source):
        plain, fps = unwrapped(source), given_fps(source)
    if isinstance(plain, list):
        plain = tuple(map(image_key, plain))
    return (plain if isinstance(plain, bytes | tuple) else str(plain)), fps


def shown_video(source: object) -> str:
    """A video's source in an error message."""
    if isinstance(source, dict):
        known = [source.get(key) for key in ("path", "frames", "bytes")]
        source = next((value for value in known if value is not None), "a video")
    if isinstance(source, bytes):
        return "video bytes"
    if isinstance(source, Sequence) and not isinstance(source, str):
        return f"a video of {len(source)} frames" + (f", from {shown(source[0])}" if len(source) else "")
    return shown(source)


@contextmanager
def named_errors(source: VideoSource) -> Iterator[None]:
    """Turn what PIL and FFmpeg raise into a `ValueError` that names the video."""
    try:
        yield
    except (*DECODING_ERRORS, av.FFmpegError) as error:
        raise ValueError(
            f"{shown_video(source)} could not be read as a video ({error}). Replace it, or leave its row out."
        ) from error
