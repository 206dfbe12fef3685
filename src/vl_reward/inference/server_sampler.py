"""Responses of a policy that vLLM servers run, on as many GPUs and machines as they have."""

from dataclasses import asdict

import torch
from transformers import ProcessorMixin

from ..arguments.sampling_parameters import SamplingParameters
from ..data.encoding import check_control_tokens, encode_prompts, fill, load_images, named_row
from ..data.messages import as_messages
from .fingerprints import settings_fingerprint
from .response_scorer import refuse_videos
from .server_client import RequestRefused, ServerClient, as_openai, as_url, results


class ServerSampler:
    """
    Samples responses from a server with OpenAI's chat completions and vLLM's additions to them, such as

    ```bash
    vllm serve Qwen/Qwen2.5-VL-7B-Instruct --data-parallel-size 8 --limit-mm-per-prompt '{"image": 8}'
    ```

    The call, and what it returns, are those of [`ResponseSampler`]. The server renders its own chat template and sizes
    the images, so the length of the first prompt of each call is compared with the one that training and scoring see,
    before the others are asked. Every sampling parameter is sent, so the checkpoint's `generation_config` does not
    matter; the seeds of the requests are drawn from torch's, so `set_seed` decides the samples as far as the server is
    deterministic.

    Args:
        url (`str` or `list[str]`):
            The servers' addresses, such as `http://localhost:8000/v1`.
        model (`str`):
            The name that they serve the policy under.
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
        Arguments and result are those of [`ResponseSampler`]. A prompt with a video is refused. One that the server
        refuses has no responses, and the server's words in the place of its finish reasons: the others are not lost.
        """
        if not prompts:
            return [], []
        seeds = torch.randint(2**31, (len(prompts),)).tolist()
        names = names or [f"prompt {i}" for i in range(len(prompts))]
        refuse_videos(names, videos, "a server")
        rows = list(zip(names, prompts, images, seeds, strict=True))
        here = encode_prompts(self.processor, prompts[:1], images[:1], names[:1])["input_ids"].shape[1]
        there = self._ask(*rows[0], 1, max_tokens=1)["usage"]["prompt_tokens"]
        if there != here:
            raise ValueError(
                f"{names[0]} has {there} tokens at {self.client.urls[0]} and {here} in training and scoring, so the "
                "policy would be asked something else than what is scored. Serve the checkpoint that "
                "`model_name_or_path` names, with its own chat template and the same `max_pixels`."
            )
        # vLLM has one answer to a prompt where nothing is drawn.
        n = num_generations if self.parameters["temperature"] > 0 else 1
        with self.client.asking() as ask:
            answers = results([ask(self._ask_or_say_why, *row, n) for row in rows], "Sampling")
        responses, finish_reasons = [], []
        for answer in answers:
            choices = answer["choices"] * (num_generations // n)
            responses.append([choice["message"]["content"] or "" for choice in choices])
            finish_reasons.append([choice["finish_reason"] for choice in choices] or [answer["refused"]])
        return responses, finish_reasons

    def _ask_or_say_why(self, *row) -> dict:
        try:
            return self._ask(*row)
        except RequestRefused as error:
            return {"choices": [], "refused": str(error)}

    def _ask(self, name: str, prompt: str | list[dict], images: list, seed: int, n: int, **parameters) -> dict:
        with named_row(name):
            messages = as_messages(prompt, [])
        check_control_tokens(self.processor, name, messages)
        filled = fill(name, messages, [as_url(image) for image in load_images(name, images)])
        body = {**self.parameters, "messages": as_openai(filled), "n": n, "seed": seed, **parameters}
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
