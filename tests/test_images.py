"""Pixels that come out of the one image loader."""

import base64
import http.server
import io
import json
import os
import random
import shutil
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils.vision_process import smart_resize
from transformers import AutoProcessor

from vl_reward.data import images
from vl_reward.data.encoding import count_visual_tokens
from vl_reward.data.images import as_image_list, blank_image, confined_path, fetch_image, image_key, load_image


RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def corners(image):
    """The colours of the four corners, as they are read: top left, top right, bottom left, bottom right."""
    right, bottom = image.width - 2, image.height - 2
    return [image.getpixel(place) for place in ((1, 1), (right, 1), (1, bottom), (right, bottom))]


def quarters():
    """40 x 20 pixels, a quarter each in red, green, blue and white."""
    image = Image.new("RGB", (40, 20), WHITE)
    for colour, place in ((RED, (0, 0)), (GREEN, (20, 0)), (BLUE, (0, 10))):
        image.paste(colour, (*place, place[0] + 20, place[1] + 10))
    return image


# Orientation 6, say: the first row of the file is the right side of the scene, its first column the top.
EXIF = {
    1: [RED, GREEN, BLUE, WHITE],
    2: [GREEN, RED, WHITE, BLUE],
    3: [WHITE, BLUE, GREEN, RED],
    4: [BLUE, WHITE, RED, GREEN],
    5: [RED, BLUE, GREEN, WHITE],
    6: [BLUE, RED, WHITE, GREEN],
    7: [WHITE, GREEN, BLUE, RED],
    8: [GREEN, WHITE, RED, BLUE],
}


@pytest.mark.parametrize(("orientation", "expected"), EXIF.items())
def test_exif_orientation(tmp_path, orientation, expected):
    exif = Image.Exif()
    exif[0x0112] = orientation
    quarters().save(tmp_path / "turned.png", exif=exif)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.size == ((40, 20) if orientation < 5 else (20, 40))
    assert corners(loaded) == expected


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("plain.png", {}),
        ("palette.gif", {}),
        ("bitmap.bmp", {}),
        ("lossless.webp", {"lossless": True}),
        ("scan.tiff", {"compression": "tiff_lzw"}),
        ("full.jpg", {"quality": 100, "subsampling": 0}),
        ("progressive.jpg", {"quality": 100, "subsampling": 0, "progressive": True}),
        ("png_in_truth.jpg", {"format": "PNG"}),
        ("no_suffix", {"format": "PNG"}),
    ],
)
def test_formats(tmp_path, name, settings):
    quarters().save(tmp_path / name, **settings)
    loaded = load_image(tmp_path / name)
    assert (loaded.mode, loaded.size) == ("RGB", (40, 20))
    assert np.abs(np.array(corners(loaded)) - [RED, GREEN, BLUE, WHITE]).max() <= 2


def test_cmyk(tmp_path):
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "print.tiff")
    assert load_image(tmp_path / "print.tiff").getpixel((4, 4)) == RED


@pytest.mark.parametrize("mode", ["1", "L"])
def test_black_and_white(tmp_path, mode):
    Image.new(mode, (8, 8), 255).save(tmp_path / "scan.png")
    assert load_image(tmp_path / "scan.png").getpixel((4, 4)) == WHITE


@pytest.mark.parametrize("name", ["moving.gif", "moving.webp", "moving.png"])
def test_first_frame_of_an_animation(tmp_path, name):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(tmp_path / name).getpixel((4, 4)) == RED


def png_header(width, height):
    """A PNG that claims a size and holds no pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(image, form):
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


HOSTILE = {
    "empty": (b"", "cannot identify"),
    "text": (b"hello", "cannot identify"),
    "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "cannot identify"),
    "cut_png": (encoded(quarters(), "PNG")[:-30], ""),
    "cut_jpeg": (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], "truncated"),
    "header_alone": (png_header(8, 8), ""),
    "bomb": (png_header(10_000, 10_000), "10000 x 10000 pixels, and 89,478,485 are the limit"),
    "larger_bomb": (png_header(60_000, 60_000), "decompression bomb"),
    "thread": (encoded(Image.new("RGB", (402, 2)), "PNG"), "402 x 2 pixels: one side is over 200 times the other"),
}


@pytest.mark.parametrize(("content", "reason"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_with_the_reason(tmp_path, content, reason):
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(ValueError, match=rf"file\.png could not be decoded \(.*{reason}"):
        load_image(tmp_path / "file.png")
    with pytest.raises(ValueError, match="image bytes could not be decoded"):
        load_image({"bytes": content, "path": None})


def test_a_url_is_not_fetched():
    with pytest.raises(ValueError, match="https://example.org/a.png could not be decoded .it is a URL"):
        load_image("https://example.org/a.png")


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing.png"):
        with pytest.raises(ValueError, match="could not be decoded"):
            load_image(path)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparency_is_laid_on_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "image.png")
    loaded = load_image(tmp_path / "image.png")
    assert loaded.mode == "RGB"
    assert loaded.getpixel((1, 1)) == (0, 0, 0) and loaded.getpixel((6, 1)) == (255, 255, 255)


def test_16_bit_is_scaled_not_clipped(tmp_path):
    values = np.array([[0, 256 * 100, 256 * 255]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert [load_image(tmp_path / "deep.png").getpixel((x, 0))[0] for x in range(3)] == [0, 100, 255]


def test_bytes_as_datasets_gives_them(tmp_path):
    Image.new("RGB", (4, 4), "red").save(tmp_path / "red.png")
    data = (tmp_path / "red.png").read_bytes()
    assert load_image({"bytes": data, "path": None}).getpixel((0, 0)) == (255, 0, 0)
    assert load_image({"bytes": None, "path": str(tmp_path / "red.png")}).getpixel((0, 0)) == (255, 0, 0)
    with pytest.raises(ValueError, match="image bytes could not be decoded"):
        load_image({"bytes": data[:30], "path": None})


def test_not_an_image_is_named(tmp_path):
    (tmp_path / "note.png").write_text("hello")
    with pytest.raises(ValueError, match=r"note\.png could not be decoded"):
        load_image(str(tmp_path / "note.png"))


@pytest.mark.parametrize("size", [(56, 112), (700, 500), (3000, 2000), (30, 400), (1280, 720)])
@pytest.mark.parametrize("max_pixels", [16 * 28 * 28, 1280 * 28 * 28])
def test_pixel_budget_is_that_of_qwens_own_tools(policy_path, size, max_pixels):
    """Visual tokens of an image, counted, against the size that `qwen_vl_utils` gives it."""
    processor = AutoProcessor.from_pretrained(policy_path, max_pixels=max_pixels)
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    tokens = processor(text=[text], images=[Image.new("RGB", size)])["input_ids"][0].count(processor.image_token_id)
    height, width = smart_resize(size[1], size[0], factor=28, min_pixels=56 * 56, max_pixels=max_pixels)
    assert tokens == height * width // 28**2 <= max_pixels // 28**2


def test_a_portable_pixmap_and_a_jpeg_of_several_pictures(tmp_path):
    quarters().save(tmp_path / "image.ppm")
    assert corners(load_image(tmp_path / "image.ppm")) == [RED, GREEN, BLUE, WHITE]
    Image.new("RGB", (16, 16), RED).save(
        tmp_path / "both_eyes.mpo", save_all=True, append_images=[Image.new("RGB", (16, 16), BLUE)]
    )
    assert np.abs(np.array(load_image(tmp_path / "both_eyes.mpo").getpixel((8, 8))) - RED).max() <= 2


def test_a_format_that_would_start_another_program_is_not_read(tmp_path):
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n"
    (tmp_path / "drawing.eps").write_text(text)
    with pytest.raises(ValueError, match="cannot identify"):
        load_image(tmp_path / "drawing.eps")


def test_a_file_over_the_byte_cap_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_BYTES", 100)
    (tmp_path / "large.png").write_bytes(encoded(Image.effect_noise((64, 64), 90), "PNG"))
    with pytest.raises(ValueError, match=r"large\.png could not be decoded \([\d,]+ bytes, and 100 are the limit"):
        load_image(tmp_path / "large.png")


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match="it is not a regular file"):
        load_image(tmp_path / "pipe.png")


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.array([[0.0, 0.5]], np.float32), "floating-point"),
        (np.array([[0, 70_000]], np.int32), "0 to 70000, and 16 bits"),
    ],
)
def test_values_of_no_known_scale_are_refused(tmp_path, values, reason):
    Image.fromarray(values).save(tmp_path / "depth.tiff")
    with pytest.raises(ValueError, match=reason):
        load_image(tmp_path / "depth.tiff")


def test_nothing_to_read_is_refused():
    with pytest.raises(ValueError, match="it has neither bytes nor a path"):
        load_image({"bytes": None, "path": None})


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", ["BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP"])
def test_damaged_files_are_decoded_or_refused_and_stop_nothing(form):
    """300 files with a few bytes overwritten, or cut: whatever PIL raises becomes a ValueError."""
    rng, whole, refused = random.Random(form), encoded(quarters(), form), 0
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        data = data[: rng.randint(1, len(data))] if rng.random() < 0.3 else data
        try:
            assert load_image({"bytes": bytes(data), "path": None}).mode == "RGB"
        except ValueError as error:
            refused += 1
            assert "image bytes could not be decoded" in str(error)
    assert 0 < refused <= 300


def test_paths_stay_in_the_image_root(tmp_path):
    root, outside = tmp_path / "root", tmp_path / "secret.png"
    (root / "a").mkdir(parents=True)
    quarters().save(root / "a/good.png")
    quarters().save(outside)
    (root / "link.png").symlink_to(outside)
    (root / "inner.png").symlink_to(root / "a/good.png")
    (root / "folder").symlink_to(tmp_path)
    good = str((root / "a/good.png").resolve())
    assert confined_path("a/good.png", root) == good
    assert confined_path(good, root) == good
    assert confined_path("inner.png", root) == good
    for path in ("../secret.png", "a/../../secret.png", "a/../a/good.png", str(outside), "link.png"):
        with pytest.raises(ValueError, match="leads out of the image root"):
            confined_path(path, root)
    with pytest.raises(ValueError, match="leads out of the image root"):
        confined_path("folder/secret.png", root)
    for url in ("http://example.org/a.png", "file:///etc/passwd"):
        with pytest.raises(ValueError, match="is a URL"):
            confined_path(url, root)
    with pytest.raises(ValueError, match="no `image_root`"):
        confined_path("a/good.png", None)
    with pytest.raises(ValueError, match="is not a path|leads out"):
        confined_path("a\0b.png", root)


@pytest.fixture
def server():
    """Serves a picture at /good.png, 2,000 bytes at /large.png, a byte now and then at /slow.png, nothing elsewhere."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            files = {"/good.png": encoded(quarters(), "PNG"), "/large.png": b"x" * 2000, "/slow.png": b"x"}
            found = files.get(self.path)
            self.send_response(200 if found else 404)
            self.end_headers()
            self.wfile.write(found or b"")
            while self.path == "/slow.png" and not self.server.done.wait(0.05):
                self.wfile.write(b"x")

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.done = threading.Event()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.done.set()
    server.shutdown()


def test_a_url_is_fetched_only_when_asked_and_within_its_cap(server):
    assert corners(load_image(fetch_image(f"{server}/good.png"))) == [RED, GREEN, BLUE, WHITE]
    with pytest.raises(ValueError, match="is larger than 1,000 bytes"):
        fetch_image(f"{server}/large.png", max_bytes=1000)
    with pytest.raises(ValueError, match="could not be fetched"):
        fetch_image(f"{server}/none.png")
    with pytest.raises(ValueError, match="could not be fetched .not complete after 0.3 seconds"):
        fetch_image(f"{server}/slow.png", timeout=0.3)
    with pytest.raises(ValueError, match="could not be fetched .URL can't contain control characters"):
        fetch_image(f"{server}/a b.png")
    with pytest.raises(ValueError, match="only http and https"):
        fetch_image("file:///etc/hostname")


def test_pixel_budget_reaches_a_checkpoint_of_the_hub_and_is_kept_when_saved(policy_path, tmp_path):
    """
    The hub's files have the limit in `preprocessor_config.json`, where `size` is not looked at (pitfall of 5.23).
    """
    shutil.copytree(policy_path, tmp_path / "hub")
    path = tmp_path / "hub/processor_config.json"
    settings = json.loads(path.read_text())
    image_processor = settings.pop("image_processor")
    image_processor = {key: value for key, value in image_processor.items() if key not in ("size", "max_pixels")}
    image_processor |= {"min_pixels": 3136, "max_pixels": 12845056}
    (tmp_path / "hub/preprocessor_config.json").write_text(json.dumps(image_processor))
    path.write_text(json.dumps(settings))
    probe = Image.new("RGB", (2000, 2000))

    def tokens(processor):
        return count_visual_tokens(processor, "probe", [probe]), int(
            processor.image_processor(images=[probe], return_tensors="pt")["image_grid_thw"].prod() // 4
        )

    assert tokens(AutoProcessor.from_pretrained(tmp_path / "hub"))[1] == 71 * 71
    processor = AutoProcessor.from_pretrained(tmp_path / "hub", max_pixels=256 * 28 * 28)
    assert tokens(processor) == (256, 256)
    processor.save_pretrained(tmp_path / "saved")
    assert tokens(AutoProcessor.from_pretrained(tmp_path / "saved")) == (256, 256)


def test_bytes_paths_images_and_data_urls_are_taken_alike(tmp_path):
    path = tmp_path / "a.png"
    Image.effect_noise((40, 30), 90).convert("RGB").save(path)
    data = path.read_bytes()
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    sources = [path, str(path), data, url, Image.open(path)]
    sources += [{"bytes": data, "path": None}, {"bytes": None, "path": str(path)}, {"path": url}]
    expected = Image.open(path).tobytes()
    for source in sources:
        assert load_image(source).tobytes() == expected
        assert blank_image(source).size == (40, 30) and blank_image(source).getpixel((0, 0)) == (255, 255, 255)
        assert image_key(source) in (data, url, str(path), id(source))


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "neither bytes nor a path"),
        (b"", "neither bytes nor a path"),
        (None, "neither bytes nor a path"),
        ({"bytes": None, "path": ""}, "neither bytes nor a path"),
        (7, "it is a int, and no image"),
        ([b"x"], "it is a list, and no image"),
        ("data:image/png;base64,?" + "x" * 10_000, "is not base64"),
        ("data:image/png,abc", "a data URL without"),
        (b"x" * 10_000, "image bytes could not be decoded"),
    ],
)
def test_what_is_no_image_is_refused_in_few_words(source, reason):
    with pytest.raises(ValueError, match=reason) as error:
        load_image(source)
    assert len(str(error.value)) < 400


def test_a_blank_image_lies_as_the_photograph_does(tmp_path):
    image, exif = Image.new("RGB", (40, 30)), Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert blank_image(tmp_path / "turned.jpg").size == load_image(tmp_path / "turned.jpg").size == (30, 40)


def test_a_row_has_a_list_of_images():
    assert as_image_list(None) == as_image_list([]) == as_image_list(()) == []
    for alone in ("a.jpg", Path("a.jpg"), b"x", Image.new("RGB", (2, 2)), {"path": "a"}):
        assert as_image_list(alone) == as_image_list([alone]) == [alone]
    for other in (7, {"a.jpg"}, iter(["a.jpg"])):
        with pytest.raises(ValueError, match="`images` is .*, and an image or a list of images is needed"):
            as_image_list(other)
