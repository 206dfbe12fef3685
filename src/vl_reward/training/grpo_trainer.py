"""TRL's `GRPOTrainer` on several processes, some of whose prompts have no image."""

import functools
import logging

from datasets import Dataset
from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer

from ..data.splits import with_images
from .guards import TrainerGuards
from .trl_corrections import gathered


logger = logging.getLogger(__name__)


class VisionGRPOTrainer(TrainerGuards, GRPOTrainer):
    """
    [`~trl.GRPOTrainer`] whose checkpoints are read back and count only once they are whole.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy, with [`share_prefixes`]: it runs the vision tower for text alone, too, for which processes with
            images would wait.
        args ([`~trl.GRPOConfig`]):
            `log_multimodal` is set to `False`: TRL gathers images on the processes that have some, and they would wait
            for the others.
        **kwargs:
            Passed on to [`~trl.GRPOTrainer`].

    Raises:
        ValueError: If there are fewer prompts than TRL samples on at a time.
    """

    def __init__(self, model, args: GRPOConfig, **kwargs):
        args.log_multimodal = False
        if isinstance(kwargs.get("train_dataset"), Dataset) and "images" in kwargs["train_dataset"].column_names:
            kwargs["train_dataset"] = with_images(kwargs["train_dataset"], decode=True)
        super().__init__(model=model, args=args, **kwargs)
        if isinstance(self.train_dataset, Dataset):
            check_batches(len(self.train_dataset), args)
        if not isinstance(self.model, PeftModel):
            # Trainer cannot resume from the hub's layout, see `VisionRewardModel.save_pretrained`.
            self.model.save_pretrained = functools.partial(self.model.save_pretrained, save_original_format=False)

    def _generate_single_turn(self, *args, **kwargs):
        with gathered(self.model):
            return super()._generate_single_turn(*args, **kwargs)


def check_batches(n_prompts: int, args: GRPOConfig) -> None:
    """
    Warn of the prompts of an epoch that TRL leaves out, other ones in each.

    Raises:
        ValueError: If it leaves out all of them, and would train no step.
    """
    at_a_time = args.generation_batch_size // args.num_generations
    sampled = f"{at_a_time} prompts are sampled at a time: `generation_batch_size` is {args.generation_batch_size:,}, "
    sampled += f"and `num_generations` is {args.num_generations}"
    if n_prompts < at_a_time:
        raise ValueError(
            f"{n_prompts} prompts were given, and {sampled}. No step would be trained. Give more prompts, or lower "
            "`per_device_train_batch_size`, `gradient_accumulation_steps` or `steps_per_generation`."
        )
    if left_out := n_prompts % at_a_time:
        logger.warning(f"Each epoch leaves out {left_out} of {n_prompts:,} prompts, other ones each time: {sampled}.")
