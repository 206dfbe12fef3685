"""TRL's `GRPOTrainer` on several processes, some of whose prompts have no image."""

import functools

from peft import PeftModel
from trl import GRPOConfig, GRPOTrainer

from .guards import TrainerGuards
from .trl_corrections import gathered


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
    """

    def __init__(self, model, args: GRPOConfig, **kwargs):
        args.log_multimodal = False
        super().__init__(model=model, args=args, **kwargs)
        if not isinstance(self.model, PeftModel):
            # Trainer cannot resume from the hub's layout, see `Qwen2_5_VLForSequenceClassification.save_pretrained`.
            self.model.save_pretrained = functools.partial(self.model.save_pretrained, save_original_format=False)

    def _generate_single_turn(self, *args, **kwargs):
        with gathered(self.model):
            return super()._generate_single_turn(*args, **kwargs)
