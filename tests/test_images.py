"""Pixels that come out of the one image loader."""

import numpy as np
import pytest
from PIL import Image
from qwen_vl_utils.vision_process import smart_resize
from transformers import AutoProcessor

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


@pytest.mark.parametrize("size", [(56, 112), (700, 500), (3000, 2000), (30, 400), (1280, 720)])
@pytest.mark.parametrize("max_pixels", [16 * 28 * 28, 1280 * 28 * 28])
def test_pixel_budget_is_that_of_qwens_own_tools(policy_path, size, max_pixels):
    """Visual tokens of an image, counted, against the size that `qwen_vl_utils` gives it."""
    processor = AutoProcessor.from_pretrained(policy_path, max_pixels=max_pixels)
    text = "<|vision_start|><|image_pad|><|vision_end|>"
    tokens = processor(text=[text], images=[Image.new("RGB", size)])["input_ids"][0].count(processor.image_token_id)
    height, width = smart_resize(size[1], size[0], factor=28, min_pixels=56 * 56, max_pixels=max_pixels)
    assert tokens == height * width // 28**2 <= max_pixels // 28**2
