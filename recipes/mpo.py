"""
Mixed Preference Optimization (arXiv 2411.10442): a policy trained with 0.8 DPO + 0.2 BCO + 1.0 SFT on labelled pairs.

The embedded world, on a CPU:

accelerate launch recipes/mpo.py

Qwen2.5-VL-7B, full fine-tuning on 8 GPUs of 80 GB:

accelerate launch --config_file accelerate_configs/deepspeed_zero3.yaml recipes/mpo.py \
    --config recipes/configs/qwen2_5_vl_7b/mpo.yaml

Reads the policy that was sampled from, the preferences of label_preferences.py and, with `verifiable_dataset`, prompts
with answers, on which accuracy is measured. Writes a better policy, `eval_results.json`, which has that accuracy, and
`refused.jsonl`: rows that cannot be trained on.
"""

import functools
from dataclasses import dataclass, field

from transformers import AutoModelForImageTextToText, AutoProcessor, EarlyStoppingCallback, set_seed
from trl import DPOConfig

from vl_reward import DatasetArguments, MPOTrainer, RecipeParser, SamplingParameters, VisionModelConfig, share_prefixes
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.labelling.verifiers import VERIFIERS
from vl_reward.memory.estimate import MemoryEstimate
from vl_reward.preflight.row_checks import PolicyPairCheck, PromptCheck
from vl_reward.preflight.training_rows import TrainingPreflight
from vl_reward.training.greedy_accuracy import GreedyAccuracy
from vl_reward.training.merged_adapter import MergedAdapter


INPUTS = ("model_name_or_path", "dataset_name", "verifiable_dataset")


@dataclass
class MPOArguments(DatasetArguments):
    verifiable_dataset: str | None = field(
        default=None,
        metadata={
            "help": "Prompts with answers. Accuracy on them is measured after training, and every `eval_steps` with "
            "`eval_strategy: steps`. With `metric_for_best_model: greedy_accuracy` training stops when it no longer "
            "rises. Report on others."
        },
    )
    verifier: str = field(
        default="exact",
        metadata={"help": "What compares a response with the column `answer`.", "choices": [*VERIFIERS]},
    )
    max_new_tokens: int = field(default=1024, metadata={"help": "The most tokens of a response to these prompts."})
    patience: int = field(
        default=3, metadata={"help": "With `metric_for_best_model`: evaluations without a rise that end training."}
    )
    use_reward_shift: bool = field(default=True, metadata={"help": "Whether BCO has its shift δ. TRL has none."})


def main(script_args, training_args, model_args):
    set_seed(training_args.seed)
    if model_args.estimate:
        estimate = MemoryEstimate(AutoModelForImageTextToText, training_args, model_args)
        return training_args.distributed_state.print(estimate)
    best = training_args.metric_for_best_model
    if best is not None and (best != "greedy_accuracy" or training_args.eval_strategy == "no"):
        raise ValueError(
            f"`metric_for_best_model: {best}` is never measured. Set it to `greedy_accuracy`, and "
            "`verifiable_dataset`, `eval_strategy: steps` and `eval_steps` besides."
        )

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
    # With LoRA the reference is the policy with its adapter switched off.
    ref_model = None if model_args.use_peft else load_base()
    if model_args.share_prefixes:  # chosen and rejected have prompt and images in common: those are computed once
        share_prefixes(model)
        if ref_model is not None:
            share_prefixes(ref_model)

    ####################
    # Dataset
    ####################
    # Edit here: the rows. `columns` in the YAML maps yours to `prompt`, `chosen`, `rejected` and `images`.
    dataset = NamedDataset(script_args.dataset_name, script_args.dataset_config, script_args.columns)
    # What could not be trained on stops the run now, and not at the step that meets it.
    preflight = TrainingPreflight(training_args.output_dir, script_args.too_long, training_args.dataset_num_proc)
    check = PolicyPairCheck(processor, training_args.max_length)
    (dataset,) = preflight(check, train=dataset.split(script_args.dataset_train_split))
    measuring = {}
    if script_args.verifiable_dataset is not None:
        prompts = NamedDataset(script_args.verifiable_dataset).split(script_args.dataset_test_split)
        (prompts,) = preflight(PromptCheck(processor), verifiable=prompts)
        sampling = SamplingParameters(max_new_tokens=script_args.max_new_tokens, temperature=0.0)
        accuracy = GreedyAccuracy(processor, prompts, VERIFIERS[script_args.verifier], sampling)
        measuring = {"eval_dataset": prompts, "evaluate_policy": accuracy}
        if best is not None:
            measuring["callbacks"] = [EarlyStoppingCallback(script_args.patience)]

    ####################
    # Training
    ####################
    trainer = MPOTrainer(
        model=model,
        ref_model=ref_model,
        args=training_args,
        train_dataset=dataset,
        processing_class=processor,
        peft_config=model_args.peft_config,
        use_reward_shift=script_args.use_reward_shift,
        **measuring,
    )
    del ref_model  # with `precompute_ref_log_probs` the trainer has no more need of it
    trainer.train(resume_from_checkpoint=training_args.resume_from_checkpoint)

    ####################
    # Evaluation
    ####################
    if script_args.verifiable_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)

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
    parser = RecipeParser((MPOArguments, DPOConfig, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
