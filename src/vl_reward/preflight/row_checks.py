"""Why a row cannot be used: what the model's own path refuses in it, on the CPU, by the same functions."""

from collections.abc import Iterator

from transformers import ProcessorMixin

from ..data.collators import DataCollatorForMPO, read_margin, read_pairs
from ..data.encoding import (
    TooLong,
    check_length,
    count_tokens,
    load_images,
    load_videos,
    named_row,
    render,
    render_prompt,
)
from ..data.images import as_image_list
from ..data.messages import as_messages, join_turns, split_turns
from ..data.placeholders import extract_images
from ..data.videos.video_source import as_video_list
from ..inference.fingerprints import settings_fingerprint
from ..inference.response_scorer import check_responses
from .template_check import check_template


class PromptCheck:
    """
    Says why a prompt cannot be sampled on: an image or a video that cannot be decoded, a control token, nothing that is
    asked, or placeholders that are not as many as the images and videos.

    A row with a text under `unreadable` could not be read where it was found, and that text is the reason.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor. Its chat template is looked at, see [`check_template`].
        max_length (`int`, *optional*):
            More tokens than this are too many, image tokens included. They are counted from the headers of images and
            videos.
    """

    columns = ("id", "prompt", "images", "videos", "unreadable")

    def __init__(self, processor: ProcessorMixin, max_length: int | None = None):
        self.processor, self.max_length = processor, max_length
        check_template(processor)

    def fingerprint(self) -> str:
        """A hash of all that decides a verdict besides the row."""
        return settings_fingerprint(self.processor, check=type(self).__name__, max_length=self.max_length)

    def __call__(self, row: dict) -> dict:
        """
        Args:
            row (`dict`):
                A row with `columns`.

        Returns:
            `dict`: `refused`, the reason or `None`, `too_long`, whether `max_length` is the only one, and under
            `videos` what was sampled of each.
        """
        name, videos = f"row {row['id']}", []
        try:
            if row.get("unreadable"):
                raise ValueError(row["unreadable"])
            with named_row(name):
                row = row | {"images": as_image_list(row["images"]), "videos": as_video_list(row.get("videos"))}
            load_images(name, row["images"])  # whole: a file that is cut shows itself in its last bytes
            videos = [video.sampling.record() for video in load_videos(self.processor, name, row["videos"])]
            too_long = None
            for told, texts in self.conversations(name, row):
                try:
                    if self.max_length is not None:
                        n_tokens = count_tokens(self.processor, name, texts, row["images"], row["videos"])
                        check_length(told, n_tokens, self.max_length)
                except TooLong as error:
                    too_long = too_long or str(error)
        except ValueError as error:
            return {"refused": str(error).removeprefix(f"{name}: "), "too_long": False, "videos": videos}
        return {"refused": too_long, "too_long": too_long is not None, "videos": videos}

    def conversations(self, name: str, row: dict) -> Iterator[tuple[str, list[str]]]:
        """
        Each conversation that the model will see of `row`: what to call it, and its rendered text in parts. `name` is
        that of the row.

        Raises:
            ValueError: What the model's own path refuses.
        """
        with named_row(name):
            messages = as_messages(row["prompt"], [])
        yield name, [render_prompt(self.processor, name, messages, row["images"], row["videos"])]


class ResponsesCheck(PromptCheck):
    """
    Says why the responses to a prompt cannot be scored.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The model's processor.
        max_length (`int`, *optional*):
            More tokens than this are too many.
        empty_ones (`bool`, *optional*, defaults to `False`):
            Whether a response may be empty: it gets no score.
    """

    columns = (*PromptCheck.columns, "responses")

    def __init__(self, processor: ProcessorMixin, max_length: int | None = None, empty_ones: bool = False):
        super().__init__(processor, max_length)
        self.empty_ones = empty_ones

    def fingerprint(self) -> str:
        return f"{'with' if self.empty_ones else 'without'} empty ones {super().fingerprint()}"

    def conversations(self, name: str, row: dict) -> Iterator[tuple[str, list[str]]]:
        check_responses(name, row["responses"])
        for number, text in enumerate(row["responses"]):
            if self.empty_ones and not text.strip():
                continue
            told = f"response {number} of {name}"
            with named_row(told):
                before, answer = split_turns(extract_images(row["prompt"])[0], text)
                if not before:
                    raise ValueError("the prompt is empty, so there is nothing to answer. Leave the row out.")
            shown = row["images"], row["videos"]
            yield told, [render(self.processor, told, join_turns(before, answer), *shown)]


class JudgeCheck(PromptCheck):
    """
    Says why a judge cannot be asked about two responses.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The judge's processor.
        form (`NumberedVerdict` or `LetterVerdict`):
            It writes what the judge is asked.
    """

    def __init__(self, processor: ProcessorMixin, form):
        super().__init__(processor)
        self.form = form

    def fingerprint(self) -> str:
        return f"{type(self.form).__name__} {super().fingerprint()}"

    def conversations(self, name: str, row: dict) -> Iterator[tuple[str, list[str]]]:
        check_responses(name, row["responses"])
        for number, text in enumerate(row["responses"]):
            if not text.strip():
                raise ValueError(f"{name}: response {number} is empty, so there is nothing to compare.")
        with named_row(name):
            question = self.form.prompt(row["prompt"], *row["responses"])
        yield from super().conversations(name, row | {"prompt": question})


class PairCheck(PromptCheck):
    """
    Says why a reward model cannot be trained on a pair: what [`DataCollatorForVisionReward`] refuses. The arguments are
    those of [`PromptCheck`].
    """

    columns = (*PromptCheck.columns, "chosen", "rejected", "margin")

    def conversations(self, name: str, row: dict) -> Iterator[tuple[str, list[str]]]:
        (pair,) = read_pairs([row], [name])
        if row.get("margin") is not None:
            read_margin(name, row)
        for side, answer in zip(("chosen", "rejected"), pair[1:], strict=True):
            told = f"{side} response of {name}"
            shown = row["images"], row["videos"]
            yield told, [render(self.processor, told, join_turns(pair[0], answer), *shown)]


class PolicyPairCheck(PairCheck):
    """
    Says why a policy cannot be trained on a pair: what [`DataCollatorForMPO`] refuses.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The policy's processor.
        max_length (`int`, *optional*):
            More tokens than this are too many.
    """

    columns = (*PromptCheck.columns, "chosen", "rejected")

    def __init__(self, processor: ProcessorMixin, max_length: int | None = None):
        super().__init__(processor, max_length)
        self.collator = DataCollatorForMPO(processor)

    def conversations(self, name: str, row: dict) -> Iterator[tuple[str, list[str]]]:
        (pair,) = read_pairs([row], [name])
        rendered = self.collator.render_pair(name, pair, row["images"], row["videos"])
        for side in ("chosen", "rejected"):  # TRL tokenizes a prompt and its response each by itself
            yield f"{side} response of {name}", [rendered["prompt"], rendered[side]]
