"""Videos as a dataset on disk holds them, and as JSON does."""

import base64
from pathlib import Path

from datasets import Dataset, Features, List, Value, Video, concatenate_datasets

from .video_source import VideoSource, as_video_list, given_fps, unwrapped


IMAGE = {"bytes": Value("binary"), "path": Value("string")}
# One of the first three is there; `fps` only with frames.
STORED = List({**IMAGE, "frames": List(IMAGE), "fps": Value("float64")})


def stored_video(video: VideoSource, folder: Path) -> dict:
    """
    A video in the form of [`STORED`], paths that are relative to `folder` made absolute.

    Raises:
        ValueError: For what is no video.
    """
    try:
        source, fps = unwrapped(video), given_fps(video)
        frames = [located(frame, folder) for frame in source] if isinstance(source, list) else None
    except ValueError as error:
        raise ValueError(f"a video is unusable: {error}. Name a file or a folder, or leave it out.") from error
    one = {"bytes": None, "path": None} if frames is not None else located(source, folder)
    return {**one, "frames": frames, "fps": fps}


def located(source: str | Path | bytes | dict, folder: Path) -> dict:
    """
    A file, or a frame, as bytes or as an absolute path. A relative one begins at `folder`.

    Raises:
        ValueError: For what is neither bytes nor a path.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, bytes):
        return {"bytes": source, "path": None}
    if not isinstance(source, str | Path) or not str(source) or "://" in str(source):
        raise ValueError(f"{str(source)[:80]!r} is neither bytes nor a path")
    return {"bytes": None, "path": str((folder / source).resolve())}


def video_as_json(video: dict) -> str | list[str] | dict:
    """A stored video as JSON holds it: a path, a list of paths, or bytes as data URLs."""
    frames = video["frames"] and [as_text(frame, "image") for frame in video["frames"]]
    if frames and video["fps"] is not None:
        return {"frames": frames, "fps": video["fps"]}
    return frames or (as_text(video, "video") if video["fps"] is None else {"path": video["path"], "fps": video["fps"]})


def as_text(source: dict, kind: str) -> str:
    """A stored file as its path, or its bytes as a data URL of the type `kind`."""
    if source["bytes"] is None:
        return source["path"]
    return f"data:{kind};base64,{base64.b64encode(source['bytes']).decode()}"


def undecoded_videos(rows: Dataset, folder: Path) -> Dataset:
    """
    `rows` with `videos` in the form of [`STORED`], where they have `videos`, or a `video` each. Relative paths begin at
    `folder`.

    Raises:
        ValueError: For what is no video.
    """
    name = next((name for name in ("videos", "video") if name in rows.column_names), None)
    if name is None or rows.features[name] == STORED:
        return rows
    if isinstance(rows.features[name], Video):
        rows = rows.cast_column(name, Video(decode=False))
    if isinstance(rows.features[name], List) and isinstance(rows.features[name].feature, Video):
        rows = rows.cast_column(name, List(Video(decode=False)))

    def stored(row: dict) -> dict:
        given = row[name] if name == "videos" else [row[name]] if row[name] is not None else []
        # An empty path is that of a row that cannot be read.
        return {
            "videos": [
                one if isinstance(one, dict) and one.get("path") == "" else stored_video(one, folder)
                for one in as_video_list(given)
            ]
        }

    videos = rows.select_columns(name).map(stored, features=Features({"videos": STORED}), remove_columns=[name])
    return concatenate_datasets(
        [rows.remove_columns(sorted({"video", "videos"} & {*rows.column_names})), videos], axis=1
    )
