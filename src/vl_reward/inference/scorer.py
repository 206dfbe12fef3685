"""A trained reward model as a function from prompts, responses and images to scores."""

from collections import defaultdict
from collections.abc import Iterator

import torch
from tqdm import tqdm
from transformers import AutoProcessor, ProcessorMixin

from ..data.encoding import count_visual_tokens, encode_conversations
from ..data.images import image_key
from ..data.messages import as_messages, extract_images, text_of
from ..models.checkpoint_formats import load_value_head
from ..models.qwen2_5_vl import Qwen2_5_VLForSequenceClassification
from ..prefix_sharing.share_prefixes import share_prefixes
from .fingerprints import model_fingerprint


class RewardScorer:
    """
    Scores responses with a reward model. The call has the signature of TRL's `reward_funcs`.

    Args:
        model ([`Qwen2_5_VLForSequenceClassification`]):
            The reward model.
        processor ([`~transformers.ProcessorMixin`]):
            The processor it was trained with.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Tokens of text and images in a forward pass, those of a prompt once for all of its responses there. A single
            response may be longer. Work is sorted by length first; the scores come back in the caller's order.
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
        max_batch_tokens: int = 16384,
        max_length: int | None = None,
        bias: float = 0.0,
    ):
        self.model = model.eval()
        self.processor = processor
        self.max_batch_tokens = max_batch_tokens
        self.max_length = max_length
        self.bias = bias
        self.__name__ = "reward_model"  # GRPOTrainer names its log columns by it

    @classmethod
    def from_pretrained(
        cls, path: str, max_batch_tokens: int = 16384, max_length: int | None = None, **model_kwargs
    ) -> "RewardScorer":
        """
        Load model and processor from a checkpoint of this project, or from one with its head in
        `value_head.safetensors`, such as Skywork-VL-Reward-7B. The model computes what responses have in common once,
        see [`share_prefixes`].

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
        return cls(share_prefixes(model), AutoProcessor.from_pretrained(path), max_batch_tokens, max_length, bias)

    def fingerprint(self) -> str:
        """A hash of the model and of all that decides its scores."""
        settings = {"bias": self.bias, "max_batch_tokens": self.max_batch_tokens}
        return model_fingerprint(self.model, self.processor, **settings)

    def score_candidates(self, rows: list[dict]) -> list[list[float | None]]:
        """
        Scores of several responses to each prompt. Equal ones are scored once, and an empty one has no score: `None`.

        Args:
            rows (`list[dict]`):
                `prompt`, `images` and `responses` (a list of strings) each.
        """
        unique = [(i, text) for i, row in enumerate(rows) for text in dict.fromkeys(row["responses"]) if text.strip()]
        prompts, images = ([rows[i][key] for i, _ in unique] for key in ("prompt", "images"))
        scores = dict(zip(unique, self(prompts, [text for _, text in unique], images), strict=True))
        return [[scores.get((i, text)) for text in row["responses"]] for i, row in enumerate(rows)]

    @torch.inference_mode()
    def __call__(self, prompts: list, completions: list, images: list | None = None, **kwargs) -> list[float]:
        """
        Args:
            prompts (`list`):
                One conversation (list of messages) or one user turn (string) per completion.
            completions (`list`):
                Strings, or lists of one assistant message.
            images (`list`, *optional*):
                One list of images (PIL or path) per completion, empty for text. Without `images`, they are those that
                the prompts' placeholders hold.

        Returns:
            `list[float]`: one score per completion, in the order given. Higher is better; only differences between
            responses to one prompt mean something.
        """
        taken = [extract_images(prompt) for prompt in prompts]
        images = images if images is not None else [held for _, held in taken]
        rows = list(zip([prompt for prompt, _ in taken], completions, images, strict=True))
        scores = [0.0] * len(rows)
        progress = tqdm(total=len(rows), desc="Scoring", disable=len(rows) < 100)
        for indices in self._batches(rows):
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
            progress.update(len(indices))
        return scores

    def _batches(self, rows: list[tuple]) -> Iterator[list[int]]:
        """Cut rows of prompt, completion and images into batches by their tokens, a prompt's completions together."""
        completion_tokens = self._text_tokens([as_messages([], completion) for _, completion, _ in rows])
        groups = defaultdict(list)
        for i, (prompt, _, images) in enumerate(rows):
            groups[(text_of(as_messages(prompt, [])), *map(image_key, images))].append(i)
        prompt_tokens = self._text_tokens([as_messages(rows[indices[0]][0], []) for indices in groups.values()])
        group_tokens = [
            tokens + count_visual_tokens(self.processor, f"completion {indices[0]}", rows[indices[0]][2])
            for tokens, indices in zip(prompt_tokens, groups.values(), strict=True)
        ]
        batch, batch_tokens = [], 0
        for tokens, indices in sorted(zip(group_tokens, groups.values(), strict=True)):
            shared = tokens
            for i in sorted(indices, key=completion_tokens.__getitem__):
                if batch and batch_tokens + shared + completion_tokens[i] > self.max_batch_tokens:
                    yield batch
                    batch, batch_tokens, shared = [], 0, tokens
                batch.append(i)
                batch_tokens += shared + completion_tokens[i]
                shared = 0
        if batch:
            yield batch

    def _text_tokens(self, conversations: list[list[dict]]) -> list[int]:
        texts = [text_of(messages) for messages in conversations]
        return [len(ids) for ids in self.processor.tokenizer(texts)["input_ids"]] if texts else []
