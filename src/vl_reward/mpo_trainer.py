"""Mixed Preference Optimization (arXiv 2411.10442, section 4.1) on TRL's `DPOTrainer`."""

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Image, List
from peft import PeftModel
from transformers import ProcessorMixin, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForVisionPreference

from .encoding import as_messages, load_images, refuse_control_tokens, text_of
from .trainer_guards import TrainerGuards


@dataclass
class DataCollatorForMPO(DataCollatorForVisionPreference):
    """
    TRL's vision-preference collator, which refuses what TRL's would cut or let through.

    Args:
        max_pair_length (`int`, *optional*):
            Refuse a pair with a response longer than this many tokens, prompt and image tokens included. TRL's
            `max_length` cuts: a response can lose all of its tokens, and the loss is then reported as 0.

    Raises:
        ValueError: For an empty response, control tokens in a message, an image that cannot be decoded, or a pair that
            is too long. The row is named.
    """

    max_pair_length: int | None = None

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        names = [f"row {row.get('id', '?')}" for row in examples]
        rows = [
            {
                "prompt": as_messages(row["prompt"], []),
                "chosen": as_messages([], row["chosen"]),
                "rejected": as_messages([], row["rejected"]),
                "images": load_images(name, row["images"]),
            }
            for name, row in zip(names, examples, strict=True)
        ]
        for name, row in zip(names, rows, strict=True):
            refuse_control_tokens(self.processor, name, row["prompt"] + row["chosen"] + row["rejected"])
            for side in ("chosen", "rejected"):
                if not text_of(row[side]).strip():
                    raise ValueError(
                        f"{name}: the {side} response is empty, so there is nothing to learn from. Leave the pair out."
                    )

        batch = super().torch_call(rows)
        for name, length in zip(names * 2, batch["attention_mask"].sum(1).tolist(), strict=True):
            if self.max_pair_length is not None and length > self.max_pair_length:
                raise ValueError(
                    f"{name}: a response has {length} tokens, image tokens included, and `max_length` is "
                    f"{self.max_pair_length}. It is not cut. Raise `max_length`, lower the processor's "
                    "`max_pixels`, or leave the pair out."
                )
        return batch


class RewardShift(TrainerCallback):
    """
    The reward shift δ of BCO: the mean of all implicit rewards so far, chosen and rejected alike, over all ranks. It
    moves once per optimizer step, so it does not depend on how a batch is divided into micro-batches.
    """

    def __init__(self):
        self.total, self.count = 0.0, 0
        self.pending: list[float] = []

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else 0.0

    def on_step_end(self, args, state, control, **kwargs):
        self.total += sum(self.pending)
        self.count += len(self.pending)
        self.pending.clear()


class MPOTrainer(TrainerGuards, DPOTrainer):
    """
    [`~trl.DPOTrainer`] with the two terms of MPO that TRL has otherwise:

    - `bco_pair` has the paper's reward shift δ (equations 5 and 6), which TRL dropped in 0.29. δ/β is added to both
      reference log-probs before TRL computes its losses: the DPO term, a difference, is unchanged, and TRL's BCO term
      becomes the paper's. InternVL's code updates δ before use and per micro-batch; here it is the mean over the steps
      before, and moves once per optimizer step.
    - `sft` is normalised per sequence (equation 8). TRL divides by the tokens of the whole micro-batch, so long answers
      weigh more.

    Metrics are those of DPOTrainer, and `reward_shift`. The rewards are logged without the shift.

    Args:
        model ([`~transformers.PreTrainedModel`]):
            The policy.
        ref_model ([`~transformers.PreTrainedModel`] or `None`):
            The reference, loaded from the same checkpoint. `None` is refused unless the policy is trained with PEFT:
            TRL would load it by the policy's recorded name, which need not be the policy given.
        args ([`~trl.DPOConfig`]):
            With `loss_type=["sigmoid", "bco_pair", "sft"]` and `loss_weights=[0.8, 0.2, 1.0]` for the paper's loss.
            Pairs longer than `max_length` are refused, not cut.
        processing_class ([`~transformers.ProcessorMixin`]):
            The policy's processor.
        train_dataset (`Dataset`):
            Rows with `prompt`, `chosen`, `rejected`, `images`, and optionally `id`.
        **kwargs:
            Passed on to [`~trl.DPOTrainer`].
    """

    def __init__(self, model, ref_model, args: DPOConfig, *, processing_class: ProcessorMixin, train_dataset, **kwargs):
        if ref_model is None and not isinstance(model, PeftModel) and kwargs.get("peft_config") is None:
            raise ValueError(
                "`ref_model` is None. DPOTrainer would load the reference by the name in the policy's config, which "
                "after a merge, an edit or a resume is another model. Load it from the policy's checkpoint and pass it."
            )
        missing = {"prompt", "chosen", "rejected", "images"} - set(train_dataset.column_names)
        if missing:
            raise ValueError(
                f"The train dataset has the columns {train_dataset.column_names} and lacks {sorted(missing)}."
            )
        if "sft" in args.loss_type and args.loss_weights is None:
            raise ValueError("`loss_weights` is not set, so every loss would weigh 1. MPO's are [0.8, 0.2, 1.0].")
        kwargs.setdefault("data_collator", DataCollatorForMPO(processing_class, max_pair_length=args.max_length))
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=train_dataset.cast_column("images", List(Image(decode=False))),
            processing_class=processing_class,
            **kwargs,
        )
        if not isinstance(self.model, PeftModel):
            # Trainer cannot resume from the hub's layout, see `Qwen2_5_VLForSequenceClassification.save_pretrained`.
            self.model.save_pretrained = functools.partial(self.model.save_pretrained, save_original_format=False)
        weights = dict(zip(self.loss_types, self.loss_weights, strict=True))
        self.sft_weight = weights.pop("sft", 0.0)
        self.loss_types, self.loss_weights = list(weights), list(weights.values())
        self.precompute_ref_logps = True  # makes `_compute_loss` take the reference log-probs from its inputs
        self.reward_shift = RewardShift()
        self.add_callback(self.reward_shift)

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += ["id"]

    def _compute_loss(self, model, inputs, return_outputs):
        mode = "train" if self.model.training else "eval"
        shift = self.reward_shift.value if "bco_pair" in self.loss_types else 0.0
        ref_chosen_logps, ref_rejected_logps = self.compute_ref_log_probs(self.ref_model or self.model, inputs)
        inputs = {
            **inputs,
            "ref_chosen_logps": ref_chosen_logps + shift / self.beta,
            "ref_rejected_logps": ref_rejected_logps + shift / self.beta,
        }
        log_probs = None

        def keep_log_probs(**kwargs):
            nonlocal log_probs
            outputs = model(**kwargs)
            log_probs = outputs.log_probs
            return outputs

        loss = super()._compute_loss(keep_log_probs, inputs, return_outputs=False)

        lengths = inputs["completion_mask"][:, 1:].sum(1).chunk(2)[0]
        sft_loss = (-log_probs.sum(1).chunk(2)[0] / lengths).mean()
        metrics = self._metrics[mode]
        for key in ("rewards/chosen", "rewards/rejected"):
            metrics[key][-1] += shift
            if mode == "train":
                self.reward_shift.pending.append(metrics[key][-1])
        metrics["reward_shift"].append(shift)
        metrics["sft_loss"].append(self.accelerator.gather(sft_loss.detach()).mean().item())
        return loss + self.sft_weight * sft_loss

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        assert not return_outputs, "scores for `compute_metrics` would need the vocabulary's logits"
        return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)

    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            state = {"total": self.reward_shift.total, "count": self.reward_shift.count}
            Path(output_dir, "reward_shift.json").write_text(json.dumps(state))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None:
            state = json.loads(Path(checkpoint, "reward_shift.json").read_text())
            self.reward_shift.total, self.reward_shift.count = state["total"], state["count"]
