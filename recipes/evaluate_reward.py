"""
How often a reward model prefers the better response: on held-out preferences, with blank images and trivial baselines
beside it, or on a public benchmark by its official rule.

The embedded world, on a CPU:

accelerate launch recipes/evaluate_reward.py

A 7B reward model on VL-RewardBench, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/evaluate_reward.py \
    --config recipes/configs/qwen2_5_vl_7b/evaluate_reward_vl_rewardbench.yaml

Results again from scores, without a model and without images:

python recipes/evaluate_reward.py --benchmark vl_rewardbench --data_files vl_rewardbench.jsonl \
    --scores_file scores.jsonl --output_dir outputs/vl_rewardbench

Writes `scores.jsonl` (one line per row), `results.json` and, for a benchmark, `table.md`. A stopped run goes on.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
import torch
from accelerate import PartialState
from datasets import load_dataset, load_from_disk
from trl import ModelConfig, ScriptArguments

from vl_reward import RecipeParser, RewardScorer, unshare_prefixes
from vl_reward.benchmarks import (
    mm_rlhf_rewardbench,
    multimodal_rewardbench,
    preferences,
    rewardbench,
    rewardbench2,
    vl_rewardbench,
)
from vl_reward.benchmarks.benchmark_images import BenchmarkImages
from vl_reward.benchmarks.benchmark_report import BenchmarkReport
from vl_reward.benchmarks.published_table import PublishedTable
from vl_reward.benchmarks.score_file import ScoreFile
from vl_reward.benchmarks.training_overlap import TrainingOverlap
from vl_reward.inference.score_log import ResumableScorer


INPUTS = ("model_name_or_path", "dataset_name")
BENCHMARKS = {
    "vl_rewardbench": vl_rewardbench,
    "multimodal_rewardbench": multimodal_rewardbench,
    "rewardbench": rewardbench,
    "rewardbench2": rewardbench2,
    "mm_rlhf_rewardbench": mm_rlhf_rewardbench,
}


@dataclass
class RewardEvaluationArguments(ScriptArguments):
    output_dir: str = field(default="outputs/evaluate_reward", metadata={"help": "Where to write the results."})
    benchmark: str | None = field(default=None, metadata={"help": "A benchmark.", "choices": [None, *BENCHMARKS]})
    data_files: str | None = field(default=None, metadata={"help": "The benchmark's file; by default its hub id."})
    image_folder: str | None = field(default=None, metadata={"help": "Of the file's images; by default its folder."})
    scores_file: str | None = field(default=None, metadata={"help": "Scores of the benchmark's rows: no model runs."})
    training_dataset: str | None = field(default=None, metadata={"help": "Report results without its rows, too."})
    max_batch_tokens: int = field(default=16384, metadata={"help": "Tokens scored at a time, per process."})
    max_length: int | None = field(default=None, metadata={"help": "Refuse longer responses, prompt included."})
    share_prefixes: bool = field(default=True, metadata={"help": "Compute what responses have in common once."})


def main(script_args, model_args):
    state, output_dir = PartialState(cpu=not torch.cuda.is_available()), Path(script_args.output_dir)
    if script_args.scores_file is not None and script_args.benchmark is None:
        raise ValueError("`scores_file` needs the `benchmark` whose rows it scores.")
    benchmark = {None: preferences, **BENCHMARKS}[script_args.benchmark]

    ####################
    # Dataset
    ####################
    if script_args.benchmark is not None:
        rows = benchmark.load(script_args.data_files or benchmark.HUB_ID)
        folder = script_args.image_folder or Path(script_args.data_files or ".").parent
    else:
        if Path(script_args.dataset_name).exists():
            dataset = load_from_disk(script_args.dataset_name)
        else:
            dataset = load_dataset(script_args.dataset_name, script_args.dataset_config)
        # Edit here: map your columns to `prompt`, `chosen`, `rejected` (lists of messages) and `images` (a list).
        rows, folder = preferences.load(dataset[script_args.dataset_test_split]), Path(".")

    ####################
    # Scoring
    ####################
    if script_args.scores_file is not None:
        scores, blank_scores = ScoreFile(script_args.scores_file).read(rows), None
    else:
        scorer = RewardScorer.from_pretrained(
            model_args.model_name_or_path,
            max_batch_tokens=script_args.max_batch_tokens,
            max_length=script_args.max_length,
            dtype=model_args.dtype,
            attn_implementation=model_args.attn_implementation,
        )
        if not script_args.share_prefixes:
            unshare_prefixes(scorer.model)
        scorer.model.to(state.device)
        resumable = ResumableScorer(scorer, output_dir / "score_log", state.process_index, state.num_processes)
        images = BenchmarkImages(folder).of(rows)
        asked = [[row[key] for row in rows] for key in ("prompt", "responses")] + [images]
        resumable(*asked)
        if script_args.benchmark is None:
            blank = [[PIL.Image.new("RGB", image.size, "white") for image in row] for row in images]
            resumable(*asked[:2], blank)
        state.wait_for_everyone()
        if not state.is_main_process:
            return
        scores = resumable.merge(*asked)
        blank_scores = resumable.merge(*asked[:2], blank) if script_args.benchmark is None else None

    ####################
    # Evaluation
    ####################
    training = script_args.training_dataset
    overlap = training and TrainingOverlap(load_from_disk(training)[script_args.dataset_train_split], folder)
    results = {"model": script_args.scores_file or model_args.model_name_or_path}
    results |= BenchmarkReport(benchmark.summarize, rows, overlap)(scores)
    if blank_scores is not None:
        results["blank_image_subsets"] = preferences.summarize(rows, blank_scores)["subsets"]

    ####################
    # Save
    ####################
    output_dir.mkdir(parents=True, exist_ok=True)
    columns = {} if blank_scores is None else {"source": [row["subset"] for row in rows], "blank_scores": blank_scores}
    ScoreFile(output_dir / "scores.jsonl").write(rows, scores, **columns)
    (output_dir / "results.json").write_text(json.dumps(results, indent=2))
    if script_args.benchmark is not None:
        table = PublishedTable(script_args.benchmark).markdown(results["model"], results)
        (output_dir / "table.md").write_text(table)
        print(table)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    given = {argument.split("=")[0] for argument in sys.argv}
    inputs = () if "--scores_file" in given else INPUTS[:1] if "--benchmark" in given else INPUTS
    parser = RecipeParser((RewardEvaluationArguments, ModelConfig), __file__, inputs)
    main(*parser.parse_args_and_config())
