"""
Samples to preferences: the reward model scores every response, and each prompt gives its best against its worst ones.

The embedded world, on a CPU:

accelerate launch recipes/label_preferences.py

With a 7B reward model, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/label_preferences.py \
    --config recipes/configs/qwen2_5_vl_7b/label_preferences.yaml

Reads the candidates of sample_responses.py and a reward model. Writes `scores.jsonl` (every raw score), the dataset
`preferences` in TRL's vision-preference format, and `labels.json`: how many prompts gave pairs, and why others not.
"""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, Image, List, concatenate_datasets, load_from_disk
from trl import ModelConfig, ScriptArguments

from vl_reward import RecipeParser, RewardScorer, unshare_prefixes


INPUTS = ("model_name_or_path", "dataset_name")


@dataclass
class LabelArguments(ScriptArguments):
    output_dir: str = field(default="outputs/labels", metadata={"help": "Where to write scores and preferences."})
    min_gap: float = field(default=1.0, metadata={"help": "Least score of the better response above the worse."})
    max_pairs: int = field(default=1, metadata={"help": "Pairs per prompt: the best against that many of the worst."})
    max_batch_tokens: int = field(default=16384, metadata={"help": "Tokens scored at a time, per process."})
    max_length: int | None = field(default=None, metadata={"help": "Refuse longer responses, prompt included."})
    share_prefixes: bool = field(default=True, metadata={"help": "Compute what responses have in common once."})


def best_against_worst(row, scores, min_gap, max_pairs):
    """
    The pairs of one prompt, as `(reason, pairs)`: the best response against each of the worst, or why there is none. An
    empty response has no score. An unfinished one has, but is never paired: cut off in the middle, it is not what the
    policy would have said.
    """
    finished = {
        (score, response)
        for score, response, reason in zip(scores, row["responses"], row["finish_reasons"], strict=True)
        if reason == "stop" and score is not None
    }
    if len(finished) < 2:
        return "fewer than two different finished responses", []
    *others, (high, best) = sorted(finished)
    chosen = [{"role": "assistant", "content": best}]
    pairs = [
        {"chosen": chosen, "rejected": [{"role": "assistant", "content": response}]}
        | {"score_chosen": high, "score_rejected": score}
        for score, response in others[:max_pairs]
        if high - score >= min_gap
    ]
    return ("labelled" if pairs else "score gap too small"), pairs


def main(script_args, model_args):
    state = PartialState(cpu=not torch.cuda.is_available())

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
    scorer.model.to(state.device)

    ####################
    # Dataset
    ####################
    candidates = load_from_disk(script_args.dataset_name).cast_column("images", List(Image(decode=False)))

    ####################
    # Scoring
    ####################
    indices = list(range(state.process_index, len(candidates), state.num_processes))
    shard = candidates.select(indices)
    # Equal responses to one prompt are scored once, an empty one not at all.
    prompts, images = shard["prompt"][:], shard["images"][:]
    unique = [(i, text) for i, row in enumerate(shard["responses"]) for text in dict.fromkeys(row) if text.strip()]
    unique_scores = scorer(
        prompts=[prompts[i] for i, _ in unique],
        completions=[text for _, text in unique],
        images=[images[i] for i, _ in unique],
    )
    score_of = dict(zip(unique, unique_scores, strict=True))
    output_dir = Path(script_args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    with open(output_dir / f"scores_{state.process_index}.jsonl", "w") as file:
        for i, (index, row) in enumerate(zip(indices, shard.remove_columns("images"), strict=True)):
            scores = [score_of.get((i, text)) for text in row["responses"]]
            file.write(json.dumps({"index": index, "id": row["id"], "scores": scores}) + "\n")
    state.wait_for_everyone()
    if not state.is_main_process:
        return

    ####################
    # Pairs
    ####################
    shards = [output_dir / f"scores_{rank}.jsonl" for rank in range(state.num_processes)]
    lines = sorted((json.loads(line) for shard in shards for line in open(shard)), key=lambda line: line["index"])
    assert [line["index"] for line in lines] == list(range(len(candidates))), "a score is missing or there twice"
    (output_dir / "scores.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))

    counts, kept, pairs = Counter(), [], []
    for row, line in zip(candidates.remove_columns("images"), lines, strict=True):
        # Edit here: the rule that makes a pair.
        reason, found = best_against_worst(row, line["scores"], script_args.min_gap, script_args.max_pairs)
        counts[reason] += 1
        kept += [line["index"]] * len(found)
        pairs += found

    ####################
    # Save
    ####################
    report = {"reward_model": model_args.model_name_or_path, "candidates": script_args.dataset_name}
    report |= {"min_gap": script_args.min_gap, "max_pairs": script_args.max_pairs}
    report |= {"pairs": len(pairs), "prompts": len(candidates), **counts}
    (output_dir / "labels.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    if not pairs:
        raise ValueError("No prompt gave a pair. Lower `min_gap`, or sample more diverse responses.")
    prompts = candidates.select(kept).select_columns(["id", "prompt", "images"]).cast_column("images", List(Image()))
    concatenate_datasets([prompts, Dataset.from_list(pairs)], axis=1).save_to_disk(output_dir / "preferences")


if __name__ == "__main__":
    parser = RecipeParser((LabelArguments, ModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
