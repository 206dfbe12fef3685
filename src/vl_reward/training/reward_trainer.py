"""TRL's `RewardTrainer` for rows with images and videos."""

import torch
from datasets import Dataset, Image, IterableDataset, List
from transformers import EvalPrediction, ProcessorMixin
from trl import RewardConfig, RewardTrainer

from ..data.collators import DataCollatorForVisionReward
from ..data.splits import with_images
from .guards import TrainerGuards


def pair_metrics(prediction: EvalPrediction) -> dict[str, float]:
    """Pair accuracy over scores of shape `(num_pairs, 2)`, chosen first. A tie is not right; `ties` counts them."""
    chosen, rejected = prediction.predictions.T
    return {
        "accuracy": (chosen > rejected).mean().item(),
        "ties": (chosen == rejected).mean().item(),
        "margin": (chosen - rejected).mean().item(),
        "n_pairs": len(chosen),
    }


class VisionRewardTrainer(TrainerGuards, RewardTrainer):
    """
    [`~trl.RewardTrainer`] for vision-preference rows. The Bradley-Terry loss and everything else are TRL's own.

    Images are decoded and text is tokenized batch by batch by [`DataCollatorForVisionReward`]; every checkpoint holds
    the processor; evaluation on several processes counts each pair once.

    Args:
        model ([`VisionRewardModel`]):
            The reward model, or a `PeftModel` around it.
        args ([`~trl.RewardConfig`]):
            Set `max_length` to what a pair may take, image tokens included.
        processing_class ([`~transformers.ProcessorMixin`]):
            The model's processor. TRL's trainer takes a tokenizer here, which would drop the images.
        train_dataset, eval_dataset (`Dataset` or `IterableDataset`):
            Rows with `prompt`, `chosen`, `rejected`, `images` and optionally `videos`, `margin` and `id`.
        peft_config ([`~peft.PeftConfig`], *optional*):
            The adapter. Beside it head and projector are trained in full, unless its `modules_to_save` says otherwise.
        **kwargs:
            Passed on to [`~trl.RewardTrainer`].

    Raises:
        ValueError: If a column is missing or `processing_class` is not a processor.
    """

    def __init__(self, model, args: RewardConfig, *, processing_class: ProcessorMixin, train_dataset, **kwargs):
        if not isinstance(processing_class, ProcessorMixin):
            raise ValueError(
                f"`processing_class` is a {type(processing_class).__name__}. A reward model that reads images needs "
                "the processor, not the tokenizer: `AutoProcessor.from_pretrained(...)`."
            )
        if args.ddp_find_unused_parameters is None:
            args.ddp_find_unused_parameters = False  # the collator gives every batch an image, so all are used
        peft_config = kwargs.get("peft_config")
        if peft_config is not None and peft_config.modules_to_save is None:
            peft_config.modules_to_save = model.trained_in_full(model)
        kwargs.setdefault("data_collator", DataCollatorForVisionReward(processing_class, args.max_length))
        kwargs.setdefault("compute_metrics", pair_metrics)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            processing_class=processing_class.tokenizer,
            **kwargs,
        )
        self.processing_class = processing_class  # saved with every checkpoint
        if not any(parameter.requires_grad for name, parameter in self.model.named_parameters() if "score" in name):
            raise ValueError(
                "The reward head `score` is not trained. With LoRA it stays at its random values and is not saved: set "
                "`modules_to_save=['score']` (`lora_modules_to_save: [score]`)."
            )

    def _prepare_dataset(self, dataset, processing_class, args, dataset_name) -> Dataset | IterableDataset:
        missing = {"prompt", "chosen", "rejected", "images"} - set(dataset.column_names or [])
        if missing:
            raise ValueError(
                f"The {dataset_name} dataset has the columns {dataset.column_names} and lacks {sorted(missing)}. "
                "Rename them, or add `images` as empty lists for rows of text."
            )
        # Bytes are decoded by the collator, which can name the row of a broken file.
        if isinstance(dataset, Dataset):
            return with_images(dataset, decode=False)
        return dataset.cast_column("images", List(Image(decode=False)))

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["id", "prompt", "chosen", "rejected", "images", "videos", "video", "margin"]
        self._signature_columns.append(self.args.length_column_name)  # for `train_sampling_strategy`

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix: str = "eval"):
        metrics = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
        rows = self.eval_dataset if eval_dataset is None else eval_dataset
        measured = metrics.get(f"{metric_key_prefix}_n_pairs")  # several sets by their names have theirs one by one
        if isinstance(rows, Dataset) and measured != len(rows):
            raise ValueError(
                f"{measured} pairs were measured, and the set has {len(rows)}, so the accuracy is that of other rows. "
                "Look at what the collator or the dataloader leaves out."
            )
        return metrics

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns the scores as `(num_pairs, 2)`, one row per pair, for Trainer to gather without repeated pairs."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
        self._metrics["eval"].clear()  # averages of rank-local batches, with the last batch's rows counted twice
        scores = torch.stack(torch.chunk(outputs.logits.squeeze(-1), 2), dim=1)
        return loss, scores, torch.zeros(len(scores), device=scores.device)
