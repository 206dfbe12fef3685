"""Processors that need no download: Qwen's tokenizer class, its merges learnt from the task's own text."""

import itertools

from tokenizers import pre_tokenizers
from transformers import ProcessorMixin, Qwen2_5_VLProcessor, Qwen2Tokenizer, Qwen3VLProcessor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.models.qwen3_vl.video_processing_qwen3_vl import Qwen3VLVideoProcessor

from .digits import CELL, compose_text, respond


SPECIAL_TOKENS = [
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# Renders what Qwen3-VL-Instruct's own template does for text, images and videos.
QWEN3_VL_TEMPLATE = (
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{ message.content }}"
    "{%- else %}{% for part in message.content %}"
    "{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{%- elif part.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{%- endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Qwen2.5-VL's has a default system prompt.
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}" + QWEN3_VL_TEMPLATE
)


def build_processor(family: str = "qwen2_5_vl") -> ProcessorMixin:
    """
    Build the processor of the embedded world: 384 tokens, images of 4 visual tokens and more, the family's patches. A
    digit of 56 x 56 pixels is 4 visual tokens of Qwen2.5-VL, and of Qwen3-VL, which scales it to 64 x 64.

    The text the merges are learnt from is seeded, so the same vocabulary comes out on every machine.
    """
    rows = itertools.islice(compose_text(seed=0), 2000)
    text = [f"{row['question']} {respond(row['first'], row['second'], row['answer'])}" for row in rows]
    text += ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 500
    alphabet = {"<|endoftext|>": 0} | {byte: i for i, byte in enumerate(pre_tokenizers.ByteLevel.alphabet(), 1)}
    tokenizer = Qwen2Tokenizer(vocab=alphabet, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = tokenizer.train_new_from_iterator(text, vocab_size=384, new_special_tokens=SPECIAL_TOKENS)
    if family == "qwen3_vl":
        cell, mean = 64, [0.5, 0.5, 0.5]
        return Qwen3VLProcessor(
            image_processor=Qwen2VLImageProcessor(
                min_pixels=cell**2, max_pixels=8 * cell**2, patch_size=16, image_mean=mean, image_std=mean
            ),
            tokenizer=tokenizer,
            video_processor=Qwen3VLVideoProcessor(),
            chat_template=QWEN3_VL_TEMPLATE,
        )
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=CELL * CELL, max_pixels=8 * CELL * CELL),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
