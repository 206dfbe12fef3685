"""
The reward model: Qwen2.5-VL or Qwen3-VL with a scalar head, trained on preference pairs (Skywork-VL Reward, 4.1).
Stage 1 trains on image pairs; stage 2 trains its result on, with text-only pairs added. The two files are the same but
for the block marked STAGE and their YAML.

The embedded world, on a CPU:

accelerate launch recipes/reward_stage1.py
accelerate launch recipes/reward_stage2.py

Qwen2.5-VL-7B, full fine-tuning on 8 GPUs of 80 GB:

accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml recipes/reward_stage1.py \
    --config recipes/configs/qwen2_5_vl_7b/reward_stage1.yaml
accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml recipes/reward_stage2.py \
    --config recipes/configs/qwen2_5_vl_7b/reward_stage2.yaml

Reads a checkpoint of either family (stage 1) or a reward model (stage 2) and a preference dataset with `prompt`,
`chosen`, `rejected` and `images`. Writes a reward model, and `refused.jsonl`: rows that cannot be trained on.
"""

import functools

from transformers import AutoModelForSequenceClassification, AutoProcessor, set_seed
from trl import RewardConfig

from vl_reward import (
    DatasetArguments,
    RecipeParser,
    VisionRewardModelConfig,
    VisionRewardTrainer,
    share_prefixes,
)
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.memory.estimate import MemoryEstimate
from vl_reward.models.families import family_of
from vl_reward.preflight.row_checks import PairCheck
from vl_reward.preflight.training_rows import TrainingPreflight
from vl_reward.training.merged_adapter import MergedAdapter


INPUTS = ("model_name_or_path", "dataset_name")


def freeze(model, model_args):
    """The vision tower stays as it is, and its projector with `train_projector: false`."""
    family = family_of(model.config)
    family.vision_tower_of(model).requires_grad_(False)
    for projector in family.projectors_of(model).values():
        projector.requires_grad_(model_args.train_projector)


def main(script_args, training_args, model_args):
    set_seed(training_args.seed)  # before the head exists: it is drawn at random
    if model_args.estimate:
        estimate = MemoryEstimate(AutoModelForSequenceClassification, training_args, model_args, freeze)
        return training_args.distributed_state.print(estimate)

    ####################
    # Model & Processor
    ####################
    load_base = functools.partial(
        AutoModelForSequenceClassification.from_pretrained,
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    )
    model = load_base(quantization_config=model_args.quantization_config)
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.image_pixels
    )
    FrameLimits.keep(processor, **model_args.video_limits)
    freeze(model, model_args)
    if model_args.share_prefixes:
        share_prefixes(model)  # chosen and rejected have prompt and images in common: those are computed once

    ####################
    # Dataset
    ####################
    # Edit here: the rows. `columns` in the YAML maps yours to `prompt`, `chosen`, `rejected` and `images`.
    dataset = NamedDataset(script_args.dataset_name, script_args.dataset_config, script_args.columns)

    # --- STAGE 2: text-only pairs come in addition to the images ---
    # --- end of STAGE ---

    splits = dataset.train_and_test(script_args.dataset_train_split, script_args.dataset_test_split)
    # What could not be trained on stops the run now, and not at the step that meets it.
    preflight = TrainingPreflight(training_args.output_dir, script_args.too_long, training_args.dataset_num_proc)
    check = PairCheck(processor, training_args.max_length)
    train_dataset, eval_dataset = preflight(check, train=splits[0], eval=splits[1])

    ####################
    # Training
    ####################
    trainer = VisionRewardTrainer(
        model=model,
        args=training_args,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        processing_class=processor,
        peft_config=model_args.peft_config,  # with LoRA, head and projector are trained in full
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ####################
    # Evaluation
    ####################
    metrics = trainer.evaluate()
    trainer.log_metrics("eval", metrics)
    trainer.save_metrics("eval", metrics)

    ####################
    # Save
    ####################
    if model_args.use_peft:
        MergedAdapter(trainer, load_base).save()  # the next step loads a plain reward model
    else:
        trainer.save_model()
    trainer.save_state()  # the losses of all steps, whose curves `python -m vl_reward.report` draws
    trainer.accelerator.print(f"Reward model saved to {training_args.output_dir}")
    trainer.accelerator.wait_for_everyone()  # an early end may abort, and the launcher would stop the one that saves
    trainer.accelerator.end_training()


if __name__ == "__main__":
    parser = RecipeParser((DatasetArguments, RewardConfig, VisionRewardModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
