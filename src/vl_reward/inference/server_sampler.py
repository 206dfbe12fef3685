"""Responses of a policy that a vLLM server runs, on as many GPUs and machines as it has."""

import base64
import io
import json
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import torch
from tqdm import tqdm
from transformers import ProcessorMixin

from ..arguments.sampling_parameters import SamplingParameters
from ..data.encoding import check_control_tokens, encode_prompts, fill, load_images, named_row
from ..data.messages import as_messages
from .fingerprints import settings_fingerprint


class ServerSampler:
    """
    Samples responses from a server with OpenAI's chat completions and vLLM's additions to them, such as

    ```bash
    vllm serve Qwen/Qwen2.5-VL-7B-Instruct --data-parallel-size 8 --limit-mm-per-prompt '{"image": 8}'
    ```

    The call, and what it returns, are those of [`ResponseSampler`]. The server renders its own chat template and sizes
    the images, so the length of the first prompt of each call is compared with the one that training and scoring see.
    Every sampling parameter is sent, so the checkpoint's `generation_config` does not matter; the seeds of the requests
    are drawn from torch's, so `set_seed` decides the samples as far as the server is deterministic.

    Args:
        url (`str`):
            The server's address, such as `http://localhost:8000/v1`.
        model (`str`):
            The name that it serves the policy under.
        processor ([`~transformers.ProcessorMixin`]):
            The policy's processor, whose control tokens are refused in texts and whose pixel budget is sent.
        parameters ([`SamplingParameters`]):
            How responses are sampled. `batch_size` requests are in flight.
        timeout (`float`, *optional*, defaults to `3600`):
            Seconds that a request may take.

    Raises:
        ConnectionError: If the server does not answer, or answers with an error; its words are in the message.
        ValueError: If a prompt has another number of tokens there than here.
    """

    def __init__(
        self,
        url: str,
        model: str,
        processor: ProcessorMixin,
        parameters: SamplingParameters,
        timeout: float = 3600,
    ):
        self.url, self.processor, self.timeout = url.rstrip("/"), processor, timeout
        self.parameters = asdict(parameters)
        self.batch_size = self.parameters.pop("batch_size")
        self.parameters |= {"model": model, "max_tokens": self.parameters.pop("max_new_tokens")}
        self.parameters["mm_processor_kwargs"] = {"size": dict(processor.image_processor.size)}

    def fingerprint(self, **settings) -> str:
        """
        A hash of all that is asked for, and of `settings`. The weights are the server's: two policies that it serves
        under one name are not told apart.
        """
        return settings_fingerprint(self.processor, url=self.url, sampling=self.parameters, **settings)

    def __call__(
        self, prompts: list, images: list[list], num_generations: int = 1, names: list[str] | None = None
    ) -> tuple[list, list]:
        """Arguments and result are those of [`ResponseSampler`]."""
        seeds = torch.randint(2**31, (len(prompts),)).tolist()
        names = names or [f"prompt {i}" for i in range(len(prompts))]
        rows = list(zip(names, prompts, images, seeds, strict=True))
        with ThreadPoolExecutor(self.batch_size) as pool:
            answers = list(
                tqdm(pool.map(lambda row: self._ask(*row, num_generations), rows), total=len(rows), desc="Sampling")
            )
        there = answers[0]["usage"]["prompt_tokens"]
        here = encode_prompts(self.processor, prompts[:1], images[:1], names[:1])["input_ids"].shape[1]
        if there != here:
            raise ValueError(
                f"{names[0]} has {there} tokens at {self.url} and {here} in training and scoring, so the policy was "
                "asked something else than what is scored. Serve the checkpoint that `model_name_or_path` names, with "
                "its own chat template and the same `max_pixels`."
            )
        choices = [answer["choices"] for answer in answers]
        responses = [[choice["message"]["content"] or "" for choice in row] for row in choices]
        return responses, [[choice["finish_reason"] for choice in row] for row in choices]

    def _ask(self, name: str, prompt: str | list[dict], images: list, seed: int, n: int) -> dict:
        with named_row(name):
            messages = as_messages(prompt, [])
        check_control_tokens(self.processor, name, messages)
        filled = fill(name, messages, load_images(name, images))
        content = [{**message, "content": [as_part(part) for part in message["content"]]} for message in filled]
        body = {**self.parameters, "messages": content, "n": n, "seed": seed}
        if messages[-1]["role"] == "assistant":
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        request = urllib.request.Request(
            f"{self.url}/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as answer:
                completion = json.load(answer)
        except urllib.error.HTTPError as error:
            raise ConnectionError(
                f"{name}: {self.url} answered {error.code}: {error.read().decode(errors='replace')[:500]}"
            ) from error
        except OSError as error:
            raise ConnectionError(f"{self.url} does not answer ({error}). Is `vllm serve` running there?") from error
        if (given := len(completion["choices"])) != n:
            raise ConnectionError(f"{name}: {self.url} gave {given} responses, and {n} were asked for.")
        return completion


def as_part(part: dict) -> dict:
    """A part of a message in OpenAI's form, images as data in the URL."""
    if part["type"] != "image":
        return part
    buffer = io.BytesIO()
    part["image"].save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
