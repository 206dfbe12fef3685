"""What both trainers of this project refuse to do silently."""

import math

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


def check_finite(log_probs: list[tuple[str, str, float, float]], step: int, output_dir: str):
    """
    Args:
        log_probs (`list[tuple[str, str, float, float]]`):
            Of each response: its pair, `"chosen"` or `"rejected"`, and its log-probability under the policy and under
            the reference.
        step (`int`), output_dir (`str`):
            For the message.

    Raises:
        FloatingPointError: With the name of the pair whose log-probability is not a finite number.
    """
    for pair, side, logp, ref_logp in log_probs:
        if not math.isfinite(logp - ref_logp):
            raise FloatingPointError(
                f"{pair}: the {side} response's log-probability is {logp} under the policy and {ref_logp} under the "
                f"reference, at step {step}. Nothing was saved after the last checkpoint in {output_dir}. Lower the "
                "learning rate, or look at the pair."
            )


def check_reference_is_policy(log_probs: list[tuple[str, str, float, float]]):
    """
    Args:
        log_probs (`list[tuple[str, str, float, float]]`):
            As [`check_finite`] takes them, before the first step.

    Raises:
        ValueError: If policy and reference differ by more than bfloat16 rounds away.
    """
    for pair, side, logp, ref_logp in log_probs:
        if abs(logp - ref_logp) > 0.05 + 0.01 * abs(ref_logp):
            raise ValueError(
                f"{pair}: before the first step the {side} response's log-probability is {logp:.2f} under the policy "
                f"and {ref_logp:.2f} under the reference, so they are two models, and no margin is zero. Load the "
                "reference from the policy's checkpoint."
            )
