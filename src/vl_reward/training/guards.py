"""What both trainers of this project refuse to do silently."""

import json
import logging
import math
from pathlib import Path
from statistics import fmean

import torch
from accelerate.utils import DistributedType
from datasets import Dataset
from peft import PeftModel
from transformers import Trainer
from transformers.trainer_utils import rotate_checkpoints
from trl import GRPOTrainer

from ..arguments.recipe_parser import check_processes
from ..prefix_sharing.share_prefixes import calls_tower_once
from .complete_checkpoint import check_resumable, mark_complete, newest_complete, settings_of
from .stop_signal import StopSignal
from .trl_corrections import restore_full_modules, unshard_head, without_quant_states


logger = logging.getLogger(__name__)


class TrainerGuards(Trainer):
    """
    Stops a run that would otherwise go on from wrong weights or with a broken loss.

    Args:
        *args, **kwargs:
            Those of the trainer that it stands before.

    Raises:
        ValueError: If rows are sorted by their tokens, TRL filtered some of them, each process would train alone, or
            sharded processes would wait for each other (see [`check_one_tower_call`]).
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        if self.args.train_sampling_strategy not in ("random", "sequential"):
            check_lengths(self)
        check_all_are_there(kwargs.get("train_dataset"), self.train_dataset)
        check_processes(self.args)
        if isinstance(self.model, PeftModel):
            restore_full_modules(self.model, self.args.bf16)
            self.model.register_state_dict_post_hook(without_quant_states)
        self.model.register_forward_pre_hook(unshard_head)
        check_one_tower_call(self)
        self.stop_signal = StopSignal()
        self.add_callback(self.stop_signal)

    def _issue_warnings_after_load(self, load_result):
        # Trainer logs a warning and goes on from the weights the run started with (huggingface/transformers#43701).
        # A tied weight is another's, and is saved once.
        missing = [name for name in load_result.missing_keys if name not in self.model.all_tied_weights_keys]
        if missing or load_result.unexpected_keys:
            raise ValueError(
                f"The checkpoint does not hold this model's weights: {len(missing)} are missing {missing[:4]} and "
                f" {len(load_result.unexpected_keys)} are left over "
                f"{load_result.unexpected_keys[:4]}. Resume from a checkpoint that this trainer saved."
            )

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        """`True`, also as text from a command line, resumes from the newest whole checkpoint, if there is one."""
        if str(resume_from_checkpoint).lower() in ("true", "false"):
            wanted = str(resume_from_checkpoint).lower() == "true"
            resume_from_checkpoint = None
            if wanted:
                with self.args.main_process_first(desc="looking for checkpoints"):
                    resume_from_checkpoint = newest_complete(self.args.output_dir, move_aside=self.args.should_save)
                start = resume_from_checkpoint or "the beginning, for there is no whole checkpoint"
                logger.warning(f"Training goes on from {start}.")
        self.resume_settings = settings_of(self)
        if resume_from_checkpoint is not None:
            check_resumable(resume_from_checkpoint, self.resume_settings)
        try:
            output = super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.stop_signal.give_back()
        if self.stop_signal.stopped:
            logger.warning(
                f"SIGTERM: training ended after step {self.state.global_step} of {self.state.max_steps}, with a "
                f"checkpoint in {self.args.output_dir}. Go on with `--resume_from_checkpoint true`."
            )
            self.accelerator.wait_for_everyone()
            self.accelerator.end_training()
            raise SystemExit(StopSignal.EXIT_CODE)
        if self.state.global_step == 0:
            raise ValueError(
                f"Training ended without a step, so nothing is saved. There are {len(self.train_dataset):,} rows, "
                f"{self.args.num_train_epochs:g} epochs, and {self.args.world_size} processes with batches of "
                f"{self.args.per_device_train_batch_size} rows, {self.args.gradient_accumulation_steps} to a step. "
                "Give more rows or epochs, or lower `per_device_train_batch_size`."
            )
        return output

    def _save_checkpoint(self, model, trial):
        # An older checkpoint goes once this one is whole.
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        super()._save_checkpoint(model, trial)
        self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            output_dir = self._get_output_dir(trial)
            mark_complete(Path(output_dir, f"checkpoint-{self.state.global_step}"), self.resume_settings)
            rotate_checkpoints(output_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    # TRL 1.16 counts `num_tokens` from 0 after a resume.
    def _save_optimizer_and_scheduler(self, output_dir):
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save:
            Path(output_dir, "num_tokens.json").write_text(json.dumps(self._total_train_tokens))

    def _load_optimizer_and_scheduler(self, checkpoint):
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (counted := Path(checkpoint, "num_tokens.json")).exists():  # older ones have none
            self._total_train_tokens = json.loads(counted.read_text())

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        super().save_model(output_dir, _internal_call)
        folder = Path(output_dir or self.args.output_dir)
        if self.args.should_save and not _internal_call and not any(folder.glob("*.safetensors")):
            # Trainer returns without a word from FSDP's sharded state, and with a warning from ZeRO-3's.
            raise ValueError(
                f"The model was not saved in {folder}: this accelerate config does not gather sharded weights. Set "
                "`fsdp_state_dict_type: FULL_STATE_DICT` or `zero3_save_16bit_model: true`, and resume from the last "
                "checkpoint."
            )

    def training_step(self, model, inputs, *args, **kwargs) -> torch.Tensor:
        loss = super().training_step(model, inputs, *args, **kwargs)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step}. Nothing was saved after the last "
                f"checkpoint in {self.args.output_dir}. Lower the learning rate, or look at the rows of this step."
            )
        return loss


def check_lengths(trainer: Trainer) -> None:
    """
    Raises:
        ValueError: For an order by length, where rows do not give theirs, or the trainer has an order of its own.
    """
    strategy, column = trainer.args.train_sampling_strategy, trainer.args.length_column_name
    if isinstance(trainer, GRPOTrainer):
        raise ValueError(
            f"`train_sampling_strategy: {strategy}` has no effect: GRPO has an order of its own. Remove it."
        )
    evaluated = trainer.eval_dataset if isinstance(trainer.eval_dataset, dict) else {"eval": trainer.eval_dataset}
    for name, rows in {"train": trainer.train_dataset, **evaluated}.items():
        if rows is None or "chosen" not in rows.column_names:  # prompts to answer are not sorted
            continue
        lengths = rows[column][:] if column in rows.column_names else [None]
        if not all(isinstance(length, int) and length >= 0 for length in lengths):
            raise ValueError(
                f"`train_sampling_strategy` is {strategy}, which sorts rows by their tokens, and the {name} rows have "
                f"no whole number each in a column `{column}`. Rows with images have their tokens once the collator "
                "has encoded them. Add the column (`length_column_name`), or choose `random` or `sequential`."
            )


def check_one_tower_call(trainer: Trainer) -> None:
    """
    Check that the processes of `trainer` call the vision tower equally often, whatever their rows show.

    Raises:
        ValueError: For rows with videos where each process holds a part of the weights, and the plain forward pass,
            which calls the vision tower once for images and once for videos.
    """
    is_sharded = trainer.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
    with_videos = {"videos", "video"} & {*(trainer.train_dataset.column_names or [])}
    if is_sharded and with_videos and not calls_tower_once(trainer.model):
        raise ValueError(
            "The rows have `videos`, and prefixes are not shared: a process whose batch holds images and videos would "
            "call the vision tower twice, and the others, once, would wait for ever. Set `share_prefixes: true`."
        )


def check_all_are_there(given, used):
    """
    Check that a trainer uses all of its rows: TRL filters some without a word.

    Args:
        given (`Dataset`):
            The rows that it was given. Another type is not looked at.
        used (`Dataset`):
            Those that it trains on.

    Raises:
        ValueError: If their numbers differ.
    """
    if isinstance(given, Dataset) and len(used) != len(given):
        raise ValueError(
            f"{len(given):,} rows were given to train on, and the trainer kept {len(used):,}. Look at what TRL's "
            "options filter, and leave rows out before."
        )


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
            As [`check_finite`] takes them, of all pairs of the first step.

    Raises:
        ValueError: If policy and reference differ on the mean by more than bfloat16 rounds away.
    """
    gaps = [abs(logp - ref_logp) for _, _, logp, ref_logp in log_probs]
    mean_gap, mean_logp = fmean(gaps), fmean(abs(ref_logp) for _, _, _, ref_logp in log_probs)
    if mean_gap > 0.25 + 0.02 * mean_logp:
        pair, side, logp, ref_logp = log_probs[gaps.index(max(gaps))]
        raise ValueError(
            f"Before the first step the log-probabilities of {len(gaps)} responses differ by {mean_gap:.2f} between "
            f"policy and reference, of {mean_logp:.2f} on the mean. Most do those of {pair}, the {side} response: "
            f"{logp:.2f} and {ref_logp:.2f}. So they are two models, and no margin is zero. Load the reference from "
            "the policy's checkpoint."
        )
