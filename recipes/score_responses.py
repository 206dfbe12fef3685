"""
Scores of responses, from file to file: a reward model adds `scores` to each row, and leaves all else as it is.

The embedded world, on a CPU:

accelerate launch recipes/score_responses.py

With a 7B reward model, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/score_responses.py \
    --config recipes/configs/qwen2_5_vl_7b/score_responses.yaml

One's own, a line of JSON per row with `prompt`, `images` and either `responses`, a list, or `response`:

python recipes/score_responses.py --model_name_or_path outputs/tiny/reward_stage2 \
    --dataset_name responses.jsonl --output_dir scored

Writes `scored.jsonl` (the rows in their order, with a list `scores` in the order of the responses; `null` for an empty
one), `scores` (shards, as they are made: a stopped run goes on), `scoring.json`, and `refused.jsonl`, the rows that are
left out since they cannot be used. Image paths stay as they are: those that began at the input's folder are found by
other recipes if `output_dir` is that folder.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from vl_reward import DatasetArguments, RecipeParser, RewardModelConfig, RewardScorer, ServerScorer
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.inference.resumable_store import ResumableStore
from vl_reward.preflight.row_checks import ResponsesCheck
from vl_reward.preflight.usable_rows import UsableRows


INPUTS = ("model_name_or_path", "dataset_name")


@dataclass
class ScoreArguments(DatasetArguments):
    output_dir: str = field(
        default="outputs/score_responses", metadata={"help": "The folder that scores are written to."}
    )
    shard_size: int = field(default=64, metadata={"help": "A stop loses the work on this many rows at most."})


def main(script_args, model_args):
    state, output_dir = PartialState(cpu=not torch.cuda.is_available()), Path(script_args.output_dir)

    ####################
    # Dataset
    ####################
    # Edit here: the rows. `columns` in the YAML maps yours to `prompt`, `images` and `responses`.
    dataset = NamedDataset(script_args.dataset_name, script_args.dataset_config, script_args.columns)
    rows = dataset.split(script_args.dataset_train_split)
    if "scores" in rows.column_names:
        raise ValueError("The rows have `scores`, which would be lost. Rename them, or take them out.")
    if "responses" not in rows.column_names and "response" not in rows.column_names:
        raise ValueError(f"The rows have {', '.join(rows.column_names)}, and neither `responses` nor `response`.")
    if "response" in rows.column_names:
        texts = rows.select_columns([name for name in ("response", "responses") if name in rows.column_names])
        texts = [[row["response"]] if row.get("responses") is None else row["responses"] for row in texts]
        rows = rows.remove_columns(sorted({"response", "responses"} & set(rows.column_names)))
        rows = rows.add_column("responses", texts)

    ####################
    # Model & Processor
    ####################
    if model_args.engine == "server":
        server = {"batch_size": model_args.requests_in_flight, "max_length": model_args.max_length}
        scorer = ServerScorer(model_args.server_url, model_args.model_name_or_path, **server)
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

    ####################
    # Scoring
    ####################
    check = ResponsesCheck(scorer.processor, scorer.max_length, empty_ones=True)
    usable = UsableRows(rows, check, output_dir, script_args.max_refused)
    asked = usable.rows.select_columns([name for name in check.columns if name in usable.rows.column_names])
    scores = output_dir / "scores"
    store = ResumableStore(scores, scorer.fingerprint(), asked, script_args.shard_size, places=usable.places)
    for number, shard in store.pending():
        store.write(number, scores=scorer.score_candidates(shard))
    if not state.is_main_process:
        return state.destroy_process_group()  # an abort at its end would take the process that saves along

    ####################
    # Save
    ####################
    report = {"reward_model": model_args.model_name_or_path, "reward_fingerprint": store.fingerprint}
    report |= {"dataset": script_args.dataset_name, "rows": len(rows), "refused_rows": len(usable.refused)}
    report |= {"responses": 0, "empty_responses": 0}
    given, places = dataset.objects(script_args.dataset_train_split), set(usable.places)
    given = (row for place, row in enumerate(given) if place in places)
    partial = output_dir / "scored.jsonl.partial"
    with open(partial, "w", encoding="utf-8") as file:
        for row, scored in zip(given, store.read(), strict=True):
            file.write(json.dumps(row | scored, ensure_ascii=False) + "\n")
            report["responses"] += len(scored["scores"])
            report["empty_responses"] += scored["scores"].count(None)
    os.replace(partial, output_dir / "scored.jsonl")
    (output_dir / "scoring.json").write_text(json.dumps(report, indent=2))
    print(json.dumps(report, indent=2))
    if report["responses"] == report["empty_responses"]:
        raise ValueError(f"No response has a score: {script_args.dataset_name} holds none, or empty ones alone.")


if __name__ == "__main__":
    parser = RecipeParser((ScoreArguments, RewardModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
