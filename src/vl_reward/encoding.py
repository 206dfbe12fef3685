"""Conversations with images to model inputs: the one path that training, labelling and evaluation share."""

from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages
from trl.trainer.utils import remove_none_values

from .images import load_image


def as_messages(prompt: str | list[dict], completion: str | list[dict]) -> list[dict]:
    """Join a prompt and a completion into one conversation. A plain string is one user or one assistant turn."""
    prompt = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    completion = [{"role": "assistant", "content": completion}] if isinstance(completion, str) else completion
    # Arrow gives every message part the keys of all others, as None, and Qwen's template asks which keys are there.
    return remove_none_values(prompt + completion)


def text_of(messages: list[dict]) -> str:
    """All text of a conversation, without its images."""
    contents = [message["content"] for message in messages]
    parts = [
        [content] if isinstance(content, str) else [part.get("text", "") for part in content] for content in contents
    ]
    return "".join("".join(part) for part in parts)


def refuse_control_tokens(processor: ProcessorMixin, name: str, messages: list[dict]):
    """
    Raises:
        ValueError: If a message's text holds a control token, such as `<|im_end|>` or `<|image_pad|>`.
    """
    control_tokens = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    text = text_of(messages)
    if found := [token for token in control_tokens if token in text]:
        raise ValueError(
            f"{name}: a message holds {found}. The tokenizer would read it as control tokens, so the text could fake "
            "a turn or an image. Remove it from the text."
        )


def load_images(name: str, images: list | None) -> list[Image.Image]:
    """[`load_image`] for each image of a row, with the row's name in the error."""
    try:
        return [load_image(image) for image in images or []]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def render(processor: ProcessorMixin, name: str, messages: list[dict], images: list, **template_kwargs):
    """
    One conversation as text in the chat template, and its images decoded.

    Raises:
        ValueError: For an image that cannot be decoded, control tokens inside a message, or a number of images that
            differs from the number of placeholders. `name` stands in the message.
    """
    refuse_control_tokens(processor, name, messages)
    images = load_images(name, images)
    try:
        return processor.apply_chat_template(prepare_multimodal_messages(messages, images), **template_kwargs), images
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def encode_prompts(
    processor: ProcessorMixin, prompts: list[str | list[dict]], images: list[list], names: list[str]
) -> BatchFeature:
    """
    Render prompts for generation and tokenize them, padded on the left. Arguments and errors are those of
    [`encode_conversations`].
    """
    rendered = [
        render(processor, name, as_messages(prompt, []), row_images, add_generation_prompt=True)
        for name, prompt, row_images in zip(names, prompts, images, strict=True)
    ]
    return processor(
        text=[text for text, _ in rendered],
        images=[row_images for _, row_images in rendered] if any(row_images for _, row_images in rendered) else None,
        padding=True,
        padding_side="left",
        return_tensors="pt",
        add_special_tokens=False,
    )


def encode_conversations(
    processor: ProcessorMixin,
    conversations: list[list[dict]],
    images: list[list],
    names: list[str],
    max_length: int | None = None,
) -> BatchFeature:
    """
    Render conversations with the processor's chat template and tokenize them, with their images, padded on the right.

    A batch without any image gets a blank one that no token attends to. Without it the projector would have no
    gradient on that rank, and under DDP or ZeRO-3 the ranks would wait for each other for ever.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        conversations (`list[list[dict]]`):
            One list of messages per row, ending in the assistant's answer.
        images (`list[list]`):
            The images of each row, in the order of their placeholders; an empty list for a row of text.
        names (`list[str]`):
            What to call each row in an error message.
        max_length (`int`, *optional*):
            Refuse a row with more tokens than this, image tokens included. Nothing is ever cut: the end of the answer
            is what is scored.

    Returns:
        `BatchFeature` with all keys of the processor, `input_ids` of shape `(len(conversations), seq_len)`.

    Raises:
        ValueError: For an image that cannot be decoded, an empty answer, control tokens inside a message, a number of
            images that differs from the number of placeholders, or a row over `max_length`. The row is named.
    """
    texts, loaded = [], []
    for name, messages, row_images in zip(names, conversations, images, strict=True):
        if not text_of(messages[-1:]).strip():
            raise ValueError(f"{name}: the answer is empty, so there is nothing to score. Leave the row out.")
        text, row_images = render(processor, name, messages, row_images)
        texts.append(text)
        loaded.append(row_images)

    blank = not any(loaded)
    if blank:
        size = 2 * processor.image_processor.patch_size * processor.image_processor.merge_size
        loaded[0] = [Image.new("RGB", (size, size), "white")]
        texts[0] += processor.image_token
    batch = processor(
        text=texts,
        images=loaded,
        padding=True,
        padding_side="right",
        return_tensors="pt",
        add_special_tokens=False,
    )
    if blank:
        batch["attention_mask"][batch["input_ids"] == processor.image_token_id] = 0

    lengths = batch["attention_mask"].sum(1)
    for name, length in zip(names, lengths.tolist(), strict=True):
        if max_length is not None and length > max_length:
            raise ValueError(
                f"{name} has {length} tokens, image tokens included, and `max_length` is {max_length}. It is not cut, "
                "since the end of the answer is what is scored. Raise `max_length`, lower the processor's "
                "`max_pixels`, or leave the row out."
            )
    assert batch["input_ids"][range(len(lengths)), lengths - 1].unique().numel() == 1, "rows end in different tokens"
    return batch
