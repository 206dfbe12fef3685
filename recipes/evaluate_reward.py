"""
How often a reward model prefers the better response: on held-out preferences, or on a benchmark by its official rule.

The embedded world, on a CPU:

accelerate launch recipes/evaluate_reward.py

A 7B reward model on VL-RewardBench, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/evaluate_reward.py \
    --config recipes/configs/qwen2_5_vl_7b/evaluate_reward_vl_rewardbench.yaml

Results again from scores, without a model and without images:

python recipes/evaluate_reward.py --benchmark vl_rewardbench --data_files rows.jsonl --scores_file scores.jsonl

Writes `scores.jsonl`, `results.json`, `refused.jsonl` and, for a benchmark, `table.md`. A stopped run goes on.
"""

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from vl_reward import RecipeParser, RewardModelConfig, RewardScorer, ServerScorer
from vl_reward.arguments.benchmark_arguments import BenchmarkArguments
from vl_reward.benchmarks import (
    mm_rlhf_rewardbench,
    multimodal_rewardbench,
    preferences,
    rewardbench,
    rewardbench2,
    video_rewardbench,
    vl_rewardbench,
)
from vl_reward.benchmarks.benchmark_images import AskedRows, BenchmarkImages
from vl_reward.benchmarks.report import BenchmarkReport, PublishedTable, ScoreFile, TrainingOverlap
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.inference.resumable_store import ResumableStore
from vl_reward.preflight.row_checks import ResponsesCheck
from vl_reward.preflight.usable_rows import UsableRows


INPUTS = ("model_name_or_path", "dataset_name")
MODULES = (mm_rlhf_rewardbench, multimodal_rewardbench, rewardbench, rewardbench2, video_rewardbench, vl_rewardbench)
BENCHMARKS = {module.__name__.split(".")[-1]: module for module in MODULES}


@dataclass
class RewardEvaluationArguments(BenchmarkArguments):
    output_dir: str = field(default="outputs/evaluate_reward", metadata={"help": "Results are written here."})
    benchmark: str | None = field(
        default=None, metadata={"help": "The benchmark to measure on.", "choices": [None, *BENCHMARKS]}
    )
    scores_file: str | None = field(default=None, metadata={"help": "The rows' scores. No model runs then."})
    training_dataset: str | None = field(default=None, metadata={"help": "Results without its rows are given, too."})
    max_hamming_distance: int = field(default=6, metadata={"help": "The most bits in which one image's hashes differ."})


def main(script_args, model_args):
    state, output_dir = PartialState(cpu=not torch.cuda.is_available()), Path(script_args.output_dir)
    if script_args.scores_file is not None and script_args.benchmark is None:
        raise ValueError("`scores_file` needs the `benchmark` whose rows it scores.")
    benchmark = {None: preferences, **BENCHMARKS}[script_args.benchmark]

    ####################
    # Dataset
    ####################
    if script_args.benchmark is not None:
        rows = benchmark.load(script_args.data_files or benchmark.HUB_ID, **script_args.load_options)
        folder = script_args.image_folder or Path(script_args.data_files or ".").parent
    else:
        # Edit here: the rows. `columns` in the YAML maps yours to `prompt`, `chosen`, `rejected` and `images`.
        dataset = NamedDataset(script_args.dataset_name, script_args.dataset_config, script_args.columns)
        rows, folder = preferences.load(dataset.split(script_args.dataset_test_split)), None
    training = None
    if script_args.training_dataset is not None:
        training = NamedDataset(script_args.training_dataset, images_only=True).split(script_args.dataset_train_split)

    ####################
    # Scoring
    ####################
    if script_args.scores_file is not None:
        scores, blank_scores = ScoreFile(script_args.scores_file).read(rows), []
    else:
        if model_args.engine == "server":
            url, limits = model_args.server_url, (model_args.requests_in_flight, model_args.max_length)
            scorer = ServerScorer(url, model_args.model_name_or_path, *limits)
        else:
            scorer = RewardScorer.from_pretrained(
                model_args.model_name_or_path,
                max_batch_tokens=model_args.max_batch_tokens,
                max_length=model_args.max_length,
                max_pixels=model_args.image_pixels,
                revision=model_args.model_revision,
                share_prefixes=model_args.share_prefixes,
                video_limits=model_args.video_limits,
                dtype=model_args.dtype,
                attn_implementation=model_args.attn_implementation,
            )
            scorer.model.to(state.device)
        asked = AskedRows(rows, BenchmarkImages(folder).of(rows), frames_as_images=script_args.frames_as_images)
        with_blank = script_args.benchmark is None
        check = ResponsesCheck(scorer.processor, scorer.max_length)
        usable = UsableRows(asked, check, output_dir, script_args.max_refused)
        fingerprint = scorer.fingerprint(with_blank_images=with_blank)
        store = ResumableStore(output_dir / "scores", fingerprint, usable.rows, places=usable.places)
        for number, shard in store.pending():
            blank = {"blank_scores": scorer.score_responses(asked.with_blank_images(shard))} if with_blank else {}
            store.write(number, scores=scorer.score_responses(shard), **blank)
        if not state.is_main_process:
            return state.destroy_process_group()  # an abort at its end would take the process that saves along
        # A benchmark is of all of its rows: there, refused ones are in every number as wrong.
        kept = usable.places if with_blank else range(len(rows))
        scores = dict(zip(usable.places, (row["scores"] for row in store.read()), strict=True))
        rows, scores = [rows[i] for i in kept], [scores.get(i) for i in kept]
        blank_scores = [row["blank_scores"] for row in store.read()] if with_blank else []

    ####################
    # Evaluation
    ####################
    overlap = None if training is None else TrainingOverlap(training, folder, script_args.max_hamming_distance)
    results = {"model": script_args.scores_file or model_args.model_name_or_path}
    if script_args.scores_file is None and any(row["subset"] == "video" for row in rows):
        results["frames_as_images"] = script_args.frames_as_images  # the two readings do not compare
    results |= BenchmarkReport(benchmark.summarize, rows, overlap)(scores)
    if blank_scores:
        results["blank_image_subsets"] = preferences.summarize(rows, blank_scores)["subsets"]
        results["refused_rows"] = len(usable.refused)

    ####################
    # Save
    ####################
    output_dir.mkdir(parents=True, exist_ok=True)
    columns = {"source": [row["subset"] for row in rows], "blank_scores": blank_scores} if blank_scores else {}
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
    main(*RecipeParser((RewardEvaluationArguments, RewardModelConfig), __file__, inputs).parse_args_and_config())
