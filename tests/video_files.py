"""Video files that tests make, good ones and hostile ones."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


SIZE = (96, 64)  # width and height


def frames(number=12, size=SIZE):
    """Grey frames, the i-th of the shade 20 i, which tells its place; a white corner tells how it is turned."""
    shades = []
    for i in range(number):
        pixels = np.full((size[1], size[0], 3), 20 * i % 256, np.uint8)
        pixels[:16, :16] = 255
        shades.append(Image.fromarray(pixels))
    return shades


def write_video(path: Path, pictures, fps=8, codec="libx264", times=None, **options):
    """Encode pictures, at `fps` or at `times` in milliseconds."""
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=fps if times is None else 1000)
        stream.width, stream.height = pictures[0].size
        stream.pix_fmt = "bgr24" if codec == "rawvideo" else "yuv420p"
        if codec == "libx264":
            stream.options = {"crf": "4", "g": "4", "bf": "0"}
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i, picture in enumerate(pictures):
            frame = av.VideoFrame.from_image(picture)
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def shades(frames):
    """The places of frames, read from their shades: `frames` is of shape `(num_frames, 3, height, width)`."""
    height, width = frames.shape[-2:]
    middle = frames[..., height // 2, width // 2].float().mean(1)
    return (middle / 20).round().int().tolist()
