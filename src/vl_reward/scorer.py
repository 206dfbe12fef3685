"""A trained reward model as a function from prompts, responses and images to scores."""

import torch
from tqdm import tqdm
from transformers import AutoProcessor, ProcessorMixin

from .checkpoints import load_value_head
from .encoding import as_messages, encode_conversations, text_of
from .modeling_qwen2_5_vl import Qwen2_5_VLForSequenceClassification


class RewardScorer:
    """
    Scores responses with a reward model. The call has the signature of TRL's `reward_funcs`.

    Args:
        model ([`Qwen2_5_VLForSequenceClassification`]):
            The reward model.
        processor ([`~transformers.ProcessorMixin`]):
            The processor it was trained with.
        batch_size (`int`, *optional*, defaults to `32`):
            Responses per forward pass. Work is sorted by length first; the scores come back in the caller's order.
        max_length (`int`, *optional*):
            Refuse a response that takes more tokens than this together with its prompt and images.
        bias (`float`, *optional*, defaults to `0.0`):
            Added to every score. Heads of this project have none; Skywork-VL-Reward-7B's has one.

    Example:
    ```python
    >>> scorer = RewardScorer.from_pretrained("outputs/tiny/reward_stage2")
    >>> scorer(
    ...     prompts=["What is the sum of the two digits?"] * 2,
    ...     completions=["I see 4 and 5. Answer: 9", "I see 4 and 6. Answer: 10"],
    ...     images=[[image], [image]],
    ... )
    [2.31, -4.07]
    ```
    """

    def __init__(
        self,
        model: Qwen2_5_VLForSequenceClassification,
        processor: ProcessorMixin,
        batch_size: int = 32,
        max_length: int | None = None,
        bias: float = 0.0,
    ):
        self.model = model.eval()
        self.processor = processor
        self.batch_size = batch_size
        self.max_length = max_length
        self.bias = bias
        self.__name__ = "reward_model"  # GRPOTrainer names its log columns by it

    @classmethod
    def from_pretrained(cls, path: str, batch_size: int = 32, max_length: int | None = None, **model_kwargs):
        """
        Load model and processor from a checkpoint of this project, or from one with its head in
        `value_head.safetensors`, such as Skywork-VL-Reward-7B.

        Raises:
            ValueError: If the checkpoint holds no trained reward head.
        """
        model, info = Qwen2_5_VLForSequenceClassification.from_pretrained(
            path, output_loading_info=True, **model_kwargs
        )
        bias = 0.0
        if "score.weight" in info["missing_keys"]:
            value_head = load_value_head(path)
            if value_head is None:
                raise ValueError(f"{path} holds no trained reward head: its scores would be random. Train one first.")
            weight, bias = value_head
            model.score.weight.data.copy_(weight)
        return cls(model, AutoProcessor.from_pretrained(path), batch_size, max_length, bias)

    @torch.inference_mode()
    def __call__(self, prompts: list, completions: list, images: list | None = None, **kwargs) -> list[float]:
        """
        Args:
            prompts (`list`):
                One conversation (list of messages) or one user turn (string) per completion.
            completions (`list`):
                Strings, or lists of one assistant message.
            images (`list`, *optional*):
                One list of images (PIL or path) per completion; an empty list, or no `images`, for text.

        Returns:
            `list[float]`: one score per completion, in the order given. Higher is better; only differences between
            responses to one prompt mean something.
        """
        images = images if images is not None else [[]] * len(prompts)
        rows = list(zip(prompts, completions, images, strict=True))
        order = sorted(range(len(rows)), key=lambda i: len(text_of(as_messages(*rows[i][:2]))))
        scores = [0.0] * len(rows)
        for start in tqdm(range(0, len(rows), self.batch_size), desc="Scoring", disable=len(rows) <= self.batch_size):
            indices = order[start : start + self.batch_size]
            batch = encode_conversations(
                self.processor,
                [as_messages(*rows[i][:2]) for i in indices],
                [rows[i][2] for i in indices],
                [f"completion {i}" for i in indices],
                self.max_length,
            )
            logits = self.model(**batch.to(self.model.device), use_cache=False).logits
            for i, score in zip(indices, logits.squeeze(-1).tolist(), strict=True):
                scores[i] = score + self.bias
        return scores
