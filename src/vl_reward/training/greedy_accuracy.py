"""How many verifiable prompts a policy answers right, measured while it is trained."""

from collections.abc import Callable

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import Dataset, Image, List
from transformers import PreTrainedModel, ProcessorMixin

from ..inference.transformers_sampler import ResponseSampler


class GreedyAccuracy:
    """
    Greedy accuracy on prompts with answers, for [`MPOTrainer`]'s `evaluate_policy`.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The policy's processor.
        prompts (`Dataset`):
            Rows with `prompt`, `images` and `answer`, none of which are trained on.
        is_right (`Callable`):
            From a response and the answer to whether it is right.
        max_new_tokens (`int`):
            Longest response.
        batch_size (`int`, *optional*, defaults to `64`):
            Responses generated at a time, per process.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        prompts: Dataset,
        is_right: Callable[[str, str], bool],
        max_new_tokens: int,
        batch_size: int = 64,
    ):
        self.processor, self.is_right = processor, is_right
        self.prompts = prompts.cast_column("images", List(Image(decode=False)))  # the sampler decodes batch by batch
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def __call__(self, policy: PreTrainedModel) -> dict[str, float]:
        """
        Returns:
            `dict[str, float]`: `greedy_accuracy`, and `response_characters`, their mean number, over the prompts of all
            processes.
        """
        state, generation_config = PartialState(), policy.generation_config
        own = list(range(state.process_index, len(self.prompts), state.num_processes))
        # Under ZeRO-3 the processes generate in step: none may have a batch less than another.
        padding = [0] * (-(-len(self.prompts) // state.num_processes) - len(own))
        rows = self.prompts.select(own + padding)
        sampler = ResponseSampler(policy, self.processor, self.max_new_tokens, 0.0, batch_size=self.batch_size)
        responses, _ = sampler(rows["prompt"][:], rows["images"][:])
        policy.generation_config = generation_config
        greedy, answers = [row[0] for row in responses[: len(own)]], rows["answer"][: len(own)]
        right = sum(map(self.is_right, greedy, answers))
        characters = sum(map(len, greedy))
        sums = reduce(torch.tensor([right, characters], dtype=torch.float32, device=policy.device), "sum")
        accuracy, length = (sums / len(self.prompts)).tolist()
        return {"greedy_accuracy": accuracy, "response_characters": length}
