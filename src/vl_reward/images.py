"""The one way this project opens an image, so that training, labelling and evaluation see the same pixels."""

import io
import warnings
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, ImageOps


MAX_ASPECT_RATIO = 200  # Qwen2.5-VL's image processor takes no more


def open_image(source: Image.Image | str | Path | dict) -> Image.Image:
    """
    Open an image without decoding it. `source` is what [`load_image`] takes.

    Raises:
        ValueError: For a URL, and for a size, as the header has it, that must not be decoded.
    """
    if isinstance(source, dict):
        source = io.BytesIO(source["bytes"]) if source.get("bytes") is not None else source["path"]
    if isinstance(source, str) and "://" in source:
        raise ValueError("it is a URL, and nothing is fetched while a model runs: download it first")
    if isinstance(source, Image.Image):
        image = source
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error below
            image = Image.open(source)
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, and {Image.MAX_IMAGE_PIXELS:,} are the limit")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels: one side is over {MAX_ASPECT_RATIO} times the other")
    return image


def image_key(source: Image.Image | str | Path | dict) -> object:
    """What two sources have in common if they are the same file, the same bytes or the same `PIL.Image.Image`."""
    if isinstance(source, dict):
        return source["bytes"] if source.get("bytes") is not None else str(source["path"])
    return id(source) if isinstance(source, Image.Image) else str(source)


@contextmanager
def named_errors(source: Image.Image | str | Path | dict):
    """Turn what PIL raises into a `ValueError` that names the image."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        name = (source.get("path") or "image bytes") if isinstance(source, dict) else source
        raise ValueError(f"{name} could not be decoded ({error}). Replace the file, or leave its row out.") from error


def load_image(source: Image.Image | str | Path | dict) -> Image.Image:
    """
    Decode an image fully into RGB: EXIF orientation applied, transparency laid on white, 16-bit scaled down to 8-bit.

    Args:
        source (`PIL.Image.Image`, `str`, `Path` or `dict`):
            An image, its path, or `{"bytes": ..., "path": ...}` as an undecoded image column of `datasets` gives it.

    Returns:
        `PIL.Image.Image` in mode RGB.

    Raises:
        ValueError: If the file is missing, truncated, not an image, over `PIL.Image.MAX_IMAGE_PIXELS`, or more than
            200 times as long as wide; and for a URL.
    """
    with named_errors(source):
        image = open_image(source)
        image.load()  # `Image.open` reads the header only: a truncated file shows itself here

    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # PIL would clip 16-bit values at 255 and return a white image
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
