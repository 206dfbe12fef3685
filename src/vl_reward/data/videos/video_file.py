"""A video file by PyAV: what its packets say before a frame is decoded, and the frames that are wanted."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from PIL import Image


# What FFmpeg may take the bytes for. Its playlists (HLS, DASH, concat) would open other files, and URLs.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,gif"
MAX_BYTES = 2 * 2**30
MAX_FRAMES = 500_000  # four hours at 30 a second
MAX_FRAME_PIXELS = 2**26  # four times 8K's
UNEVEN = 0.5  # of the distance between frames, by which one is off its place in even distances


@dataclass(frozen=True)
class FileFrames:
    """
    What a file's packets say of its frames.

    Args:
        height (`int`), width (`int`):
            Of a frame as it is stored. A turned video is turned when it is decoded.
        fps (`float`):
            Frames per second, on average.
        times (`np.ndarray` of shape `(total,)`):
            When each frame is shown, in seconds.
    """

    height: int
    width: int
    fps: float
    times: np.ndarray

    @property
    def total(self) -> int:
        """How many frames there are."""
        return len(self.times)

    def nearest(self, places: np.ndarray) -> np.ndarray:
        """
        The frames at even distances, by their `places` in these. Where frames come at uneven ones, those that are
        nearest in time: a place in the file would be no place in time.
        """
        even = np.linspace(self.times[0], self.times[-1], self.total)
        if np.abs(self.times - even).max() <= UNEVEN * (even[-1] - even[0]) / (self.total - 1):
            return places
        middles = (self.times[:-1] + self.times[1:]) / 2
        return np.searchsorted(middles, even[places])


@contextmanager
def opened(source: str | Path | bytes) -> Iterator[tuple]:
    """
    A container and its first video stream. Bytes are handed to FFmpeg, and no path: it would read protocols in it.

    Raises:
        ValueError: For what is no file, or over [`MAX_BYTES`]; for none of [`FORMATS`], or no video in it.
    """
    if isinstance(source, bytes):
        n_bytes, file = len(source), io.BytesIO(source)
    else:
        if Path(source).exists() and not Path(source).is_file():
            raise ValueError("it is not a regular file")
        n_bytes, file = Path(source).stat().st_size, None
    if not n_bytes:
        raise ValueError("it is empty")
    if n_bytes > MAX_BYTES:
        raise ValueError(f"{n_bytes:,} bytes, and {MAX_BYTES:,} are the limit")
    with file or Path(source).open("rb") as file:
        try:
            container = av.open(file, options={"format_whitelist": FORMATS}, metadata_errors="ignore")
        except av.FFmpegError as error:
            raise ValueError(f"{n_bytes:,} bytes that are no video, or one that is cut off ({error})") from error
        with container:
            if not container.streams.video:
                raise ValueError("it has no video in it, or is cut off before it says so")
            yield container, container.streams.video[0]


def look_at(container, stream) -> FileFrames:
    """
    What the packets of a file say, without a frame decoded. `container` and `stream` are what [`opened`] gives.

    Raises:
        ValueError: For a size that must not be decoded, and for less than the header promises.
    """
    times, ends = [], []
    for packet in container.demux(stream):
        if packet.size and not packet.is_discard:
            if len(times) >= MAX_FRAMES:
                raise ValueError(f"it has more than {MAX_FRAMES:,} frames. Cut it into shorter ones")
            times.append(packet.pts)
            ends.append((packet.pts or 0) + (packet.duration or 0))
    if not times:
        raise ValueError("it has no frame")
    height, width = stream.codec_context.height, stream.codec_context.width
    if not height or not width:
        raise ValueError("its header has no size of a frame")
    if height * width > MAX_FRAME_PIXELS:
        raise ValueError(f"frames of {width} x {height} pixels, and {MAX_FRAME_PIXELS:,} are the limit")
    if stream.frames > len(times):
        raise ValueError(f"it is cut off: its header says {stream.frames} frames, and {len(times)} are there")
    if None in times or len(set(times)) < len(times):  # AVI has none for some codecs: frames at even distances
        if not stream.average_rate:
            raise ValueError("its frames have no times, and its header no frame rate")
        return FileFrames(height, width, float(stream.average_rate), np.arange(len(times)) / float(stream.average_rate))
    seconds = np.sort(np.array(times, dtype=np.float64)) * float(stream.time_base)
    measured = (len(seconds) - 1) / (seconds[-1] - seconds[0]) if len(seconds) > 1 else 1.0
    promised = promised_seconds(stream)
    if promised is not None:
        there = (max(ends) - min(times)) * float(stream.time_base)
        if there + max(3 / measured, 0.02 * promised) < promised:
            raise ValueError(f"it is cut off: its header says {promised:.1f} seconds, and {there:.1f} are there")
    rate = float(stream.average_rate or 0)
    return FileFrames(height, width, rate if abs(rate - measured) < 0.05 * measured else measured, seconds)


def promised_seconds(stream) -> float | None:
    """How long the header says that the video is: Matroska writes it beside the stream."""
    if "DURATION" in stream.metadata:
        hours, minutes, seconds = stream.metadata["DURATION"].split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    return None if stream.duration is None else float(stream.duration * stream.time_base)


def decode(container, stream, file: FileFrames, places: np.ndarray) -> Iterator[tuple[int, Image.Image]]:
    """
    Decode a file to its end, and yield the frames that are wanted, turned as the file says.

    Args:
        container, stream:
            What [`opened`] gives.
        file ([`FileFrames`]):
            What [`look_at`] says of it.
        places (`np.ndarray`):
            Which frames, rising. One may stand there several times.

    Yields:
        `tuple[int, Image.Image]`: how often a frame stands in `places`, and the frame.

    Raises:
        ValueError: For a frame that is damaged, missing, or of another size than the header has.
    """
    wanted, counts = np.unique(places, return_counts=True)
    how_often, found, number = dict(zip(wanted.tolist(), counts.tolist(), strict=True)), 0, -1
    container.seek(0, stream=stream)
    for number, frame in enumerate(container.decode(stream)):
        if (frame.height, frame.width) != (file.height, file.width):
            raise ValueError(f"frame {number} is {frame.width} x {frame.height} pixels, and the header says others")
        if number in how_often:
            if frame.is_corrupt:
                raise ValueError(f"frame {number} is damaged")
            if frame.rotation % 90:
                raise ValueError(
                    f"frame {number} is turned by {frame.rotation} degrees, and only quarter turns are read"
                )
            image = Image.fromarray(frame.to_ndarray(format="rgb24"))
            yield how_often[number], image.rotate(frame.rotation, expand=True)
            found += 1
    if found < len(how_often):
        raise ValueError(f"it is cut off or damaged: of its {file.total} frames, {number + 1} can be decoded")
