"""How large an image may be, in pixels or in visual tokens."""

from transformers import AutoConfig


def image_pixels(path: str, revision: str | None, max_pixels: int | None, max_image_tokens: int | None) -> int | None:
    """
    The pixels of a budget. A visual token is 28 x 28 pixels of Qwen2.5-VL and 32 x 32 of Qwen3-VL: the checkpoint's
    config says how many, so tokens mean the same in every family.
    """
    if max_image_tokens is None:
        return max_pixels
    vision = AutoConfig.from_pretrained(path, revision=revision).vision_config
    return max_image_tokens * (vision.patch_size * vision.spatial_merge_size) ** 2
