"""How many verifiable prompts a policy answers correctly, measured while it is trained."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from datasets import Dataset
from transformers import PreTrainedModel, ProcessorMixin

from ..arguments.sampling_parameters import SamplingParameters
from ..data.encoding import named_row
from ..data.splits import with_images
from ..inference.transformers_sampler import ResponseSampler


class GreedyAccuracy:
    """
    Greedy accuracy on prompts with answers, for [`MPOTrainer`]'s `evaluate_policy`.

    Args:
        processor ([`~transformers.ProcessorMixin`]):
            The policy's processor.
        prompts (`Dataset`):
            Rows with `prompt`, `images`, `answer` and optionally `videos`, none of which are trained on.
        is_correct (`Callable`):
            From a response and the answer to whether it is correct; `None` counts as if it were not.
        parameters ([`SamplingParameters`]):
            How responses are generated, but for the temperature, which is 0.

    Raises:
        ValueError: If `is_correct` cannot read a prompt's answer, or there is none.
    """

    def __init__(
        self,
        processor: ProcessorMixin,
        prompts: Dataset,
        is_correct: Callable[[str, Any], bool | None],
        parameters: SamplingParameters,
    ):
        self.processor, self.is_correct = processor, is_correct
        self.parameters = replace(parameters, temperature=0.0)
        for number, answer in enumerate(prompts["answer"]):  # now, not at the first evaluation
            with named_row(f"prompt {number}"):
                if is_correct("", answer) is None:
                    raise ValueError(f"its answer is {answer!r}: there is nothing to compare with. Leave it out.")
        self.prompts = with_images(prompts, decode=False)  # the sampler decodes batch by batch

    def __call__(self, policy: PreTrainedModel) -> dict[str, float]:
        """
        Args:
            policy ([`~transformers.PreTrainedModel`]):
                The policy, whole on each process.

        Returns:
            `dict[str, float]`: `greedy_accuracy`, and `response_characters`, their mean number, over the prompts of all
            processes.
        """
        state = PartialState()
        own = list(range(state.process_index, len(self.prompts), state.num_processes))
        # Under ZeRO-3 the processes generate in step: none may have a batch less than another.
        padding = [0] * (-(-len(self.prompts) // state.num_processes) - len(own))
        rows = self.prompts.select(own + padding)
        sampler = ResponseSampler(policy, self.processor, self.parameters)
        videos = rows["videos"][:] if "videos" in rows.column_names else None
        responses, _ = sampler(rows["prompt"][:], rows["images"][:], videos=videos)
        greedy, answers = [row[0] for row in responses[: len(own)]], rows["answer"][: len(own)]
        correct = sum(map(bool, map(self.is_correct, greedy, answers)))
        characters = sum(map(len, greedy))
        sums = reduce(torch.tensor([correct, characters], dtype=torch.float32, device=policy.device), "sum")
        accuracy, length = (sums / len(self.prompts)).tolist()
        return {"greedy_accuracy": accuracy, "response_characters": length}
