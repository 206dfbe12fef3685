"""What scorers have in common, wherever the model runs: the call that TRL knows, and candidates of prompts."""

import math

from ..data.encoding import named_row
from ..data.images import as_image_list
from ..data.messages import split_turns
from ..data.placeholders import extract_images
from ..data.videos.video_source import as_video_list


def check_responses(name: str, responses: object) -> None:
    """
    Check the `responses` of the row that errors call `name`.

    Raises:
        ValueError: If they are not a list of strings.
    """
    if not isinstance(responses, list) or not all(isinstance(text, str) for text in responses):
        raise ValueError(f"{name}: `responses` is {responses!r}, not a list of strings.")


def refuse_videos(names: list[str], videos: list[list | None] | None, engine: str) -> None:
    """
    Refuse rows with videos, for a model whose videos an engine cannot take.

    Args:
        names (`list[str]`):
            What to call each row.
        videos (`list[list | None]`, *optional*):
            The videos of each row.
        engine (`str`):
            What to call the engine.

    Raises:
        ValueError: If a row has a video.
    """
    for name, row in zip(names, videos or [None] * len(names), strict=True):
        if row:
            raise ValueError(
                f"{name} has a video, and {engine} cannot be given those of this model. Set `engine: transformers`, "
                "leave the row out, or give frames as images."
            )


class ResponseScorer:
    """
    From prompts, responses, images and videos to scores. The call has the signature of TRL's `reward_funcs`. A scorer
    gives its `processor`, and `score_rows`.
    """

    __name__ = "reward_model"  # GRPOTrainer names its log columns by it

    def score_rows(self, rows: list[tuple[list[dict], list[dict], list, list]], names: list[str]) -> list[float]:
        """
        Score rows that have been read.

        Args:
            rows (`list[tuple[list[dict], list[dict], list, list]]`):
                Each row's turns before the answer, the answer (one turn), its images and its videos.
            names (`list[str]`):
                What to call each row in an error message.

        Returns:
            `list[float]`: one score per row.
        """
        raise NotImplementedError

    def score_candidates(self, rows: list[dict]) -> list[list[float | None]]:
        """
        Scores of several responses to each prompt. Equal ones are scored once, and an empty one has no score: `None`.

        Args:
            rows (`list[dict]`):
                `prompt`, `images` and `responses` (a list of strings) each, and optionally `videos`, and `id` for error
                messages.

        Returns:
            `list[list[float | None]]`: scores in the order of each row's `responses`.

        Raises:
            ValueError: What the call does, with the row named, and for a response that is no string.
        """
        unique = []
        for i, row in enumerate(rows):
            check_responses(f"row {row.get('id', i)}", row["responses"])
            unique += [(i, text) for text in dict.fromkeys(row["responses"]) if text.strip()]
        prompts, *shown = ([rows[i].get(key) for i, _ in unique] for key in ("prompt", "images", "videos"))
        names = [f"response {rows[i]['responses'].index(text)} of row {rows[i].get('id', i)}" for i, text in unique]
        scores = dict(zip(unique, self._score(prompts, [text for _, text in unique], *shown, names), strict=True))
        return [[scores.get((i, text)) for text in row["responses"]] for i, row in enumerate(rows)]

    def score_responses(self, rows: list[dict]) -> list[list[float]]:
        """
        [`score_candidates`] of `rows` whose responses all have to have a score: an empty one is refused, and equal ones
        are scored each.
        """
        flat = [(i, k) for i, row in enumerate(rows) for k in range(len(row["responses"]))]
        prompts, images = ([rows[i][key] for i, _ in flat] for key in ("prompt", "images"))
        videos = [rows[i].get("videos") for i, _ in flat]
        names = [f"response {k} of row {rows[i].get('id', i)}" for i, k in flat]
        scores = iter(self._score(prompts, [rows[i]["responses"][k] for i, k in flat], images, videos, names))
        return [[next(scores) for _ in row["responses"]] for row in rows]

    def __call__(
        self, prompts: list, completions: list, images: list | None = None, videos: list | None = None, **kwargs
    ) -> list[float]:
        """
        Args:
            prompts (`list`):
                One conversation (list of messages) or one user turn (string) per completion. An answer that a prompt
                has begun is one turn with its completion.
            completions (`list`):
                Strings, lists of one assistant message, or conversations that begin with the prompt.
            images (`list`, *optional*):
                One list of images (PIL, path, `data:` URL or bytes) per completion, empty or `None` for text; one image
                alone stands for a list of one. Without `images`, they are those that the prompts' placeholders hold.
            videos (`list`, *optional*):
                One list of videos per completion, likewise. A video is a file's path or bytes, a folder of frames, or a
                list of frames (PIL, paths or bytes). A part of type `video` in the prompt marks its place.
            **kwargs:
                A list `id` names the rows in error messages. Others are columns that `GRPOTrainer` passes.

        Returns:
            `list[float]`: one score per completion, in the order given. Higher is better; only differences between
            responses to one prompt mean something.

        Raises:
            ValueError: With the completion's number, for what [`split_turns`] or [`encode_conversations`] refuse, for
                `images` or `videos` that are neither one nor a list, and for a score that is not a finite number.
        """
        columns = {"prompts": prompts, "completions": completions, "images": images, "videos": videos}
        lengths = {name: len(column) for name, column in columns.items() if column is not None}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                f"{lengths} were given. Each completion needs one prompt, and one list of images: [[image]]. So it is "
                "with videos."
            )
        ids = kwargs.get("id")
        known = isinstance(ids, list) and len(ids) == len(completions)
        names = [f"completion {i} of row {ids[i]}" if known else f"completion {i}" for i in range(len(completions))]
        return self._score(prompts, completions, images, videos, names)

    def _score(
        self, prompts: list, completions: list, images: list | None, videos: list | None, names: list[str]
    ) -> list[float]:
        rows = []
        for i, name in enumerate(names):
            with named_row(name):
                prompt, held, held_videos = extract_images(prompts[i])
                before, answer = split_turns(prompt, completions[i])
                if not before:
                    raise ValueError("the prompt is empty, so there is nothing to answer. Leave the row out.")
                shown = held if images is None else as_image_list(images[i])
                filmed = held_videos if videos is None else as_video_list(videos[i])
                rows.append((before, answer, shown, filmed))
        scores = self.score_rows(rows, names)
        for name, score in zip(names, scores, strict=True):
            if not math.isfinite(score):
                raise ValueError(
                    f"{name}: its score is {score}, and a number is needed to compare it. The weights are broken, or "
                    "too large for their dtype: load them anew, or in bfloat16 or float32."
                )
        return scores
