"""Responses of a policy, sampled with transformers, every sampling parameter set by the caller."""

import torch
from tqdm import tqdm
from transformers import GenerationConfig, PreTrainedModel, ProcessorMixin

from ..data.encoding import encode_prompts
from .fingerprints import model_fingerprint


class ResponseSampler:
    """
    Samples responses to prompts with images.

    A checkpoint's own `generation_config` is not used: Qwen2.5-VL's sets `top_k=1`, with which all samples are equal.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        processor ([`~transformers.ProcessorMixin`]):
            Its processor.
        max_new_tokens (`int`):
            Longest response. A response that reaches it is unfinished: its finish reason is `"length"`.
        temperature (`float`, *optional*, defaults to `1.0`):
            Sampling temperature; 0 decodes greedily.
        top_p (`float`, *optional*, defaults to `1.0`):
            Keep the likeliest tokens up to this probability; 1 keeps all.
        top_k (`int`, *optional*, defaults to `0`):
            Keep this many of the likeliest tokens; 0 keeps all.
        repetition_penalty (`float`, *optional*, defaults to `1.0`):
            Divide the logits of tokens seen before; 1 leaves them.
        batch_size (`int`, *optional*, defaults to `64`):
            Responses generated at a time.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        processor: ProcessorMixin,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        batch_size: int = 64,
    ):
        self.model = model.eval()
        self.processor = processor
        self.batch_size = batch_size
        sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        self.model.generation_config = GenerationConfig(
            **(sampling if temperature > 0 else {"do_sample": False}),
            max_new_tokens=max_new_tokens,
            repetition_penalty=repetition_penalty,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )

    def fingerprint(self, **settings) -> str:
        """A hash of the policy and of all that decides its samples, `settings` besides: [`SampleShards`] needs it."""
        sampling = self.model.generation_config.to_dict() | {"batch_size": self.batch_size}
        return model_fingerprint(self.model, self.processor, sampling=sampling, **settings)

    @torch.inference_mode()
    def __call__(self, prompts: list, images: list[list], num_generations: int = 1) -> tuple[list, list]:
        """
        Args:
            prompts (`list`):
                One conversation (list of messages) or one user turn (string) each. What begins with the assistant's
                words, its last message, is continued, and the response is what comes after them.
            images (`list[list]`):
                The images of each prompt, possibly none.
            num_generations (`int`, *optional*, defaults to `1`):
                Responses per prompt.

        Returns:
            `tuple[list[list[str]], list[list[str]]]`: responses and finish reasons (`"stop"` or `"length"`), each of
            shape `(len(prompts), num_generations)`.
        """
        responses, finish_reasons = [], []
        step = max(1, self.batch_size // num_generations)
        for start in tqdm(range(0, len(prompts), step), desc="Sampling", disable=len(prompts) <= step):
            stop = min(start + step, len(prompts))
            inputs = encode_prompts(
                self.processor,
                prompts[start:stop],
                images[start:stop],
                [f"prompt {i}" for i in range(start, stop)],
            ).to(self.model.device)
            tokens = self.model.generate(**inputs, num_return_sequences=num_generations)
            tokens = tokens[:, inputs["input_ids"].shape[1] :]
            texts = self.processor.batch_decode(tokens, skip_special_tokens=True)
            finished = (tokens == self.processor.tokenizer.eos_token_id).any(1).tolist()
            for row in range(0, len(texts), num_generations):
                responses.append(texts[row : row + num_generations])
                finish_reasons.append(["stop" if done else "length" for done in finished[row : row + num_generations]])
        return responses, finish_reasons
