"""
The reward model as a reward function: a policy trained with GRPO on the scores of its own samples.

The embedded world, on a CPU:

accelerate launch recipes/grpo.py

Qwen2.5-VL-7B, full fine-tuning on 8 GPUs of 80 GB:

accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml recipes/grpo.py \
    --config recipes/configs/qwen2_5_vl_7b/grpo.yaml

Reads a policy, a reward model and prompts with images or videos. Writes a policy, and `refused.jsonl`: prompts that
cannot be trained on. Watch its accuracy with evaluate_policy.py, not the reward: a reward model alone can be exploited,
and Skywork R1V2 adds rules to it.
"""

import functools
from dataclasses import dataclass, field
from typing import Literal

from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed
from trl import GRPOConfig

from vl_reward import DatasetArguments, RecipeParser, RewardScorer, ServerScorer, VisionModelConfig, share_prefixes
from vl_reward.arguments.engine_arguments import SERVER_URL
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.memory.estimate import MemoryEstimate
from vl_reward.models.families import family_of
from vl_reward.preflight.row_checks import PromptCheck
from vl_reward.preflight.training_rows import TrainingPreflight
from vl_reward.training.grpo_trainer import VisionGRPOTrainer
from vl_reward.training.merged_adapter import MergedAdapter


INPUTS = ("model_name_or_path", "reward_model", "dataset_name")


@dataclass
class GRPOArguments(DatasetArguments):
    reward_model: str | None = field(default=None, metadata={"help": "The reward model that scores the samples."})
    engine: Literal["transformers", "server"] = field(
        default="transformers",
        metadata={"help": "Where the reward model runs: `transformers` is here, `server` vLLM servers."},
    )
    server_url: list[str] = field(
        default_factory=lambda: [SERVER_URL], metadata={"help": "The addresses of the vLLM servers."}
    )


def freeze(model, model_args):
    """The vision tower stays as it is."""
    family_of(model.config).vision_tower_of(model).requires_grad_(False)


def main(script_args, training_args, model_args):
    if script_args.reward_model is None:
        raise ValueError("`reward_model` must be given: it scores the samples. `--reward_model ...` names it.")
    set_seed(training_args.seed)
    if model_args.estimate:
        arguments = (training_args, model_args, freeze, script_args.reward_model)
        return training_args.distributed_state.print(MemoryEstimate(AutoModelForImageTextToText, *arguments))

    ####################
    # Model & Processor
    ####################
    load_base = functools.partial(
        AutoModelForImageTextToText.from_pretrained,
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
    # The samples of a prompt have it and its images in common: those are computed once. It is no option here: it also
    # runs the vision tower for text alone, for which processes with images would wait.
    share_prefixes(model)
    if script_args.engine == "server":  # `reward_model` is the export that the servers serve
        reward_model = ServerScorer(script_args.server_url, script_args.reward_model)
    else:  # whole on each GPU, beside the policy: the head computes in float32 all the same
        reward_dtype = "bfloat16" if training_args.bf16 else "float32"
        reward_model = RewardScorer.from_pretrained(script_args.reward_model, dtype=reward_dtype)
        reward_model.model.to(training_args.device)

    ####################
    # Dataset
    ####################
    # Edit here: the rows. `columns` in the YAML maps yours to `prompt` and `images`.
    dataset = NamedDataset(script_args.dataset_name, script_args.dataset_config, script_args.columns)
    # What could not be trained on stops the run now, and not at the step that meets it.
    preflight = TrainingPreflight(training_args.output_dir)
    (dataset,) = preflight(PromptCheck(processor), train=dataset.split(script_args.dataset_train_split))

    ####################
    # Training
    ####################
    trainer = VisionGRPOTrainer(
        model=model,
        reward_funcs=reward_model,
        args=training_args,
        train_dataset=dataset,
        processing_class=processor,
        peft_config=model_args.peft_config,
    )
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ####################
    # Save
    ####################
    if model_args.use_peft:
        MergedAdapter(trainer, load_base).save()
    else:
        trainer.save_model()
    trainer.save_state()  # the losses of all steps, whose curves `python -m vl_reward.report` draws
    trainer.accelerator.print(f"Policy saved to {training_args.output_dir}")
    trainer.accelerator.wait_for_everyone()  # an early end may abort, and the launcher would stop the one that saves
    trainer.accelerator.end_training()


if __name__ == "__main__":
    parser = RecipeParser((GRPOArguments, GRPOConfig, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
