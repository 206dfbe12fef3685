"""Responses of a policy that vLLM runs in this process, on this process's GPU."""

import difflib
import hashlib
import uuid
from dataclasses import asdict, fields
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import ProcessorMixin

from ..arguments.sampling_parameters import SamplingParameters
from ..data.encoding import render_prompts, tokenize
from ..data.videos.video import Video
from ..data.videos.video_tokens import times_in_text
from ..data.videos.vllm_videos import placed_otherwise, places_without_videos, processor_kwargs
from .fingerprints import settings_fingerprint


class VLLMSampler:
    """
    Samples responses with vLLM's offline engine, one per process: `accelerate launch` with 8 processes is 8 engines,
    each with its own prompts. The call, and what it returns, are those of [`ResponseSampler`].

    vLLM gets prompts as text that the processor's chat template rendered, the one of training and scoring, and puts the
    visual tokens in itself: the tokens of the first prompt of each call, and of the first with a video, are compared
    with those that training and scoring see, before the others are answered. A video goes there as the frames that
    training sees, with their times. The seeds of the prompts are drawn from torch's, so `set_seed` decides
    the samples as far as vLLM is deterministic.

    Args:
        model (`str`):
            The policy's folder, or its name on the hub.
        processor ([`~transformers.ProcessorMixin`]):
            Its processor.
        parameters ([`SamplingParameters`]):
            How responses are sampled.
        revision (`str`, *optional*):
            Of the model on the hub.
        dtype (`str`, *optional*, defaults to `"auto"`):
            Of its weights.
        engine_kwargs (`dict`, *optional*):
            vLLM's own arguments, such as `max_model_len`, `gpu_memory_utilization` or `tensor_parallel_size`.

    Attributes:
        max_prompt_tokens (`int`): What the engine's context leaves for a prompt.

    Raises:
        ImportError: If vLLM is not installed.
        ValueError: If a prompt has other tokens there than here, or for `engine_kwargs` that vLLM does not have, or
            that are decided otherwise.
    """

    def __init__(
        self,
        model: str,
        processor: ProcessorMixin,
        parameters: SamplingParameters,
        revision: str | None = None,
        dtype: str = "auto",
        engine_kwargs: dict | None = None,
    ):
        try:
            from vllm import LLM, EngineArgs  # a large extra, which only this engine needs
        except ImportError as error:
            raise ImportError("The engine `vllm` needs vLLM: `pip install 'vl-reward[vllm]'`.") from error
        self.model, self.revision, self.processor = model, revision, processor
        self.parameters = asdict(parameters)
        self.parameters |= {"max_tokens": self.parameters.pop("max_new_tokens")}
        self.engine = {
            "dtype": dtype,
            "max_num_seqs": self.parameters.pop("batch_size"),
            "mm_processor_kwargs": {"size": dict(processor.image_processor.size)},
            "generation_config": "vllm",  # a checkpoint's own stop tokens would come on top
        }
        engine_kwargs = engine_kwargs or {}
        check_engine_kwargs(engine_kwargs, {field.name for field in fields(EngineArgs)}, {"model", *self.engine})
        # The launcher's processes are vLLM's: each takes the GPU of its local rank. TRL's trainers do it so, too.
        launched = PartialState().num_processes > 1
        if launched and engine_kwargs.get("tensor_parallel_size", 1) > 1:
            raise ValueError(
                "`tensor_parallel_size` is for one process: vLLM starts the others itself, and here each launched "
                "process is an engine with prompts of its own. Start the recipe with `python`, or remove it."
            )
        backend = {"distributed_executor_backend": "external_launcher"} if launched else {}
        self.llm = LLM(model=model, revision=revision, **self.engine, **engine_kwargs, **backend)
        self.max_prompt_tokens = self.llm.model_config.max_model_len - parameters.max_new_tokens

    def fingerprint(self, **settings) -> str:
        """
        A hash of the policy's files and of all that decides its samples, `settings` besides. A policy on the hub is
        known by its name and revision only.
        """
        weights = {path.name: file_hash(path) for path in sorted(Path(self.model).glob("*.safetensors"))}
        policy = weights or {self.model: self.revision}
        return settings_fingerprint(
            self.processor, policy=policy, engine=["vllm", self.engine], sampling=self.parameters, **settings
        )

    def __call__(
        self,
        prompts: list,
        images: list[list],
        num_generations: int = 1,
        names: list[str] | None = None,
        videos: list[list] | None = None,
    ) -> tuple[list, list]:
        """
        Arguments and result are those of [`ResponseSampler`]. A prompt with a video that vLLM would place otherwise in
        time has no responses, and the reason in the place of its finish reasons.
        """
        from vllm import SamplingParams

        if not prompts:
            return [], []
        names = names or [f"prompt {i}" for i in range(len(prompts))]
        texts, images, videos = render_prompts(self.processor, prompts, images, names, videos)
        refused = [next(filter(None, map(self._refusal, row)), None) for row in videos]
        asked = [i for i, reason in enumerate(refused) if reason is None]
        requests = {i: as_request(self.processor, texts[i], images[i], videos[i]) for i in asked}
        for i in {*asked[:1], *[i for i in asked if videos[i]][:1]}:
            self._compare_tokens(names[i], requests[i], texts[i], images[i], videos[i])
        seeds = torch.randint(2**31, (len(prompts),)).tolist()
        # vLLM has one answer to a prompt where nothing is drawn.
        n = num_generations if self.parameters["temperature"] > 0 else 1
        parameters = [SamplingParams(n=n, seed=seeds[i], **self.parameters) for i in asked]
        with places_without_videos():
            answers = self.llm.generate([*requests.values()], parameters)
        outputs = dict(zip(asked, answers, strict=True))
        responses, finish_reasons, copies = [], [], num_generations // n
        for i, reason in enumerate(refused):
            given = [] if reason else outputs[i].outputs * copies
            responses.append([one.text for one in given])
            finish_reasons.append([one.finish_reason for one in given] or [reason])
        return responses, finish_reasons

    def _refusal(self, video: Video) -> str | None:
        if times_in_text(self.processor):
            return None
        vision = self.llm.model_config.hf_config.vision_config
        return placed_otherwise(self.processor, video.sampling, vision.tokens_per_second)

    def _compare_tokens(self, name: str, request: dict, text: str, images: list, videos: list[Video]) -> None:
        from vllm import SamplingParams

        here = tokenize(self.processor, [text], [images], [videos], padding_side="left")["input_ids"][0].tolist()
        with places_without_videos():
            (first,) = self.llm.generate([request], SamplingParams(max_tokens=1), use_tqdm=False)
        if (there := list(first.prompt_token_ids)) != here:
            raise ValueError(
                f"{name} has {len(there)} tokens in vLLM and {len(here)} in training and scoring, or not the same, so "
                f"the policy would be asked something else than what is scored. Is the processor that of {self.model}?"
            )


def as_request(processor: ProcessorMixin, text: str, images: list, videos: list[Video]) -> dict:
    """
    A prompt as vLLM's offline engine takes it.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The policy's processor.
        text (`str`):
            The rendered prompt.
        images (`list`), videos (`list[Video]`):
            What it shows, decoded.
    """
    shown = {"image": images} if images else {}
    if not videos:
        return {"prompt": text, **({"multi_modal_data": shown} if shown else {})}
    frames = [(video.frames, asdict(video.sampling.metadata)) for video in videos]
    return {
        "prompt": text,
        "multi_modal_data": {**shown, "video": frames},
        "mm_processor_kwargs": processor_kwargs(processor, videos),
        # vLLM processes only those that its cache does not hold, and would give them the times of others. So each
        # prompt's videos have names of their own.
        "multi_modal_uuids": {"video": [uuid.uuid4().hex for _ in videos]},
    }


def check_engine_kwargs(given: dict, known: set[str], taken: set[str]) -> None:
    """
    Check the arguments for vLLM's engine.

    Args:
        given (`dict`):
            What the user gives.
        known (`set[str]`), taken (`set[str]`):
            The names that the engine has, and those that the sampler gives itself.

    Raises:
        ValueError: For an argument that vLLM's engine does not have, or that the sampler gives it.
    """
    for name in given.keys() & taken:
        raise ValueError(
            f"`engine_kwargs: {name}` is decided by the recipe's own options (`model_name_or_path`, `dtype`, "
            "`batch_size`, `max_pixels`). Use those."
        )
    for name in given.keys() - known:
        close = difflib.get_close_matches(name, known, n=3)
        raise ValueError(
            f"`engine_kwargs: {name}`: vLLM's engine has no such argument."
            + (f" Did you mean {' or '.join(close)}?" if close else "")
        )


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**24):
            digest.update(piece)
    return digest.hexdigest()
