"""
A generative judge as a baseline of the reward model: a vision-language model is asked which of two responses is better,
in both orders, several times, and its majority vote is measured by the benchmark's rule.

The embedded world, on a CPU (its model was never taught to judge: nearly all of its verdicts are missing):

accelerate launch recipes/evaluate_judge.py

Qwen2.5-VL-7B on VL-RewardBench, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/evaluate_judge.py \
    --config recipes/configs/qwen2_5_vl_7b/evaluate_judge.yaml

Writes `votes.jsonl` (every judgement), `results.json` and, for a benchmark, `table.md`.
"""

import json
import random
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import load_from_disk
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, set_seed
from trl import ScriptArguments

from vl_reward import RecipeParser, ResponseSampler, VisionModelConfig
from vl_reward.benchmarks import multimodal_rewardbench, preferences, rewardbench, vl_rewardbench
from vl_reward.benchmarks.benchmark_images import BenchmarkImages
from vl_reward.benchmarks.benchmark_report import BenchmarkReport
from vl_reward.benchmarks.judge_verdict import LetterVerdict, NumberedVerdict
from vl_reward.benchmarks.published_table import PublishedTable


INPUTS = ("model_name_or_path", "dataset_name")
BENCHMARKS = {
    "vl_rewardbench": vl_rewardbench,
    "multimodal_rewardbench": multimodal_rewardbench,
    "rewardbench": rewardbench,
}


@dataclass
class JudgeArguments(ScriptArguments):
    output_dir: str = field(default="outputs/evaluate_judge", metadata={"help": "Where to write the results."})
    benchmark: str | None = field(default=None, metadata={"help": "A benchmark.", "choices": [None, *BENCHMARKS]})
    data_files: str | None = field(default=None, metadata={"help": "The benchmark's file; by default its hub id."})
    image_folder: str | None = field(default=None, metadata={"help": "Of the file's images; by default its folder."})
    max_rows: int | None = field(default=None, metadata={"help": "Judge only the first rows."})
    votes_per_order: int = field(default=1, metadata={"help": "Judgements of a pair in each of its two orders."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest judgement."})
    temperature: float = field(default=1.0, metadata={"help": "Sampling temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus; 1 keeps all tokens."})
    batch_size: int = field(default=64, metadata={"help": "Judgements generated at a time, per process."})
    seed: int = field(default=0, metadata={"help": "Seed; each process adds its rank."})


def main(script_args, model_args):
    state, output_dir = PartialState(cpu=not torch.cuda.is_available()), Path(script_args.output_dir)
    set_seed(script_args.seed + state.process_index)
    benchmark = {None: preferences, **BENCHMARKS}[script_args.benchmark]
    form = NumberedVerdict() if script_args.benchmark == "vl_rewardbench" else LetterVerdict()

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
    sampling = {key: getattr(script_args, key) for key in ("max_new_tokens", "temperature", "top_p", "batch_size")}
    sampler = ResponseSampler(model, processor, **sampling)

    ####################
    # Dataset
    ####################
    if script_args.benchmark is not None:
        rows = benchmark.load(script_args.data_files or benchmark.HUB_ID)
        folder = script_args.image_folder or Path(script_args.data_files or ".").parent
    else:
        # Edit here: map your columns to `prompt`, `chosen`, `rejected` (lists of messages) and `images` (a list).
        dataset = load_from_disk(script_args.dataset_name)[script_args.dataset_test_split]
        rows, folder = preferences.load(dataset), Path(".")
    rows = rows[: script_args.max_rows]

    ####################
    # Judging
    ####################
    shard = list(range(state.process_index, len(rows), state.num_processes))
    images = BenchmarkImages(folder).of([rows[i] for i in shard])
    questions = [row["prompt"] if isinstance(row["prompt"], str) else row["prompt"][-1]["content"] for row in rows]
    asked = [form.prompt(questions[i], *rows[i]["responses"][::order]) for order in (1, -1) for i in shard]
    judgements, _ = sampler(asked, images * 2, script_args.votes_per_order)
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(output_dir / f"votes_{state.process_index}.jsonl", "w") as file:
        for k, i in enumerate(shard):
            straight, turned = judgements[k], judgements[k + len(shard)]
            turn = {0: 1, 1: 0, None: None}
            votes = [form.parse(text) for text in straight] + [turn[form.parse(text)] for text in turned]
            line = {"row": i, "id": rows[i]["id"], "subset": rows[i]["subset"], "votes": votes}
            file.write(json.dumps(line | {"judgements": straight + turned}) + "\n")
    state.wait_for_everyone()
    if not state.is_main_process:
        return

    ####################
    # Evaluation
    ####################
    shards = [output_dir / f"votes_{rank}.jsonl" for rank in range(state.num_processes)]
    lines = sorted((json.loads(line) for path in shards for line in open(path)), key=lambda line: line["row"])
    assert [line["row"] for line in lines] == list(range(len(rows))), "a judgement is missing or there twice"
    choices = [form.majority(line["votes"]) for line in lines]
    undecided = choices.count(None)
    kept, coin = list(range(len(rows))), random.Random(123)
    if script_args.benchmark == "vl_rewardbench":  # `cal.py` leaves pairs without a majority out
        kept = [i for i in kept if choices[i] is not None]
    elif script_args.benchmark != "rewardbench":  # `2_get_accuracy.py` tosses a coin for them
        choices = [(0 if coin.random() < 0.5 else 1) if choice is None else choice for choice in choices]
    if not kept:
        raise ValueError(f"None of {len(rows)} pairs got a majority, so there is nothing to measure. See votes.jsonl.")
    scores = [[float(choices[i] == response) for response in (0, 1)] for i in kept]
    results = {"judge": model_args.model_name_or_path, "undecided": undecided, **sampling}
    results["votes_without_verdict"] = sum(line["votes"].count(None) for line in lines)
    # RewardBench's generative script gives half a point where there is no verdict.
    tie = {"tie": 0.5} if script_args.benchmark == "rewardbench" else {}
    results |= BenchmarkReport(partial(benchmark.summarize, **tie), [rows[i] for i in kept])(scores)

    ####################
    # Save
    ####################
    (output_dir / "votes.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (output_dir / "results.json").write_text(json.dumps(results, indent=2))
    if script_args.benchmark is not None:
        table = PublishedTable(script_args.benchmark).markdown(model_args.model_name_or_path, results)
        (output_dir / "table.md").write_text(table)
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    parser = RecipeParser((JudgeArguments, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
