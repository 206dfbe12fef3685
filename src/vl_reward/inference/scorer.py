"""A trained reward model as a function from prompts, responses, images and videos to scores."""

from collections import defaultdict
from collections.abc import Iterator

import torch
from tqdm import tqdm
from transformers import AutoModelForSequenceClassification, AutoProcessor, BatchFeature, ProcessorMixin

from ..data.encoding import count_visual_tokens, encode_conversations, named_row
from ..data.images import image_key
from ..data.messages import join_turns, text_of
from ..data.videos.frame_limits import FrameLimits
from ..data.videos.video_source import video_key
from ..models.checkpoint_formats import load_value_head
from ..models.vision_reward_model import VisionRewardModel
from ..models.whole_weights import whole_weights
from ..prefix_sharing.share_prefixes import share_prefixes as share
from ..prefix_sharing.share_prefixes import shares_prefixes
from .ahead import computed_ahead
from .fingerprints import model_fingerprint
from .response_scorer import ResponseScorer


class RewardScorer(ResponseScorer):
    """
    Scores responses with a reward model. The call has the signature of TRL's `reward_funcs`.

    Args:
        model ([`VisionRewardModel`]):
            The reward model.
        processor ([`~transformers.ProcessorMixin`]):
            The processor it was trained with.
        max_batch_tokens (`int`, *optional*, defaults to `16384`):
            Tokens of text, images and videos in a forward pass. Those of a prompt count once for all of its responses
            there, where prefixes are shared, and else with each. A single response may be longer. Work is sorted by
            length first; the scores come back in the caller's order.
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
        model: VisionRewardModel,
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

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        max_batch_tokens: int = 16384,
        max_length: int | None = None,
        max_pixels: int | None = None,
        revision: str = "main",
        share_prefixes: bool = True,
        video_limits: dict | None = None,
        **model_kwargs,
    ) -> "RewardScorer":
        """
        Load a model and its processor.

        Args:
            path (`str`):
                A folder, or a name on the hub: a checkpoint of this project, or one with its head in
                `value_head.safetensors`, such as Skywork-VL-Reward-7B.
            max_batch_tokens (`int`, *optional*, defaults to `16384`), max_length (`int`, *optional*):
                As [`RewardScorer`] takes them.
            max_pixels (`int`, *optional*):
                Larger images are scaled down to this many pixels. By default the processor's budget holds, which is
                that of training.
            revision (`str`, *optional*, defaults to `"main"`):
                Of the checkpoint on the hub.
            share_prefixes (`bool`, *optional*, defaults to `True`):
                Whether what responses have in common is computed once.
            video_limits (`dict`, *optional*):
                Other values of [`FrameLimits`], by their names. By default the processor's hold.
            **model_kwargs:
                Passed on to `from_pretrained` of the model, such as `dtype`.

        Returns:
            [`RewardScorer`]: with the model on the CPU, unless `model_kwargs` say otherwise.

        Raises:
            ValueError: If the checkpoint holds no trained reward head.
        """
        with whole_weights():  # beside a policy that ZeRO-3 shards, too
            model, info = AutoModelForSequenceClassification.from_pretrained(
                path, output_loading_info=True, revision=revision, **model_kwargs
            )
        bias = 0.0
        if "score.weight" in info["missing_keys"]:
            value_head = load_value_head(path, revision)
            if value_head is None:
                raise ValueError(f"{path} holds no trained reward head: its scores would be random. Train one first.")
            weight, bias = value_head
            model.score.weight.data.copy_(weight)
        if share_prefixes:
            share(model)
        budget = {} if max_pixels is None else {"max_pixels": max_pixels}
        processor = AutoProcessor.from_pretrained(path, revision=revision, **budget)
        FrameLimits.keep(processor, **video_limits or {})
        return cls(model, processor, max_batch_tokens, max_length, bias)

    def fingerprint(self, **settings) -> str:
        """A hash of the model, of all else that decides its scores, and of `settings`."""
        settings |= {"bias": self.bias, "max_batch_tokens": self.max_batch_tokens}
        return model_fingerprint(self.model, self.processor, **settings)

    @torch.inference_mode()
    def score_rows(self, rows: list[tuple[list[dict], list[dict], list, list]], names: list[str]) -> list[float]:
        scores = [0.0] * len(rows)
        progress = tqdm(total=len(rows), desc="Scoring", disable=len(rows) < 100)
        for indices, batch in computed_ahead(
            lambda of: (of, self._encode(rows, names, of)), self._batches(rows, names)
        ):
            logits = self.model(**batch.to(self.model.device), use_cache=False).logits
            for i, score in zip(indices, logits.squeeze(-1).tolist(), strict=True):
                scores[i] = score + self.bias
            progress.update(len(indices))
        return scores

    def _encode(self, rows: list[tuple], names: list[str], indices: list[int]) -> BatchFeature:
        return encode_conversations(
            self.processor,
            [join_turns(*rows[i][:2]) for i in indices],
            [rows[i][2] for i in indices],
            [names[i] for i in indices],
            self.max_length,
            [rows[i][3] for i in indices],
        )

    def _batches(self, rows: list[tuple], names: list[str]) -> Iterator[list[int]]:
        """Cut rows of prompt, answer, images and videos into batches by their tokens, a prompt's answers together."""
        completion_tokens = self._text_tokens([answer for _, answer, *_ in rows])
        groups = defaultdict(list)
        for i, (prompt, _, images, videos) in enumerate(rows):
            with named_row(names[i]):
                keys = tuple(map(image_key, images)), tuple(map(video_key, videos))
            groups[(text_of(prompt), *keys)].append(i)
        prompt_tokens = self._text_tokens([rows[indices[0]][0] for indices in groups.values()])
        group_tokens = [
            tokens + count_visual_tokens(self.processor, names[indices[0]], *rows[indices[0]][2:])
            for tokens, indices in zip(prompt_tokens, groups.values(), strict=True)
        ]
        batch, batch_tokens, once = [], 0, shares_prefixes(self.model)
        for tokens, indices in sorted(zip(group_tokens, groups.values(), strict=True)):
            shared = tokens
            for i in sorted(indices, key=completion_tokens.__getitem__):
                if batch and batch_tokens + shared + completion_tokens[i] > self.max_batch_tokens:
                    yield batch
                    batch, batch_tokens, shared = [], 0, tokens
                batch.append(i)
                batch_tokens += shared + completion_tokens[i]
                shared = 0 if once else tokens
        if batch:
            yield batch

    def _text_tokens(self, conversations: list[list[dict]]) -> list[int]:
        texts = [text_of(messages) for messages in conversations]
        return [len(ids) for ids in self.processor.tokenizer(texts)["input_ids"]] if texts else []
