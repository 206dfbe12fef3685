"""Responses of a policy that vLLM servers run, on as many GPUs and machines as they have."""

from dataclasses import asdict
from functools import cached_property

import torch
from transformers import AutoConfig, ProcessorMixin

from ..arguments.sampling_parameters import SamplingParameters
from ..data.encoding import check_control_tokens, encode_prompts, fill, load_images, load_videos, named_row
from ..data.messages import as_messages
from ..data.videos.video import sampling_of
from ..data.videos.video_source import as_video_list
from ..data.videos.video_tokens import times_in_text
from ..data.videos.vllm_videos import MEDIA_KWARGS, as_video_url, placed_otherwise, processor_kwargs
from .fingerprints import settings_fingerprint
from .response_scorer import refuse_videos
from .server_client import RequestRefused, ServerClient, as_openai, as_url, as_video_part, results


class ServerSampler:
    """
    Samples responses from a server with OpenAI's chat completions and vLLM's additions to them, such as

    ```bash
    vllm serve Qwen/Qwen2.5-VL-7B-Instruct --data-parallel-size 8 --limit-mm-per-prompt '{"image": 8}'
    ```

    The call, and what it returns, are those of [`ResponseSampler`]. The server renders its own chat template and sizes
    the images, so the lengths of the first prompt of each call, and of the first with a video, are compared with those
    that training and scoring see, before the others are asked. A video goes there as the frames that training sees,
    with their times. Every sampling parameter is sent, so the checkpoint's `generation_config` does not
    matter; the seeds of the requests are drawn from torch's, so `set_seed` decides the samples as far as the server is
    deterministic.

    Args:
        url (`str` or `list[str]`):
            The servers' addresses, such as `http://localhost:8000/v1`.
        model (`str`):
            The name that they serve the policy under. Where rows have videos, it is its folder or its name on the hub.
        processor ([`~transformers.ProcessorMixin`]):
            The policy's processor, whose control tokens are refused in texts and whose pixel budget is sent.
        parameters ([`SamplingParameters`]):
            How responses are sampled. Each server has `batch_size` requests at a time.
        timeout (`float`, *optional*, defaults to `3600`), patience (`float`, *optional*, defaults to `900`):
            Seconds that an answer may take, and that the servers may be away, see [`ServerClient`].

    Attributes:
        max_prompt_tokens (`int`): What the server's context leaves for a prompt.

    Raises:
        ConnectionError: If no server answers.
        ValueError: If a server does not serve the model, refuses a prompt, or reads it as another number of tokens.
    """

    def __init__(
        self,
        url: str | list[str],
        model: str,
        processor: ProcessorMixin,
        parameters: SamplingParameters,
        timeout: float = 3600,
        patience: float = 900,
    ):
        self.processor = processor
        self.parameters = asdict(parameters)
        self.client = ServerClient(url, self.parameters.pop("batch_size"), timeout, patience)
        if model not in self.client.models:
            raise ValueError(
                f"{self.client.urls[0]} serves {', '.join(self.client.models)}, and `model_name_or_path` is {model}. "
                "Serve the policy under that name: `--served-model-name`."
            )
        self.max_prompt_tokens = self.client.models[model] - self.parameters["max_new_tokens"]
        self.parameters |= {"model": model, "max_tokens": self.parameters.pop("max_new_tokens")}
        self.parameters["mm_processor_kwargs"] = {"size": dict(processor.image_processor.size)}

    def fingerprint(self, **settings) -> str:
        """
        A hash of all that is asked for, and of `settings`. The weights are the server's: two policies that it serves
        under one name are not told apart.
        """
        return settings_fingerprint(self.processor, sampling=self.parameters, **settings)

    def __call__(
        self,
        prompts: list,
        images: list[list],
        num_generations: int = 1,
        names: list[str] | None = None,
        videos: list[list] | None = None,
    ) -> tuple[list, list]:
        """
        Arguments and result are those of [`ResponseSampler`]. A prompt that the server refuses has no responses, and
        the server's words in the place of its finish reasons: the others are not lost. So it is with one whose video
        vLLM would place otherwise in time.
        """
        if not prompts:
            return [], []
        seeds = torch.randint(2**31, (len(prompts),)).tolist()
        names = names or [f"prompt {i}" for i in range(len(prompts))]
        videos = [as_video_list(row) for row in videos or [[]] * len(prompts)]
        if times_in_text(self.processor):  # a server of vLLM 0.30 fails on Qwen3-VL's
            refuse_videos(names, videos, "a server of vLLM 0.30")
        rows = list(zip(names, prompts, images, videos, seeds, strict=True))
        refused = [self._refusal(name, row) for name, row in zip(names, videos, strict=True)]
        asked = [i for i, reason in enumerate(refused) if reason is None]
        for i in {*asked[:1], *[i for i in asked if videos[i]][:1]}:
            self._compare_tokens(*rows[i])
        # vLLM has one answer to a prompt where nothing is drawn.
        n = num_generations if self.parameters["temperature"] > 0 else 1
        with self.client.asking() as ask:
            answered = results([ask(self._ask_or_say_why, *rows[i], n) for i in asked], "Sampling")
        answers = dict(zip(asked, answered, strict=True))
        responses, finish_reasons = [], []
        for i, reason in enumerate(refused):
            answer = answers.get(i, {"choices": [], "refused": reason})
            choices = answer["choices"] * (num_generations // n)
            responses.append([choice["message"]["content"] or "" for choice in choices])
            finish_reasons.append([choice["finish_reason"] for choice in choices] or [answer["refused"]])
        return responses, finish_reasons

    @cached_property
    def _tokens_per_second(self) -> float:
        return AutoConfig.from_pretrained(self.parameters["model"]).vision_config.tokens_per_second

    def _refusal(self, name: str, videos: list) -> str | None:
        """Why a prompt cannot be asked, from the headers of its videos."""
        with named_row(name):
            samplings = [sampling_of(video, self.processor) for video in videos]
        reasons = (placed_otherwise(self.processor, one, self._tokens_per_second) for one in samplings)
        return next(filter(None, reasons), None)

    def _compare_tokens(self, name: str, prompt: str | list[dict], images: list, videos: list, seed: int) -> None:
        here = encode_prompts(self.processor, [prompt], [images], [name], [videos])["input_ids"].shape[1]
        there = self._ask(name, prompt, images, videos, seed, 1, max_tokens=1)["usage"]["prompt_tokens"]
        if there != here:
            raise ValueError(
                f"{name} has {there} tokens at {self.client.urls[0]} and {here} in training and scoring, so the "
                "policy would be asked something else than what is scored. Serve the checkpoint that "
                "`model_name_or_path` names, with its own chat template and the same `max_pixels`."
            )

    def _ask_or_say_why(self, *row) -> dict:
        try:
            return self._ask(*row)
        except RequestRefused as error:
            return {"choices": [], "refused": str(error)}

    def _ask(
        self, name: str, prompt: str | list[dict], images: list, videos: list, seed: int, n: int, **parameters
    ) -> dict:
        with named_row(name):
            messages = as_messages(prompt, [])
        check_control_tokens(self.processor, name, messages)
        videos = load_videos(self.processor, name, videos)
        filled = fill(name, messages, [as_url(image) for image in load_images(name, images)], videos)
        asked = as_openai(filled, [as_video_part(as_video_url(video)) for video in videos])
        body = {**self.parameters, "messages": asked, "n": n, "seed": seed, **parameters}
        if videos:
            body["mm_processor_kwargs"] = self.parameters["mm_processor_kwargs"] | processor_kwargs(
                self.processor, videos
            )
            body["media_io_kwargs"] = MEDIA_KWARGS
        if messages[-1]["role"] == "assistant":
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        answer = self.client.post(name, "/v1/chat/completions", body)
        if (given := len(answer["choices"])) != n:
            raise ValueError(f"{name}: the server gave {given} responses, and {n} were asked for.")
        if any(one["message"].get(key) for one in answer["choices"] for key in ("reasoning_content", "reasoning")):
            raise ValueError(
                f"{name}: the server gives thoughts apart from the response, and both are scored and trained on as one "
                "text. Start it without `--reasoning-parser`."
            )
        return answer
