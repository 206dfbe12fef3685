"""The one way this project opens an image, so that training, labelling and evaluation see the same pixels."""

import base64
import binascii
import http.client
import io
import struct
import time
import urllib.request
import warnings
import zlib
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")  # PIL reads these by itself; EPS starts Ghostscript
MAX_BYTES = 64 * 2**20  # of a file, compressed as it is
MAX_ASPECT_RATIO = 200  # Qwen2.5-VL's image processor takes no more
# What PIL's readers raise for files that are cut, damaged or made to harm.
DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, OverflowError, AttributeError)
DECODING_ERRORS += (MemoryError, struct.error, zlib.error, Image.DecompressionBombError)


def confined_path(path: str | Path, root: str | Path | None) -> str:
    """
    An image's path as data names it, made absolute.

    Args:
        path (`str` or `Path`):
            Relative to `root`, or absolute and inside of it.
        root (`str` or `Path`, *optional*):
            The folder that images may come from. Without one, no path is allowed.

    Raises:
        ValueError: For a URL, a path with `..`, or one that leads out of `root`, also by a link.
    """
    if "://" in str(path):
        raise ValueError(f"{path} is a URL, and those are not fetched. Download it, or set `allow_urls` on the source.")
    if root is None:
        raise ValueError(f"{path} is a path, and the source has no `image_root`. Set it to the folder of its images.")
    root = Path(root).resolve()
    try:
        resolved = (root / path).resolve()
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path!r} is not a path ({error}).") from error
    if ".." in Path(path).parts or not resolved.is_relative_to(root):
        raise ValueError(f"{path} leads out of the image root. Move the image under `image_root`.")
    if resolved == root:
        raise ValueError(f"{path} is the image root itself, and not an image in it. Give the name of a file, or null.")
    return str(resolved)


def fetch_image(url: str, timeout: float = 10.0, max_bytes: int = MAX_BYTES) -> dict:
    """
    Download an image, as `{"bytes": ..., "path": None}`. Only data preparation calls this, and only where its YAML
    allows URLs; nothing is fetched while a model runs.

    Args:
        url (`str`):
            An http or https address.
        timeout (`float`, *optional*, defaults to `10.0`):
            Seconds that the server may stay silent, and that the download may go on.
        max_bytes (`int`, *optional*, defaults to 64 MiB):
            Size at which the download stops.

    Raises:
        ValueError: If it fails, takes longer, or the file is larger.
    """
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"{url}: only http and https are fetched.")
    data, deadline = bytearray(), time.monotonic() + timeout
    try:
        with urllib.request.urlopen(url, timeout=timeout) as response:
            while len(data) <= max_bytes and (part := response.read1(2**16)):
                data += part
                if time.monotonic() > deadline:
                    raise TimeoutError(f"not complete after {timeout} seconds")
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"{url} could not be fetched ({error}).") from error
    if len(data) > max_bytes:
        raise ValueError(f"{url} is larger than {max_bytes:,} bytes.")
    return {"bytes": bytes(data), "path": None}


def as_image_list(images: Sequence | str | Path | bytes | dict | Image.Image | None) -> list:
    """
    A row's images: a list, one image alone, or `None` for none.

    Raises:
        ValueError: For anything else.
    """
    if images is None:
        return []
    if isinstance(images, str | bytes | Path | dict | Image.Image):
        return [images]
    if not isinstance(images, Sequence):
        raise ValueError(f"`images` is {shown(images)}, and an image or a list of images is needed.")
    return list(images)


def shown(source: object) -> str:
    """An image's source in an error message: no bytes, and no more of a data URL than its beginning."""
    if isinstance(source, dict):
        source = source.get("path") or "image bytes"
    text = "image bytes" if isinstance(source, bytes) else str(source)
    return text if len(text) <= 200 else f"{text[:40]}..."


def data_url_bytes(url: str) -> bytes:
    """
    The bytes that a URL such as `data:image/png;base64,...` holds.

    Raises:
        ValueError: For another kind of data URL, and for what is not base64.
    """
    head, _, data = url.partition(",")
    if not head.endswith(";base64"):
        raise ValueError("it is a data URL without `;base64,`, and only those are read")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise ValueError(f"its data URL is not base64 ({error})") from error


def open_image(source: Image.Image | str | Path | bytes | dict) -> Image.Image:
    """
    Open an image without decoding it. `source` is what [`load_image`] takes.

    Raises:
        ValueError: For a URL, for what is no file or none of [`FORMATS`], and for a size, of the file or as the header
            has it, that must not be decoded.
    """
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if source is None or source in ("", b""):
        raise ValueError("it has neither bytes nor a path")
    if not isinstance(source, str | bytes | Path | Image.Image):
        raise ValueError(f"it is a {type(source).__name__}, and no image, path, or bytes")
    if isinstance(source, str) and source.startswith("data:"):
        source = data_url_bytes(source)
    if isinstance(source, str) and "://" in source:
        raise ValueError("it is a URL, and nothing is fetched while a model runs: download it first")
    image = source if isinstance(source, Image.Image) else open_file(source)
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise ValueError(f"{image.width} x {image.height} pixels, and {Image.MAX_IMAGE_PIXELS:,} are the limit")
    if max(image.size) > MAX_ASPECT_RATIO * min(image.size):
        raise ValueError(f"{image.width} x {image.height} pixels: one side is over {MAX_ASPECT_RATIO} times the other")
    return image


def open_file(source: bytes | str | Path) -> Image.Image:
    """
    Open bytes or a file by its header. Pipes and devices, which might never end, are not opened.

    Raises:
        ValueError: For what is no regular file, over [`MAX_BYTES`], or none of [`FORMATS`].
    """
    if isinstance(source, bytes):
        n_bytes, source = len(source), io.BytesIO(source)
    else:
        if Path(source).exists() and not Path(source).is_file():
            raise ValueError("it is not a regular file")
        n_bytes = Path(source).stat().st_size
    if n_bytes > MAX_BYTES:
        raise ValueError(f"{n_bytes:,} bytes, and {MAX_BYTES:,} are the limit")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # an error in `open_image`
        try:
            return Image.open(source, formats=FORMATS)
        except UnidentifiedImageError as error:  # PIL's own message holds an address in memory
            raise ValueError(f"cannot identify {n_bytes:,} bytes as one of {', '.join(FORMATS)}") from error


def image_size(source: Image.Image | str | Path | bytes | dict) -> tuple[int, int]:
    """Width and height of what [`load_image`] gives, from the header. Raises what it does."""
    with named_errors(source):
        image = open_image(source)
        turned = image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        return image.size[::-1] if turned else image.size


def blank_image(source: Image.Image | str | Path | bytes | dict) -> Image.Image:
    """A white image of the size of another one, which is not decoded. Those of one size are one image."""
    return white(image_size(source))


@lru_cache(maxsize=256)
def white(size: tuple[int, int]) -> Image.Image:
    """The white image of a width and a height."""
    return Image.new("RGB", size, "white")


def image_key(source: Image.Image | str | Path | bytes | dict) -> object:
    """What two sources have in common if they are the same file, the same bytes or the same `PIL.Image.Image`."""
    if isinstance(source, dict):
        source = source["bytes"] if source.get("bytes") is not None else source.get("path")
    if isinstance(source, Image.Image):
        return id(source)
    return source if isinstance(source, bytes) else str(source)


@contextmanager
def named_errors(source: Image.Image | str | Path | bytes | dict):
    """Turn what PIL raises into a `ValueError` that names the image."""
    try:
        yield
    except DECODING_ERRORS as error:
        raise ValueError(
            f"{shown(source)} could not be decoded ({error}). Replace the file, or leave its row out."
        ) from error


def as_8_bit(image: Image.Image) -> Image.Image:
    """
    An image of 16-bit values, scaled down to 8 bits. PIL would clip them at 255 and return a white image.

    Raises:
        ValueError: If values lie outside of 16 bits.
    """
    image = image.convert("I")
    least, most = image.getextrema()
    if least < 0 or most > 0xFFFF:
        raise ValueError(f"its values are {least} to {most}, and 16 bits hold 0 to 65535")
    return image.point(lambda value: value / 256).convert("L")


def load_image(source: Image.Image | str | Path | bytes | dict) -> Image.Image:
    """
    Decode an image fully into RGB: EXIF orientation applied, transparency laid on white, 16-bit scaled down to 8-bit,
    the first frame of an animation.

    Args:
        source (`PIL.Image.Image`, `str`, `Path`, `bytes` or `dict`):
            An image, its path or `data:` URL, its bytes, or `{"bytes": ..., "path": ...}` as an undecoded image column
            of `datasets` gives it.

    Returns:
        `PIL.Image.Image` in mode RGB.

    Raises:
        ValueError: If the file is missing, truncated, none of [`FORMATS`], over [`MAX_BYTES`] or
            `PIL.Image.MAX_IMAGE_PIXELS`, or more than 200 times as long as wide; and for a URL.
    """
    with named_errors(source):
        image = open_image(source)
        image.load()  # `Image.open` reads the header only: a truncated file shows itself here
        image = ImageOps.exif_transpose(image)
        if image.mode == "F":
            raise ValueError("its pixels are floating-point numbers of no known scale")
        if image.mode.startswith("I"):
            image = as_8_bit(image)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
