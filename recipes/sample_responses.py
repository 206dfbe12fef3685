"""
On-policy samples: N responses per prompt from the policy that MPO will train, every sampling parameter set and
recorded.

The embedded world, on a CPU:

accelerate launch recipes/sample_responses.py

Qwen2.5-VL-7B, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/sample_responses.py \
    --config recipes/configs/qwen2_5_vl_7b/sample_responses.yaml

Reads a policy and a prompt dataset (`id`, `prompt`, `images`, optionally `answer`). Writes the prompts with `responses`
and `finish_reasons`, and `sampling.json`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, Image, List, concatenate_datasets, load_dataset, load_from_disk
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, set_seed
from trl import ScriptArguments

from vl_reward import RecipeParser, ResponseSampler, VisionModelConfig


INPUTS = ("model_name_or_path", "dataset_name")


@dataclass
class SamplingArguments(ScriptArguments):
    output_dir: str = field(default="outputs/candidates", metadata={"help": "Where to write the candidates."})
    num_generations: int = field(default=8, metadata={"help": "Responses per prompt."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest response."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus; 1 keeps all tokens."})
    top_k: int = field(default=0, metadata={"help": "Likeliest tokens kept; 0 keeps all."})
    repetition_penalty: float = field(default=1.0, metadata={"help": "1 leaves the logits alone."})
    batch_size: int = field(default=64, metadata={"help": "Responses generated at a time, per process."})
    seed: int = field(default=0, metadata={"help": "Seed; each process adds its rank."})


def main(script_args, model_args):
    state = PartialState(cpu=not torch.cuda.is_available())
    set_seed(script_args.seed + state.process_index)

    ####################
    # Model & Processor
    ####################
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    ).to(state.device)
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.max_pixels
    )
    sampling = {
        key: getattr(script_args, key)
        for key in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty")
    }
    sampler = ResponseSampler(model, processor, batch_size=script_args.batch_size, **sampling)

    ####################
    # Dataset
    ####################
    if Path(script_args.dataset_name).exists():
        dataset = load_from_disk(script_args.dataset_name)
    else:
        dataset = load_dataset(script_args.dataset_name, script_args.dataset_config)
    # Edit here: map your columns to `id`, `prompt` (a list of messages), `images` (a list) and `answer`.
    prompts = dataset[script_args.dataset_train_split].cast_column("images", List(Image(decode=False)))

    ####################
    # Sampling
    ####################
    indices = list(range(state.process_index, len(prompts), state.num_processes))
    shard = prompts.select(indices)
    responses, finish_reasons = sampler(shard["prompt"], shard["images"], script_args.num_generations)

    ####################
    # Save
    ####################
    output_dir = Path(script_args.output_dir)
    columns = {"index": indices, "responses": responses, "finish_reasons": finish_reasons}
    Dataset.from_dict(columns).save_to_disk(output_dir / f"shard_{state.process_index}")
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    shards = [load_from_disk(output_dir / f"shard_{rank}") for rank in range(state.num_processes)]
    samples = concatenate_datasets(shards).sort("index")
    assert samples["index"][:] == list(range(len(prompts))), "a shard is missing or was written by another run"
    candidates = concatenate_datasets([prompts, samples.remove_columns("index")], axis=1)
    candidates.cast_column("images", List(Image())).save_to_disk(output_dir / "candidates")

    equal = sum(len(set(row)) == 1 for row in candidates["responses"]) / len(candidates)
    unfinished = sum(row.count("length") for row in candidates["finish_reasons"])
    report = {
        "model": model_args.model_name_or_path,
        "prompts": len(candidates),
        "num_generations": script_args.num_generations,
        **sampling,
        "seed": script_args.seed,
        "prompts_with_all_responses_equal": equal,
        "unfinished_responses": unfinished,
    }
    (output_dir / "sampling.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    if equal > 0.9:
        raise ValueError(
            f"All responses are equal for {equal:.0%} of the prompts, so there is nothing to prefer. Raise the "
            "temperature, or start from an earlier policy."
        )


if __name__ == "__main__":
    parser = RecipeParser((SamplingArguments, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
