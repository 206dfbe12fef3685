"""Conversations with images and videos to model inputs: the one path that training, labelling and evaluation share."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from PIL import Image
from transformers import BatchFeature, ProcessorMixin
from trl.data_utils import prepare_multimodal_messages

from ..models.repeated_visuals import distinct, repeated
from .images import as_image_list, image_key, load_image, named_errors, open_image
from .messages import as_messages, text_of
from .placeholders import place_images
from .videos.video import Video, load_video, sampling_of
from .videos.video_source import as_video_list, video_key
from .videos.video_tokens import model_inputs, text_for


class TooLong(ValueError):
    """A conversation with more tokens than `max_length`."""


@contextmanager
def named_row(name: str) -> Iterator[None]:
    """
    Turn whatever goes wrong in a row into a `ValueError` with its name. A dataloader would take a `StopIteration` for
    the end of the data.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    except Exception as error:
        raise ValueError(f"{name}: {type(error).__name__}: {error}") from error


def check_control_tokens(processor: ProcessorMixin, name: str, messages: list[dict]):
    """
    Raises:
        ValueError: If a message's text holds a control token, such as `<|im_end|>` or `<|image_pad|>`.
    """
    control_tokens = [token.content for token in processor.tokenizer.added_tokens_decoder.values() if token.special]
    text = text_of(messages)
    if held := [token for token in control_tokens if token in text]:
        raise ValueError(
            f"{name}: a message holds {held}. The tokenizer would read it as control tokens, so the text could fake "
            "a turn or an image. Remove it from the text."
        )


def load_images(name: str, images: list | None, loaded: dict | None = None) -> list[Image.Image]:
    """
    [`load_image`] for each image of a row, with the row's name in the error. `loaded` holds the images decoded so far,
    by [`image_key`]: they are not decoded again.
    """
    loaded = {} if loaded is None else loaded
    with named_row(name):
        images = as_image_list(images)
        for image in images:
            if image_key(image) not in loaded:
                loaded[image_key(image)] = load_image(image)
        return [loaded[image_key(image)] for image in images]


def load_videos(processor: ProcessorMixin, name: str, videos: list | None, loaded: dict | None = None) -> list[Video]:
    """[`load_video`] for each video of a row, as [`load_images`] for images, by [`video_key`]."""
    loaded = {} if loaded is None else loaded
    with named_row(name):
        videos = as_video_list(videos)
        for video in videos:
            if video_key(video) not in loaded:
                loaded[video_key(video)] = load_video(video, processor)
        return [loaded[video_key(video)] for video in videos]


def count_visual_tokens(processor: ProcessorMixin, name: str, images: list | None, videos: list | None = None) -> int:
    """
    Visual tokens of a row's images and videos, from their headers. Where a family puts a video's times into the text,
    those tokens, too.
    """
    image_processor, patches = processor.image_processor, 0
    with named_row(name):
        for image in as_image_list(images):
            with named_errors(image):
                width, height = open_image(image).size
            patches += image_processor.get_number_of_image_patches(height, width, {})
        samplings = [sampling_of(video, processor) for video in as_video_list(videos)]
    texts = [text_for(processor, sampling) for sampling in samplings]
    return patches // image_processor.merge_size**2 + count_text_tokens(processor, texts)


def count_text_tokens(processor: ProcessorMixin, texts: list[str]) -> int:
    """Tokens of all texts, with one for each placeholder that stands in them."""
    return sum(map(len, processor.tokenizer(texts, add_special_tokens=False)["input_ids"])) if texts else 0


def count_tokens(
    processor: ProcessorMixin, name: str, texts: list[str], images: list | None, videos: list | None = None
) -> int:
    """Tokens of a rendered conversation, which may be in parts, and of its images and videos, from their headers."""
    placeholders = len(as_image_list(images)) + len(as_video_list(videos))
    visual = count_visual_tokens(processor, name, images, videos)
    return count_text_tokens(processor, texts) - placeholders + visual


def check_length(name: str, n_tokens: int, max_length: int | None) -> None:
    """
    Raises:
        TooLong: If a conversation has more than `max_length` tokens.
    """
    if max_length is not None and n_tokens > max_length:
        raise TooLong(
            f"{name} has {n_tokens} tokens, image tokens included, and `max_length` is {max_length}. It is not cut, "
            "since the end of the answer is what counts. Raise `max_length`, lower `max_pixels` (of a video "
            "`video_max_frames` or `video_max_pixels`), or leave the row out."
        )


def fill(name: str, messages: list[dict], images: list, videos: Sequence = ()) -> list[dict]:
    """
    Messages as lists of parts, with the images in their places and places for the videos. Raises what [`place_images`]
    does, by `name`.
    """
    with named_row(name):
        return prepare_multimodal_messages(place_images(messages, len(images), len(videos)), images)


def render(
    processor: ProcessorMixin, name: str, messages: list[dict], images: list, videos: Sequence = (), **template_kwargs
) -> str:
    """
    One conversation as text in the chat template.

    Raises:
        ValueError: For control tokens inside a message, a number of images or videos that differs from the number of
            placeholders, or a chat template without videos. `name` stands in the message.
    """
    check_control_tokens(processor, name, messages)
    filled = fill(name, messages, images, videos)
    with named_row(name):
        text = processor.apply_chat_template(filled, **template_kwargs)
        if text.count(processor.video_token) != len(videos):
            raise ValueError(
                f"the chat template writes {text.count(processor.video_token)} places for {len(videos)} videos, so the "
                "model would not see them. Use the checkpoint's own `chat_template.jinja`."
            )
        return text


def render_prompt(
    processor: ProcessorMixin, name: str, messages: list[dict], images: list, videos: Sequence = ()
) -> str:
    """A prompt up to where the response begins: an answer that it ends in is continued. Raises what [`render`] does."""
    if not messages:
        raise ValueError(f"{name}: the prompt is empty. Leave the row out.")
    begun = messages[-1]["role"] == "assistant"
    ending = {"continue_final_message": True} if begun else {"add_generation_prompt": True}
    return render(processor, name, messages, images, videos, **ending)


def tokenize(
    processor: ProcessorMixin,
    texts: list[str],
    images: list[list[Image.Image]],
    videos: list[list[Video]],
    padding_side: str,
) -> BatchFeature:
    """
    What the processor gives for rendered texts, with each distinct image and video once, and `image_numbers` and
    `video_numbers`, which [`repeated`] explains.
    """
    flat, flat_videos = ([item for row in column for item in row] for column in (images, videos))
    vision, replaced = model_inputs(processor, flat_videos), {}
    if flat_videos:
        replaced["videos_replacements"] = [text_for(processor, video.sampling) for video in flat_videos]
    if flat:
        different, numbers = distinct(flat, lambda image: (image.size, image.tobytes()))
        processed = processor.image_processor(images=different, return_tensors="pt")
        vision |= {key: processed[key] for key in ("pixel_values", "image_grid_thw")}
        vision["image_numbers"] = torch.tensor(numbers)
        replaced["images_replacements"] = [processor.replace_image_token(processed, image_idx=i) for i in numbers]
    if replaced:
        texts, _ = processor.get_text_with_replacements(list(texts), **replaced)
    batch = processor.tokenizer(
        texts, padding=True, padding_side=padding_side, return_tensors="pt", add_special_tokens=False
    )
    token_types = (batch["input_ids"] == processor.image_token_id).int()
    token_types += 2 * (batch["input_ids"] == processor.video_token_id).int()
    return BatchFeature({**batch, "mm_token_type_ids": token_types, **vision})


def render_prompts(
    processor: ProcessorMixin,
    prompts: list[str | list[dict]],
    images: list[list],
    names: list[str],
    videos: list[list] | None = None,
) -> tuple[list[str], list[list[Image.Image]], list[list[Video]]]:
    """
    Prompts as text in the chat template, up to where the response begins, and their images and videos, decoded. A
    prompt that ends in an assistant's message is continued there. Arguments and errors are those of
    [`encode_conversations`].
    """
    texts = []
    images, videos = load_columns(processor, names, images, videos)
    for name, prompt, *shown in zip(names, prompts, images, videos, strict=True):
        with named_row(name):
            messages = as_messages(prompt, [])
        texts.append(render_prompt(processor, name, messages, *shown))
    return texts, images, videos


def load_columns(
    processor: ProcessorMixin, names: list[str], images: list[list], videos: list[list] | None
) -> tuple[list[list[Image.Image]], list[list[Video]]]:
    """The images and the videos of each row, each source decoded once."""
    loaded, loaded_videos, videos = {}, {}, videos or [[]] * len(names)
    return (
        [load_images(name, row_images, loaded) for name, row_images in zip(names, images, strict=True)],
        [load_videos(processor, name, row, loaded_videos) for name, row in zip(names, videos, strict=True)],
    )


def encode_prompts(
    processor: ProcessorMixin,
    prompts: list[str | list[dict]],
    images: list[list],
    names: list[str],
    videos: list[list] | None = None,
) -> BatchFeature:
    """[`render_prompts`], tokenized and padded on the left, with images and videos as `generate` takes them."""
    batch = tokenize(processor, *render_prompts(processor, prompts, images, names, videos), padding_side="left")
    return BatchFeature(repeated(batch))


def encode_conversations(
    processor: ProcessorMixin,
    conversations: list[list[dict]],
    images: list[list],
    names: list[str],
    max_length: int | None = None,
    videos: list[list] | None = None,
) -> BatchFeature:
    """
    Render conversations with the processor's chat template and tokenize them, with their images and videos, padded on
    the right.

    A batch without any image or video gets a blank image that no token attends to. Without it the projector would have
    no gradient on that rank, and under DDP or ZeRO-3 the ranks would wait for each other for ever.

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
        videos (`list[list]`, *optional*):
            The videos of each row, likewise.

    Returns:
        `BatchFeature` with all keys of the processor, `input_ids` of shape `(len(conversations), seq_len)`. Each
        distinct image and video is there once, and `image_numbers` and `video_numbers` say where: see [`repeated`].

    Raises:
        ValueError: For an image or a video that cannot be decoded, an empty answer, control tokens inside a message, a
            number of images or videos that differs from the number of placeholders, or a row over `max_length`. The row
            is named.
    """
    texts = []
    images, videos = load_columns(processor, names, images, videos)
    for name, messages, *shown in zip(names, conversations, images, videos, strict=True):
        if messages[-1]["role"] != "assistant" or not text_of(messages[-1:]).strip():
            raise ValueError(f"{name}: the answer is empty, so there is nothing to score. Leave the row out.")
        texts.append(render(processor, name, messages, *shown))

    blank = not any(images) and not any(videos)
    if blank:
        size = 2 * processor.image_processor.patch_size * processor.image_processor.merge_size
        images[0] = [Image.new("RGB", (size, size), "white")]
        texts[0] += processor.image_token
    batch = tokenize(processor, texts, images, videos, padding_side="right")
    if blank:
        batch["attention_mask"][batch["input_ids"] == processor.image_token_id] = 0

    lengths = batch["attention_mask"].sum(1)
    for name, length in zip(names, lengths.tolist(), strict=True):
        check_length(name, length, max_length)
    assert batch["input_ids"][range(len(lengths)), lengths - 1].unique().numel() == 1, "rows end in different tokens"
    return batch
