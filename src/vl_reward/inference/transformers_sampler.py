"""Responses of a policy, sampled with transformers, every sampling parameter set by the caller."""

from dataclasses import asdict
from threading import Lock

import torch
from tqdm import tqdm
from transformers import BatchFeature, GenerationConfig, PreTrainedModel, ProcessorMixin

from ..arguments.sampling_parameters import SamplingParameters
from ..data.encoding import encode_prompts
from .ahead import computed_ahead
from .fingerprints import model_fingerprint


class ResponseSampler:
    """
    Samples responses to prompts with images and videos. The model is left as it is: several samplers may use it.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        processor ([`~transformers.ProcessorMixin`]):
            Its processor.
        parameters ([`SamplingParameters`]):
            How responses are sampled.
    """

    max_prompt_tokens = None  # a longer prompt takes longer, and that is all

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, parameters: SamplingParameters):
        self.model, self.processor, self.parameters = model.eval(), processor, parameters
        sampling = {"do_sample": parameters.temperature > 0}
        if parameters.temperature > 0:
            sampling |= {key: getattr(parameters, key) for key in ("temperature", "top_p", "top_k")}
        # `generate` fills what is None here from the checkpoint's own config, such as a `no_repeat_ngram_size`.
        defaults = GenerationConfig._get_default_generation_params()
        lengths = ("max_length", "num_return_sequences", "repetition_penalty")  # given by other means
        self.generation_config = GenerationConfig(
            **{key: value for key, value in defaults.items() if key not in lengths} | sampling,
            max_new_tokens=parameters.max_new_tokens,
            repetition_penalty=parameters.repetition_penalty,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )

    def fingerprint(self, **settings) -> str:
        """A hash of the policy and of all that decides its samples, `settings` besides."""
        return model_fingerprint(self.model, self.processor, sampling=asdict(self.parameters), **settings)

    @torch.inference_mode()
    def __call__(
        self,
        prompts: list,
        images: list[list],
        num_generations: int = 1,
        names: list[str] | None = None,
        videos: list[list] | None = None,
    ) -> tuple[list, list]:
        """
        Args:
            prompts (`list`):
                One conversation (list of messages) or one user turn (string) each. What begins with the assistant's
                words, its last message, is continued, and the response is what comes after them.
            images (`list[list]`):
                The images of each prompt, possibly none.
            num_generations (`int`, *optional*, defaults to `1`):
                Responses per prompt.
            names (`list[str]`, *optional*):
                What to call each prompt in an error message.
            videos (`list[list]`, *optional*):
                The videos of each prompt, possibly none.

        Returns:
            `tuple[list[list[str]], list[list[str]]]`: responses and finish reasons (`"stop"` or `"length"`), each of
            shape `(len(prompts), num_generations)`.
        """
        responses, finish_reasons = [], []
        names = names or [f"prompt {i}" for i in range(len(prompts))]
        step = max(1, self.parameters.batch_size // num_generations)
        columns, tokenizer_in_use = (prompts, images, names, videos or [[]] * len(prompts)), Lock()

        def encode(start: int) -> BatchFeature:
            with tokenizer_in_use:
                return encode_prompts(self.processor, *(column[start : start + step] for column in columns))

        starts = range(0, len(prompts), step)
        batches = computed_ahead(encode, starts)
        for inputs in tqdm(batches, desc="Sampling", total=len(starts), disable=len(prompts) <= step):
            inputs = inputs.to(self.model.device)
            tokens = self.model.generate(
                **inputs, generation_config=self.generation_config, num_return_sequences=num_generations
            )
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
            with tokenizer_in_use:
                texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
            finished = (tokens == self.processor.tokenizer.eos_token_id).any(1).tolist()
            for row in range(0, len(texts), num_generations):
                responses.append(texts[row : row + num_generations])
                finish_reasons.append(["stop" if done else "length" for done in finished[row : row + num_generations]])
        return responses, finish_reasons
