"""Pixels that come out of the one image loader."""

import numpy as np
import pytest
from PIL import Image

from vl_reward.images import load_image


def test_exif_orientation(tmp_path):
    image = Image.new("RGB", (40, 20), "white")
    image.paste("black", (0, 0, 10, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter
    image.save(tmp_path / "turned.png", exif=exif)
    loaded = load_image(tmp_path / "turned.png")
    assert loaded.size == (20, 40)
    assert loaded.getpixel((10, 2)) == (0, 0, 0) and loaded.getpixel((10, 30)) == (255, 255, 255)


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
