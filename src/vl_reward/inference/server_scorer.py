"""A reward model that vLLM servers run, as a function from prompts, responses and images to scores."""

import math
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import cached_property
from itertools import chain

from transformers import AutoConfig, AutoProcessor

from ..data.encoding import check_length, count_tokens, fill, load_images, load_videos, render
from ..data.images import image_key
from ..data.messages import join_turns, text_of
from ..data.videos.video_source import video_key
from ..data.videos.video_tokens import times_in_text
from ..data.videos.vllm_videos import MEDIA_KWARGS, as_video_url, placed_otherwise, processor_kwargs
from .fingerprints import settings_fingerprint
from .probes import Probes
from .response_scorer import ResponseScorer, refuse_videos
from .server_client import RequestRefused, ServerClient, as_openai, as_url, as_video_part, results


class ServerScorer(ResponseScorer):
    """
    Scores responses with a reward model that vLLM serves: the folder that `recipes/export_reward.py --format vllm`
    writes, by the command in its `README.md`. The call is that of [`RewardScorer`].

    At the start the server's scores of the two probes in the folder are compared with those of the export, and with
    each answer the server's number of tokens with the processor's, so a server that lost the head, applies a sigmoid,
    or reads texts and images otherwise is refused.

    The responses to a prompt are asked for one after the first, so that the server finds the prompt in its cache. A
    video goes there as the frames that training sees, with their times.

    Args:
        url (`str` or `list[str]`):
            The servers' addresses, such as `http://localhost:8000/v1`.
        path (`str`):
            The exported folder: its processor and its probes are read.
        batch_size (`int`, *optional*, defaults to `64`):
            Requests that each server has at a time.
        max_length (`int`, *optional*):
            Refuse a response that takes more tokens than this together with its prompt and images. The server's own
            limit holds, too.
        timeout (`float`, *optional*, defaults to `3600`), patience (`float`, *optional*, defaults to `900`):
            Seconds that an answer may take, and that the servers may be away.

    Raises:
        ConnectionError: If a server does not answer.
        FileNotFoundError: If the folder has no probes.
        ValueError: If a server gives other scores or reads other tokens than the export, or vLLM would place a video
            otherwise in time.

    Example:
    ```python
    >>> scorer = ServerScorer("http://localhost:8000/v1", "outputs/tiny/export_reward")
    >>> scorer(prompts=["What is the sum?"], completions=["I see 4 and 5. Answer: 9"], images=[[image]])
    [2.31]
    ```
    """

    def __init__(
        self,
        url: str | list[str],
        path: str,
        batch_size: int = 64,
        max_length: int | None = None,
        timeout: float = 3600,
        patience: float = 900,
    ):
        self.probes = Probes.load(path)
        self.processor = AutoProcessor.from_pretrained(path)
        self.client = ServerClient(url, batch_size, timeout, patience)
        self.model, limit = next(iter(self.client.models.items()))
        self.max_length = min(limit, max_length or limit)
        self.path = path
        for client_url in self.client.urls:
            one = ServerClient(client_url, batch_size, timeout, patience)
            answered = [self._ask(one, probe["name"], probe["messages"]) for probe in self.probes.probes]
            self.probes.check_server(answered, client_url)

    def fingerprint(self, **settings) -> str:
        """A hash of the probes and their scores, by which the model is known, of the processor and of `settings`."""
        return settings_fingerprint(self.processor, probes=asdict(self.probes), **settings)

    @cached_property
    def _tokens_per_second(self) -> float:
        return AutoConfig.from_pretrained(self.path).vision_config.tokens_per_second

    def score_rows(self, rows: list[tuple[list[dict], list[dict], list, list]], names: list[str]) -> list[float]:
        if times_in_text(self.processor):  # a server of vLLM 0.30 fails on Qwen3-VL's
            refuse_videos(names, [row[3] for row in rows], "a server of vLLM 0.30")
        groups = defaultdict(list)
        for i, (prompt, _, images, videos) in enumerate(rows):
            groups[(text_of(prompt), *map(image_key, images), *map(video_key, videos))].append(i)
        with self.client.asking() as ask, ThreadPoolExecutor(self.client.in_flight) as groups_at_work:

            def score_group(indices: list[int]) -> list[float]:
                name, row = names[indices[0]], rows[indices[0]]
                images, videos = load_images(name, row[2]), load_videos(self.processor, name, row[3])
                urls = [as_url(image) for image in images], [as_video_part(as_video_url(video)) for video in videos]
                asked = [(names[i], join_turns(*rows[i][:2]), row[2:], videos, *urls) for i in indices]
                return [
                    ask(self._score_one, *asked[0]).result(),
                    *results([ask(self._score_one, *one) for one in asked[1:]]),
                ]

            scored = results([groups_at_work.submit(score_group, indices) for indices in groups.values()], "Scoring")
        scores = dict(zip(chain(*groups.values()), chain(*scored), strict=True))
        return [scores[i] for i in range(len(rows))]

    def _score_one(
        self, name: str, conversation: list[dict], shown: tuple, videos: list, urls: list[str], parts: list[dict]
    ) -> float:
        text = render(self.processor, name, conversation, *shown)
        here = count_tokens(self.processor, name, [text], *shown)
        check_length(name, here, self.max_length)
        for video in videos:
            if reason := placed_otherwise(self.processor, video.sampling, self._tokens_per_second):
                raise ValueError(f"{name}: {reason}")
        messages = as_openai(fill(name, conversation, urls, videos), parts)
        options = (
            {"mm_processor_kwargs": processor_kwargs(self.processor, videos), "media_io_kwargs": MEDIA_KWARGS}
            if videos
            else {}
        )
        there, score = self._ask(self.client, name, messages, **options)
        if there != here:
            raise ValueError(
                f"{name} has {there} tokens at {' and '.join(self.client.urls)} and {here} by the processor of the "
                "export, so the server scores something else: its chat template, its pixel budget or its version of "
                "transformers differ. Serve the exported folder as its README.md says."
            )
        return score

    def _ask(self, client: ServerClient, name: str, messages: list[dict], **options) -> tuple[int, float]:
        """A server's number of tokens, and its score."""
        body = {"model": self.model, "messages": messages, "add_generation_prompt": False, **options}
        try:
            answer = client.post(name, "/classify", body)
        except RequestRefused as error:
            if "not JSON compliant" not in str(error):  # what vLLM says of a score that is no number
                raise
            raise ValueError(
                f"{name}: the server's score is no number: its head is lost, or its weights overflow in its dtype. "
                "Serve the exported folder as its README.md says."
            ) from error
        probs = answer["data"][0]["probs"]
        if len(probs) != 1:
            raise ValueError(f"{name}: the server gives {len(probs)} values, and a reward model gives one.")
        return answer["usage"]["prompt_tokens"], math.nan if probs[0] is None else probs[0]  # JSON has no NaN
