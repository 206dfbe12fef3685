"""Responses of a policy that vLLM runs in this process, on this process's GPU."""

import hashlib
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import ProcessorMixin

from ..arguments.sampling_parameters import SamplingParameters
from ..data.encoding import render_prompts, tokenize
from .fingerprints import settings_fingerprint


class VLLMSampler:
    """
    Samples responses with vLLM's offline engine, one per process: `accelerate launch` with 8 processes is 8 engines,
    each with its own prompts. The call, and what it returns, are those of [`ResponseSampler`].

    vLLM gets prompts as text that the processor's chat template rendered, the one of training and scoring, and puts the
    visual tokens in itself: the tokens of the first prompt of each call are compared with those that training and
    scoring see. The seeds of the prompts are drawn from torch's, so `set_seed` decides the samples as far as vLLM is
    deterministic.

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

    Raises:
        ImportError: If vLLM is not installed.
        ValueError: If a prompt has other tokens there than here.
    """

    def __init__(
        self,
        model: str,
        processor: ProcessorMixin,
        parameters: SamplingParameters,
        revision: str | None = None,
        dtype: str = "auto",
    ):
        try:
            from vllm import LLM  # a large extra, which only this engine needs
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
        # The launcher's processes are vLLM's: each takes the GPU of its local rank. TRL's trainers do it so, too.
        launched = PartialState().num_processes > 1
        backend = {"distributed_executor_backend": "external_launcher"} if launched else {}
        self.llm = LLM(model=model, revision=revision, **self.engine, **backend)

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
        self, prompts: list, images: list[list], num_generations: int = 1, names: list[str] | None = None
    ) -> tuple[list, list]:
        """Arguments and result are those of [`ResponseSampler`]."""
        from vllm import SamplingParams

        names = names or [f"prompt {i}" for i in range(len(prompts))]
        texts, images = render_prompts(self.processor, prompts, images, names)
        requests = [
            {"prompt": text, **({"multi_modal_data": {"image": row_images}} if row_images else {})}
            for text, row_images in zip(texts, images, strict=True)
        ]
        seeds = torch.randint(2**31, (len(prompts),)).tolist()
        parameters = [SamplingParams(n=num_generations, seed=seed, **self.parameters) for seed in seeds]
        outputs = self.llm.generate(requests, parameters)
        here = tokenize(self.processor, texts[:1], images[:1], padding_side="left")["input_ids"][0].tolist()
        there = list(outputs[0].prompt_token_ids)
        if there != here:
            raise ValueError(
                f"{names[0]} has {len(there)} tokens in vLLM and {len(here)} in training and scoring, or others, so "
                f"the policy was asked something else than what is scored. Is the processor that of {self.model}?"
            )
        responses = [[completion.text for completion in output.outputs] for output in outputs]
        return responses, [[completion.finish_reason for completion in output.outputs] for output in outputs]


def file_hash(path: Path) -> str:
    """The SHA-256 of a file, read in pieces."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**24):
            digest.update(piece)
    return digest.hexdigest()
