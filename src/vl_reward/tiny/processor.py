"""A Qwen2.5-VL processor that needs no download: Qwen's tokenizer class, its merges learnt from the task's own text."""

import itertools

from tokenizers import pre_tokenizers
from transformers import Qwen2_5_VLProcessor, Qwen2Tokenizer
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor

from .digits import CELL, compose_text, respond


SPECIAL_TOKENS = [
    "<|im_start|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# Renders what Qwen2.5-VL's own template does for text and images, default system prompt included.
CHAT_TEMPLATE = (
    "{%- if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}"
    "{%- endif %}"
    "{%- for message in messages %}{{ '<|im_start|>' + message.role + '\n' }}"
    "{%- if message.content is string %}{{ message.content }}"
    "{%- else %}{% for part in message.content %}"
    "{%- if part.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part.text }}{% endif %}"
    "{%- endfor %}{% endif %}{{ '<|im_end|>\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_processor() -> Qwen2_5_VLProcessor:
    """
    Build the processor of the embedded world: 384 tokens, images of 56 x 56 pixels and larger, Qwen2.5-VL's patches.

    The text the merges are learnt from is seeded, so the same vocabulary comes out on every machine.
    """
    rows = itertools.islice(compose_text(seed=0), 2000)
    text = [f"{row['question']} {respond(row['first'], row['second'], row['answer'])}" for row in rows]
    text += ["system\nYou are a helpful assistant.", "user\n", "assistant\n"] * 500
    alphabet = {"<|endoftext|>": 0} | {byte: i for i, byte in enumerate(pre_tokenizers.ByteLevel.alphabet(), 1)}
    tokenizer = Qwen2Tokenizer(vocab=alphabet, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer = tokenizer.train_new_from_iterator(text, vocab_size=384, new_special_tokens=SPECIAL_TOKENS)
    return Qwen2_5_VLProcessor(
        image_processor=Qwen2VLImageProcessor(min_pixels=CELL * CELL, max_pixels=8 * CELL * CELL),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(),
        chat_template=CHAT_TEMPLATE,
    )
