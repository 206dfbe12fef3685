"""
How often a reward model prefers the better response: pair accuracy by source, the same with blank images, and trivial
baselines beside it.

The embedded world, on a CPU:

accelerate launch recipes/evaluate_reward.py

A 7B reward model, on one GPU:

accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/evaluate_reward.py \
    --config recipes/configs/qwen2_5_vl_7b/evaluate_reward.yaml

Reads a reward model and a preference dataset (`prompt`, `chosen`, `rejected`, `images`, optionally `source`). Writes
`scores.jsonl` (one line per pair) and `results.json`.
"""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import PIL.Image
from accelerate import PartialState
from datasets import load_dataset, load_from_disk
from trl import ModelConfig, ScriptArguments

from vl_reward import RecipeParser, RewardScorer, unshare_prefixes


INPUTS = ("model_name_or_path", "dataset_name")


@dataclass
class RewardEvaluationArguments(ScriptArguments):
    output_dir: str = field(default="outputs/evaluate_reward", metadata={"help": "Where to write the results."})
    max_batch_tokens: int = field(default=16384, metadata={"help": "Tokens scored at a time, per process."})
    max_length: int | None = field(default=None, metadata={"help": "Refuse longer responses, prompt included."})
    share_prefixes: bool = field(default=True, metadata={"help": "Compute what responses have in common once."})


def summarize(pairs):
    """Accuracy of `(better, worse)` numbers. A tie is not right, by the rule of RewardBench; `ties` counts them."""
    n = len(pairs)
    ties = sum(better == worse for better, worse in pairs)
    return {"accuracy": sum(better > worse for better, worse in pairs) / n, "ties": ties, "n": n}


def main(script_args, model_args):
    ####################
    # Model & Processor
    ####################
    scorer = RewardScorer.from_pretrained(
        model_args.model_name_or_path,
        max_batch_tokens=script_args.max_batch_tokens,
        max_length=script_args.max_length,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    )
    if not script_args.share_prefixes:
        unshare_prefixes(scorer.model)
    scorer.model.to(PartialState().device)

    ####################
    # Dataset
    ####################
    if Path(script_args.dataset_name).exists():
        dataset = load_from_disk(script_args.dataset_name)
    else:
        dataset = load_dataset(script_args.dataset_name, script_args.dataset_config)
    # Edit here: map your columns to `prompt`, `chosen`, `rejected` (lists of messages) and `images` (a list).
    dataset = dataset[script_args.dataset_test_split]
    prompts, images = dataset["prompt"][:], dataset["images"][:]
    sources = dataset["source"][:] if "source" in dataset.column_names else ["all"] * len(dataset)
    blank_images = [[PIL.Image.new("RGB", image.size, "white") for image in row] for row in images]

    ####################
    # Evaluation
    ####################
    scores, blank_scores = [], []
    for target, shown in ((scores, images), (blank_scores, blank_images)):
        both = scorer(prompts * 2, dataset["chosen"][:] + dataset["rejected"][:], shown * 2)
        target += zip(both[: len(dataset)], both[len(dataset) :], strict=True)
    lengths = [
        tuple(sum(len(message["content"]) for message in row[side]) for side in ("chosen", "rejected"))
        for row in dataset.select_columns(["chosen", "rejected"])
    ]
    by_source = defaultdict(list)
    for index, source in enumerate(sources):
        by_source[source].append(index)
    results = {
        "model": model_args.model_name_or_path,
        "n": len(dataset),
        "overall": summarize(scores)["accuracy"],
        "ties": summarize(scores)["ties"],
        "subsets": {name: summarize([scores[i] for i in rows]) for name, rows in sorted(by_source.items())},
        "blank_image_subsets": {
            name: summarize([blank_scores[i] for i in rows]) for name, rows in sorted(by_source.items())
        },
        "baselines": {
            "shorter_is_better": summarize([(-chosen, -rejected) for chosen, rejected in lengths]),
            "longer_is_better": summarize(lengths),
        },
    }

    ####################
    # Save
    ####################
    output_dir = Path(script_args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(output_dir / "scores.jsonl", "w") as file:
        for row in range(len(dataset)):
            line = {"row": row, "source": sources[row], "scores": scores[row], "blank_scores": blank_scores[row]}
            file.write(json.dumps(line | {"lengths": lengths[row]}) + "\n")
    (output_dir / "results.json").write_text(json.dumps(results, indent=2))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    parser = RecipeParser((RewardEvaluationArguments, ModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
