"""What both trainers of this project refuse to do silently."""

import torch
from transformers import Trainer


class TrainerGuards(Trainer):
    """Stops a run that would otherwise go on from wrong weights or with a broken loss."""

    def _issue_warnings_after_load(self, load_result):
        # Trainer logs a warning and goes on from the weights the run started with (huggingface/transformers#43701).
        if load_result.missing_keys or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not hold this model's weights: {len(load_result.missing_keys)} are missing "
                f"{load_result.missing_keys[:4]} and {len(load_result.unexpected_keys)} are left over "
                f"{load_result.unexpected_keys[:4]}. Resume from a checkpoint that this trainer saved."
            )

    def training_step(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step}. Nothing was saved after the last "
                f"checkpoint in {self.args.output_dir}. Lower the learning rate, or look at the rows of this step."
            )
        return loss
