"""
A generative judge as a baseline of the reward model: a vision-language model is asked which of two responses is better,
in both orders, several times, and its majority vote is measured by the benchmark's rule.

The embedded world, on a CPU (its model was never taught to judge: nearly all of its verdicts are missing):

accelerate launch recipes/evaluate_judge.py

Qwen2.5-VL-7B on VL-RewardBench, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/evaluate_judge.py \
    --config recipes/configs/qwen2_5_vl_7b/evaluate_judge.yaml

Writes `judgements` (shards, as they are made: a stopped run goes on), `votes.jsonl` (every judgement), `results.json`,
`refused.jsonl` (rows that cannot be used) and, for a benchmark, `table.md`.
"""

import json
import random
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from vl_reward import RecipeParser, ResponseSampler, SamplingParameters, VisionModelConfig
from vl_reward.arguments.benchmark_arguments import BenchmarkArguments
from vl_reward.benchmarks import (
    mm_rlhf_rewardbench,
    multimodal_rewardbench,
    preferences,
    rewardbench,
    video_rewardbench,
    vl_rewardbench,
)
from vl_reward.benchmarks.benchmark_images import AskedRows, BenchmarkImages
from vl_reward.benchmarks.judge_verdict import LetterVerdict, NumberedVerdict
from vl_reward.benchmarks.report import BenchmarkReport, PublishedTable
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.inference.resumable_store import ResumableStore
from vl_reward.preflight.row_checks import JudgeCheck
from vl_reward.preflight.usable_rows import UsableRows


INPUTS = ("model_name_or_path", "dataset_name")
MODULES = (mm_rlhf_rewardbench, multimodal_rewardbench, rewardbench, video_rewardbench, vl_rewardbench)
BENCHMARKS = {module.__name__.split(".")[-1]: module for module in MODULES}


@dataclass
class JudgeArguments(BenchmarkArguments):
    output_dir: str = field(default="outputs/evaluate_judge", metadata={"help": "Results are written here."})
    benchmark: str | None = field(
        default=None, metadata={"help": "The benchmark to judge.", "choices": [None, *BENCHMARKS]}
    )
    max_rows: int | None = field(default=None, metadata={"help": "The first so many rows are judged. Default: all."})
    votes_per_order: int = field(default=1, metadata={"help": "How often a pair is judged in each of its two orders."})
    shard_size: int = field(default=64, metadata={"help": "A stop loses the work on this many rows at most."})
    seed: int = field(default=0, metadata={"help": "The random seed. Shard i uses seed + i."})


def main(script_args, sampling, model_args):
    state, output_dir = PartialState(cpu=not torch.cuda.is_available()), Path(script_args.output_dir)
    benchmark = {None: preferences, **BENCHMARKS}[script_args.benchmark]
    form = NumberedVerdict() if script_args.benchmark == "vl_rewardbench" else LetterVerdict()

    ####################
    # Model & Processor
    ####################
    model = AutoModelForImageTextToText.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    ).to(state.device)
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.image_pixels
    )
    FrameLimits.keep(processor, **model_args.video_limits)
    sampler = ResponseSampler(model, processor, sampling)

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
    rows = rows[: script_args.max_rows]

    ####################
    # Judging
    ####################
    asked = AskedRows(rows, BenchmarkImages(folder).of(rows), frames_as_images=script_args.frames_as_images)
    settings = {"votes_per_order": script_args.votes_per_order, "seed": script_args.seed, "form": type(form).__name__}
    usable = UsableRows(asked, JudgeCheck(processor, form), output_dir, script_args.max_refused)
    judgements, fingerprint = output_dir / "judgements", sampler.fingerprint(**settings)
    store = ResumableStore(judgements, fingerprint, usable.rows, script_args.shard_size, places=usable.places)
    for number, shard in store.pending():
        set_seed(script_args.seed + number)
        prompts = [form.prompt(row["prompt"], *row["responses"][::order]) for order in (1, -1) for row in shard]
        images, videos = ([row.get(key) for row in shard] * 2 for key in ("images", "videos"))
        shown = {"videos": videos} if any(videos) else {}  # a sampler of your own need not know videos
        texts, _ = sampler(prompts, images, script_args.votes_per_order, **shown)
        store.write(number, straight=texts[: len(shard)], turned=texts[len(shard) :])
    if not state.is_main_process:
        return state.destroy_process_group()  # an abort at its end would take the process that saves along

    ####################
    # Evaluation
    ####################
    lines, rows, refused = [], [rows[i] for i in usable.places], [rows[i] for i in usable.left_out]
    for i, row, judged in zip(usable.places, rows, store.read(), strict=True):
        line = {"row": i, "id": row["id"], "subset": row["subset"], "votes": form.votes(**judged)}
        lines.append(line | {"judgements": judged["straight"] + judged["turned"]})
    choices = [form.majority(line["votes"]) for line in lines]
    results = {"judge": model_args.model_name_or_path, "undecided": choices.count(None), **asdict(sampling)}
    results["votes_without_verdict"] = sum(line["votes"].count(None) for line in lines)
    if any(row["subset"] == "video" for row in rows):
        results["frames_as_images"] = script_args.frames_as_images  # the two readings do not compare
    # `cal.py` of VL-RewardBench leaves pairs without a majority out.
    kept = [i for i, choice in enumerate(choices) if choice is not None or script_args.benchmark != "vl_rewardbench"]
    if not kept:
        raise ValueError(f"None of {len(rows)} pairs got a majority, so there is nothing to measure. See votes.jsonl.")
    tie, toss = {}, random.Random(123).random
    if script_args.benchmark == "rewardbench":  # its generative script gives half a point for them
        tie = {"tie": 0.5}
    else:  # `2_get_accuracy.py` of Multimodal RewardBench tosses a coin, and so do we where there is no rule
        choices = [int(toss() >= 0.5) if choice is None else choice for choice in choices]
    rows, scores = [rows[i] for i in kept], [[float(choices[i] == side) for side in (0, 1)] for i in kept]
    if script_args.benchmark is not None:  # it is of all of its rows: refused ones are in every number as wrong
        rows, scores = rows + refused, scores + [None] * len(refused)
    results |= BenchmarkReport(partial(benchmark.summarize, **tie), rows)(scores) | {"refused_rows": len(refused)}

    ####################
    # Save
    ####################
    (output_dir / "votes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (output_dir / "results.json").write_text(json.dumps(results, indent=2))
    if script_args.benchmark is not None:
        (output_dir / "table.md").write_text(PublishedTable(script_args.benchmark).markdown(results["judge"], results))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    parser = RecipeParser((JudgeArguments, SamplingParameters, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
