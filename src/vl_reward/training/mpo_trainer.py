"""Mixed Preference Optimization (arXiv 2411.10442, section 4.1) on TRL's `DPOTrainer`."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from transformers import ProcessorMixin
from trl import DPOConfig, DPOTrainer
from trl.models.utils import unwrap_model_for_generation

from ..data.collators import DataCollatorForMPO
from ..data.splits import with_images
from ..inference.fingerprints import model_fingerprint
from ..prefix_sharing.token_log_probs import add_token_log_probs
from .guards import TrainerGuards, check_finite, check_reference_is_policy
from .reference_log_probs import ReferenceLogProbs
from .reward_shift import RewardShift
from .trl_corrections import gathered


OVER_VOCABULARY = ("entropy", "logits/chosen", "logits/rejected", "mean_token_accuracy")  # metrics not computed here


def without_ids(batch: dict) -> dict:
    """A batch as models take it: TRL hands over every key that it does not know."""
    return {key: value for key, value in batch.items() if key != "id"}


def check_settings(args: DPOConfig, ref_model, with_adapter: bool, columns: list[str]):
    """
    Check what [`MPOTrainer`] is given.

    Args:
        args ([`~trl.DPOConfig`]):
            The trainer's.
        ref_model ([`~transformers.PreTrainedModel`], *optional*):
            The reference.
        with_adapter (`bool`):
            Whether the policy is trained with PEFT: its base is the reference then.
        columns (`list[str]`):
            Of the train dataset.

    Raises:
        ValueError: If the reference would be another model than the policy at its start, a column of the train dataset
            is missing or in the way, the losses have no weights, or there is no reference to be let go.
    """
    if ref_model is None and not with_adapter:
        raise ValueError(
            "`ref_model` is None. DPOTrainer would load the reference by the name in the policy's config, which "
            "after a merge, an edit or a resume is another model. Load it from the policy's checkpoint and pass it."
        )
    missing = {"prompt", "chosen", "rejected", "images"} - set(columns)
    if missing:
        raise ValueError(f"The train dataset has the columns {columns} and lacks {sorted(missing)}.")
    if given := {"ref_chosen_logps", "ref_rejected_logps"} & set(columns):
        raise ValueError(
            f"The train dataset has the columns {sorted(given)}, which would stand in for `ref_model`, and whose "
            "model they are from is not known. Remove them, and set `precompute_ref_log_probs`."
        )
    if "sft" in args.loss_type and args.loss_weights is None:
        raise ValueError("`loss_weights` is not set, so every loss would weigh 1. MPO's are [0.8, 0.2, 1.0].")
    if args.precompute_ref_log_probs and ref_model is None:
        raise ValueError(
            "`precompute_ref_log_probs` needs a `ref_model`. With PEFT there is none to be let go: leave it out."
        )


class MPOTrainer(TrainerGuards, DPOTrainer):
    """
    [`~trl.DPOTrainer`] with the two terms of MPO that TRL has otherwise:

    - `bco_pair` has the paper's reward shift δ (equations 5 and 6), which TRL dropped in 0.29. δ/β is added to both
      reference log-probs before TRL computes its losses: the DPO term, a difference, is unchanged, and TRL's BCO term
      becomes the paper's. InternVL's code updates δ before use and per micro-batch; here it is the mean over the steps
      before, and moves once per optimizer step.
    - `sft` is normalised per sequence (equation 8). TRL divides by the tokens of the whole micro-batch, so long answers
      weigh more.

    Metrics are those of DPOTrainer, and `reward_shift`. The rewards are logged without the shift. What would take more
    passes over the vocabulary's logits than the loss is left out: entropy, mean logits and token accuracy.

    With `precompute_ref_log_probs` the reference's log-probabilities are computed before training, kept in
    `ref_log_probs` under the output directory, and the reference is let go ([`ReferenceLogProbs`]).

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
            Rows with `prompt`, `chosen`, `rejected`, `images`, and optionally `videos` and `id`.
        evaluate_policy (`Callable`, *optional*):
            What `evaluate` asks instead of the loss on pairs, which falls while answers get worse: from the policy to
            metrics, such as [`GreedyAccuracy`]. Name one as `metric_for_best_model` to keep the best checkpoint.
        use_reward_shift (`bool`, *optional*, defaults to `True`):
            Without it δ is 0, as in TRL, to see what it is good for.
        **kwargs:
            Passed on to [`~trl.DPOTrainer`].

    Raises:
        ValueError: What [`check_settings`] refuses; and before the first step, if policy and reference differ.
        FloatingPointError: If a log-probability or the loss is not a finite number, with the pair's name, or if the
            reward shift leaves its limits.
    """

    def __init__(
        self,
        model,
        ref_model,
        args: DPOConfig,
        *,
        processing_class: ProcessorMixin,
        train_dataset,
        evaluate_policy: Callable | None = None,
        use_reward_shift: bool = True,
        **kwargs,
    ):
        with_adapter = isinstance(model, PeftModel) or kwargs.get("peft_config") is not None
        check_settings(args, ref_model, with_adapter, train_dataset.column_names)
        # TRL refuses to precompute for images; here it is done below.
        precompute, args.precompute_ref_log_probs = args.precompute_ref_log_probs, False
        batch_size = args.precompute_ref_batch_size or args.per_device_train_batch_size
        fingerprint = model_fingerprint(ref_model, processing_class, batch_size=batch_size) if precompute else None
        self.evaluate_policy, self.use_reward_shift = evaluate_policy, use_reward_shift
        kwargs.setdefault("data_collator", DataCollatorForMPO(processing_class, max_pair_length=args.max_length))
        super().__init__(
            model=model,
            ref_model=ref_model,
            args=args,
            train_dataset=with_images(train_dataset, decode=False),
            processing_class=processing_class,
            **kwargs,
        )
        add_token_log_probs(self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model)
        if self.ref_model is not None:
            add_token_log_probs(self.accelerator.unwrap_model(self.ref_model))
        if not isinstance(self.model, PeftModel):
            # Trainer cannot resume from the hub's layout, see `VisionRewardModel.save_pretrained`.
            self.model.save_pretrained = functools.partial(self.model.save_pretrained, save_original_format=False)
        weights = dict(zip(self.loss_types, self.loss_weights, strict=True))
        self.sft_weight = weights.pop("sft", 0.0)
        self.loss_types, self.loss_weights = list(weights), list(weights.values())
        self.precompute_ref_logps = True  # makes `_compute_loss` take the reference log-probs from its inputs
        self.first_log_probs: list[tuple[str, str, float, float]] = []
        self.reward_shift = RewardShift()
        self.add_callback(self.reward_shift)
        args.precompute_ref_log_probs = precompute
        if precompute:
            self._precompute_ref_log_probs(fingerprint, batch_size)

    def _precompute_ref_log_probs(self, fingerprint: str, batch_size: int):
        add_log_probs = functools.partial(
            ReferenceLogProbs(Path(self.args.output_dir, "ref_log_probs"), fingerprint, self.accelerator),
            collator=self.data_collator,
            compute=lambda batch: self.compute_ref_log_probs(self.ref_model, without_ids(batch)),
            batch_size=batch_size,
        )
        self.train_dataset = add_log_probs(self.train_dataset)
        if self.eval_dataset is not None and self.evaluate_policy is None:
            self.eval_dataset = add_log_probs(with_images(self.eval_dataset, decode=False))
        if self.ref_model in self.accelerator._models:  # else it would stay until Python looks for cycles in training
            self.accelerator._models.remove(self.ref_model)
        self.ref_model = None

    def _set_signature_columns_if_needed(self):
        super()._set_signature_columns_if_needed()
        self._signature_columns += ["id", "videos", "video", "ref_chosen_logps", "ref_rejected_logps"]
        self._signature_columns.append(self.args.length_column_name)  # for `train_sampling_strategy`

    def _compute_loss(self, model, inputs, return_outputs):
        mode = "train" if self.model.training else "eval"
        shift = self.reward_shift.value if self.use_reward_shift and "bco_pair" in self.loss_types else 0.0
        pairs, inputs = inputs["id"], without_ids(inputs)
        if "ref_chosen_logps" in inputs:
            ref_logps = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        elif self.ref_model is None and not isinstance(self.model, PeftModel):
            raise ValueError(
                f"{pairs[0]} has no reference log-probabilities, and the reference is gone since they were computed "
                "for the train and the eval dataset. Give these pairs as `eval_dataset` to the trainer."
            )
        else:
            ref_logps = None if self.ref_model is None else self.compute_ref_log_probs(self.ref_model, inputs)
        log_probs = None

        def keep_log_probs(**kwargs):
            nonlocal log_probs, ref_logps
            outputs = model(**kwargs)
            log_probs = outputs.log_probs
            if ref_logps is None:
                # Without the adapter nothing is trained, and what its first pass trains FSDP2 takes for all that is.
                ref_logps = self.compute_ref_log_probs(self.model, inputs)
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = (of + shift / self.beta for of in ref_logps)
            # TRL adds these up for its log, from which they are taken out below.
            outputs.entropy = outputs.mean_logits = outputs.is_top1 = torch.zeros_like(log_probs, dtype=torch.bool)
            return outputs

        loss = super()._compute_loss(keep_log_probs, inputs, return_outputs=False)
        if mode == "train":
            sides = ["chosen"] * len(pairs) + ["rejected"] * len(pairs)
            logps = log_probs.detach().sum(1).tolist(), torch.cat(ref_logps).tolist()
            self.log_probs = list(zip(pairs * 2, sides, *logps, strict=True))
            check_finite(self.log_probs, self.state.global_step, self.args.output_dir)
            self.reward_shift.note({pair: self.beta * (logp - ref) for pair, _, logp, ref in self.log_probs})

        lengths = inputs["completion_mask"][:, 1:].sum(1).chunk(2)[0]
        sft_loss = (-log_probs.sum(1).chunk(2)[0] / lengths).mean()
        metrics = self._metrics[mode]
        for key in OVER_VOCABULARY:
            del metrics[key]
        for key in ("rewards/chosen", "rewards/rejected"):
            metrics[key][-1] += shift
            if mode == "train":
                self.reward_shift.pending.append(metrics[key][-1])
        metrics["reward_shift"].append(shift)
        metrics["sft_loss"].append(self.accelerator.gather(sft_loss.detach()).mean().item())
        return loss + self.sft_weight * sft_loss

    def training_step(self, model, inputs, *args, **kwargs):
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.state.global_step == 0 and self.args.disable_dropout:
            self.first_log_probs += self.log_probs
            if self.accelerator.sync_gradients:  # the step's last micro-batch
                check_reference_is_policy(self.first_log_probs)
                self.first_log_probs.clear()
        return loss

    def evaluate(self, *args, metric_key_prefix: str = "eval", **kwargs):
        if self.evaluate_policy is None:
            return super().evaluate(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        model = self.model_wrapped
        with gathered(model), unwrap_model_for_generation(model, self.accelerator) as policy:
            measures = self.evaluate_policy(policy)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in measures.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

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
