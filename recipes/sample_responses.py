"""
On-policy samples: N responses per prompt from the policy that MPO will train, every sampling parameter set and
recorded.

The embedded world, on a CPU:

accelerate launch recipes/sample_responses.py

Qwen2.5-VL-7B, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/sample_responses.py \
    --config recipes/configs/qwen2_5_vl_7b/sample_responses.yaml

The engine is the YAML's choice: `transformers`, `vllm` (the extra; one engine per process), or `server`, one or several
vLLM servers that run elsewhere (`vllm serve ... --data-parallel-size 8`):

python recipes/sample_responses.py --config recipes/configs/qwen2_5_vl_7b/sample_responses_server.yaml \
    --server_url http://localhost:8000/v1

Reads a policy and a prompt dataset (`id`, `prompt`, `images`, optionally `answer`). Writes `samples` (shards, as they
are made: a stopped run goes on), `candidates` (the prompts with `responses` and `finish_reasons`), `sampling.json` and
`refused.jsonl`: prompts that cannot be used.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, Features, Image, List, Value, concatenate_datasets
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from vl_reward import DatasetArguments, RecipeParser, ResponseSampler, SamplingParameters, VisionModelConfig
from vl_reward.arguments.engine_arguments import SamplingEngineArguments
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.inference.resumable_store import ResumableStore
from vl_reward.inference.server_sampler import ServerSampler
from vl_reward.inference.vllm_sampler import VLLMSampler
from vl_reward.preflight.row_checks import PromptCheck
from vl_reward.preflight.usable_rows import UsableRows


INPUTS = ("model_name_or_path", "dataset_name")


SAMPLE_FEATURES = Features({"responses": List(Value("string")), "finish_reasons": List(Value("string"))})


@dataclass
class SampleArguments(DatasetArguments):
    output_dir: str = field(
        default="outputs/candidates", metadata={"help": "The folder that the candidates are written to."}
    )
    num_generations: int = field(default=8, metadata={"help": "The number of responses to each prompt."})
    shard_size: int = field(default=256, metadata={"help": "A stop loses the work on this many prompts at most."})
    seed: int = field(default=0, metadata={"help": "The random seed. Shard i uses seed + i."})


def main(script_args, engine_args, sampling, model_args):
    state = PartialState(cpu=not torch.cuda.is_available())

    ####################
    # Model & Processor
    ####################
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.image_pixels
    )
    FrameLimits.keep(processor, **model_args.video_limits)
    if engine_args.engine == "transformers":
        model = AutoModelForImageTextToText.from_pretrained(
            model_args.model_name_or_path,
            revision=model_args.model_revision,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
        ).to(state.device)
        sampler = ResponseSampler(model, processor, sampling)
    elif engine_args.engine == "vllm":
        loading = {"revision": model_args.model_revision, "dtype": model_args.dtype}
        loading |= {"engine_kwargs": engine_args.engine_kwargs}
        sampler = VLLMSampler(model_args.model_name_or_path, processor, sampling, **loading)
    else:
        sampler = ServerSampler(engine_args.server_url, model_args.model_name_or_path, processor, sampling)

    ####################
    # Dataset
    ####################
    # Edit here: the rows. `columns` in the YAML maps yours to `id`, `prompt`, `images` and `answer`.
    dataset = NamedDataset(script_args.dataset_name, script_args.dataset_config, script_args.columns)
    output_dir, prompts = Path(script_args.output_dir), dataset.split(script_args.dataset_train_split)
    check = PromptCheck(processor, sampler.max_prompt_tokens)
    usable = UsableRows(prompts, check, output_dir, script_args.max_refused)
    prompts = usable.rows

    ####################
    # Sampling
    ####################
    settings = {"num_generations": script_args.num_generations, "seed": script_args.seed}
    fingerprint = sampler.fingerprint(**settings)
    asked = prompts.select_columns([name for name in check.columns if name in prompts.column_names])
    samples = output_dir / "samples"
    store = ResumableStore(samples, fingerprint, asked, script_args.shard_size, places=usable.places)
    for number, rows in store.pending():
        set_seed(script_args.seed + number)
        questions, images, videos = ([row.get(key) for row in rows] for key in ("prompt", "images", "videos"))
        names = [f"row {row['id']}" for row in rows]
        responses, finish_reasons = sampler(questions, images, script_args.num_generations, names, videos)
        store.write(number, responses=responses, finish_reasons=finish_reasons)
    if not state.is_main_process:
        return state.destroy_process_group()  # an abort at its end would take the process that saves along
    samples = Dataset.from_json(store.files(), features=SAMPLE_FEATURES, cache_dir=str(output_dir / "cache"))
    unanswered = {i: row["finish_reasons"][0] for i, row in enumerate(samples) if not row["responses"]}
    answered = usable.refuse(unanswered)  # a server may not take a prompt
    prompts, samples = usable.rows, samples.select(answered)

    ####################
    # Save
    ####################
    different = [len(set(row)) for row in samples["responses"]]
    report = {
        "model": model_args.model_name_or_path,
        "engine": engine_args.engine,
        "fingerprint": fingerprint,
        "prompts": len(prompts),
        "refused_rows": len(usable.refused),
        **asdict(sampling),
        **settings,
        "prompts_with_all_responses_equal": different.count(1) / len(prompts),
        "duplicate_responses": 1 - sum(different) / (len(prompts) * script_args.num_generations),
        "unfinished_responses": sum(reason != "stop" for row in samples["finish_reasons"] for reason in row),
    }
    candidates = concatenate_datasets([prompts.cast_column("images", List(Image())), samples], axis=1)
    candidates.info.description = json.dumps(report)
    candidates.save_to_disk(output_dir / "candidates")
    (output_dir / "sampling.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    if script_args.num_generations > 1 and report["prompts_with_all_responses_equal"] > 0.5:
        raise ValueError(
            f"All responses are equal for {report['prompts_with_all_responses_equal']:.0%} of the prompts, so there is "
            "little to prefer. Raise the temperature, or start from an earlier policy."
        )


if __name__ == "__main__":
    parser = RecipeParser(
        (SampleArguments, SamplingEngineArguments, SamplingParameters, VisionModelConfig), __file__, INPUTS
    )
    main(*parser.parse_args_and_config())
