"""
On-policy samples: N responses per prompt from the policy that MPO will train, every sampling parameter set and
recorded.

The embedded world, on a CPU:

accelerate launch recipes/sample_responses.py

Qwen2.5-VL-7B, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/sample_responses.py \
    --config recipes/configs/qwen2_5_vl_7b/sample_responses.yaml

The engine is the YAML's choice: `transformers`, `vllm` (the extra; one engine per process), or `server`, a vLLM server
that runs elsewhere (`vllm serve ... --data-parallel-size 8`):

python recipes/sample_responses.py --config recipes/configs/qwen2_5_vl_7b/sample_responses.yaml \
    --engine server --server_url http://localhost:8000/v1

Reads a policy and a prompt dataset (`id`, `prompt`, `images`, optionally `answer`). Writes `samples` (shards, as they
are made: a stopped run goes on), `candidates` (the prompts with `responses` and `finish_reasons`) and `sampling.json`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from accelerate import PartialState
from datasets import Image, List, concatenate_datasets, load_dataset, load_from_disk
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, set_seed
from trl import ScriptArguments

from vl_reward import RecipeParser, ResponseSampler, VisionModelConfig
from vl_reward.inference.sample_shards import SampleShards
from vl_reward.inference.server_sampler import ServerSampler
from vl_reward.inference.vllm_sampler import VLLMSampler


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
    batch_size: int = field(default=64, metadata={"help": "Responses generated, or asked for, at a time, per process."})
    engine: Literal["transformers", "vllm", "server"] = field(
        default="transformers", metadata={"help": "What generates: here, or a vLLM server."}
    )
    server_url: str = field(default="http://localhost:8000/v1", metadata={"help": "Of that server."})
    shard_size: int = field(default=256, metadata={"help": "Prompts sampled, and lost by a stop, at a time."})
    seed: int = field(default=0, metadata={"help": "Seed; each shard adds its number."})


def main(script_args, model_args):
    state = PartialState(cpu=not torch.cuda.is_available())

    ####################
    # Model & Processor
    ####################
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.max_pixels
    )
    sampling = {
        key: getattr(script_args, key)
        for key in ("max_new_tokens", "temperature", "top_p", "top_k", "repetition_penalty", "batch_size")
    }
    if script_args.engine == "transformers":
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
        ).to(state.device)
        sampler = ResponseSampler(model, processor, **sampling)
    elif script_args.engine == "vllm":
        loading = {"revision": model_args.model_revision, "dtype": model_args.dtype}
        sampler = VLLMSampler(model_args.model_name_or_path, processor, **loading, **sampling)
    else:
        sampler = ServerSampler(script_args.server_url, model_args.model_name_or_path, processor, **sampling)

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
    output_dir, columns = Path(script_args.output_dir), (prompts["prompt"], prompts["images"])
    sampling |= {"num_generations": script_args.num_generations, "seed": script_args.seed}
    fingerprint = sampler.fingerprint(**sampling)
    shards = SampleShards(output_dir / "samples", fingerprint, *columns, script_args.shard_size)
    for number, *shard in shards.pending(state.process_index, state.num_processes):
        set_seed(script_args.seed + number)
        shards.write(number, *sampler(*shard, script_args.num_generations))
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    samples = shards.read()

    ####################
    # Save
    ####################
    different = [len(set(row)) for row in samples["responses"]]
    report = {
        "model": model_args.model_name_or_path,
        "engine": script_args.engine,
        "fingerprint": fingerprint,
        "prompts": len(prompts),
        **sampling,
        "prompts_with_all_responses_equal": different.count(1) / len(prompts),
        "duplicate_responses": 1 - sum(different) / (len(prompts) * script_args.num_generations),
        "unfinished_responses": sum(reason != "stop" for row in samples["finish_reasons"] for reason in row),
    }
    candidates = concatenate_datasets([prompts.cast_column("images", List(Image())), samples], axis=1)
    candidates.info.description = json.dumps(report)
    candidates.save_to_disk(output_dir / "candidates")
    (output_dir / "sampling.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    if report["prompts_with_all_responses_equal"] > 0.5:
        raise ValueError(
            f"All responses are equal for {report['prompts_with_all_responses_equal']:.0%} of the prompts, so there is "
            "little to prefer. Raise the temperature, or start from an earlier policy."
        )


if __name__ == "__main__":
    parser = RecipeParser((SamplingArguments, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
