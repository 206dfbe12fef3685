"""
Samples to preferences: the reward model scores every response, and a rule makes pairs of them.

The embedded world, on a CPU:

accelerate launch recipes/label_preferences.py

With a 7B reward model, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/label_preferences.py \
    --config recipes/configs/qwen2_5_vl_7b/label_preferences.yaml

Reads the candidates of sample_responses.py and a reward model. Writes `scores` (shards, as they are made: a stopped run
goes on), `scores.jsonl` (every raw score), the dataset `preferences` in TRL's vision-preference format with its
card, and `labels.json`: how many prompts gave pairs, and why others not.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Image, List, load_from_disk
from trl import ScriptArguments

from vl_reward import RecipeParser, RewardModelConfig, RewardScorer, unshare_prefixes
from vl_reward.inference.resumable_store import ResumableStore
from vl_reward.labelling import pair_rules, verifiers
from vl_reward.labelling.labelled_pairs import LabelledPairs
from vl_reward.labelling.pair_rules import Candidate


INPUTS = ("model_name_or_path", "dataset_name")


@dataclass
class LabelArguments(ScriptArguments):
    output_dir: str = field(
        default="outputs/labels", metadata={"help": "The folder that scores and preferences are written to."}
    )
    rules: list[str] = field(
        default_factory=lambda: ["best_vs_worst"],
        metadata={"help": f"These rules make the pairs, any of {', '.join(pair_rules.RULES)}."},
    )
    verifier: str = field(
        default="exact",
        metadata={"help": "It compares responses with the column `answer`.", "choices": [*verifiers.VERIFIERS]},
    )
    min_score_margin: float = field(
        default=1.0, metadata={"help": "The better response scores above the worse one by at least this much."}
    )
    max_pairs: int = field(default=1, metadata={"help": "Each rule makes at most this many pairs of a prompt."})
    max_chosen_shorter_fraction: float = field(
        default=1.0, metadata={"help": "The chosen response is the shorter one in at most this fraction of the pairs."}
    )
    seed: int = field(default=0, metadata={"help": "The seed decides which pairs are drawn, where a rule draws."})


def main(script_args, model_args):
    state = PartialState(cpu=not torch.cuda.is_available())

    ####################
    # Model & Processor
    ####################
    scorer = RewardScorer.from_pretrained(
        model_args.model_name_or_path,
        max_batch_tokens=model_args.max_batch_tokens,
        max_length=model_args.max_length,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    )
    if not model_args.share_prefixes:
        unshare_prefixes(scorer.model)
    scorer.model.to(state.device)

    ####################
    # Dataset
    ####################
    candidates = load_from_disk(script_args.dataset_name).cast_column("images", List(Image(decode=False)))

    ####################
    # Scoring
    ####################
    output_dir = Path(script_args.output_dir)
    asked = candidates.select_columns(["prompt", "images", "responses"])
    store = ResumableStore(output_dir / "scores", scorer.fingerprint(), asked)
    for number, rows in store.pending():
        store.write(number, scores=scorer.score_candidates(rows))
    if not state.is_main_process:
        return

    ####################
    # Pairs
    ####################
    is_correct, pairs = verifiers.VERIFIERS[script_args.verifier], LabelledPairs(output_dir)
    with open(output_dir / "scores.jsonl", "w") as file:
        for i, (row, result) in enumerate(zip(candidates.remove_columns("images"), store.read(), strict=True)):
            file.write(json.dumps({"index": i, "id": row["id"], "scores": result["scores"]}) + "\n")
            answer = row.get("answer")
            # Edit here: what is known of a response.
            scored = [
                Candidate(text, score, end == "stop", verifiers.final_answer(text), answer and is_correct(text, answer))
                for text, score, end in zip(row["responses"], result["scores"], row["finish_reasons"], strict=True)
            ]
            limits = script_args.max_pairs, script_args.min_score_margin, f"{script_args.seed} {row['id']}"
            made = {rule: pair_rules.RULES[rule](scored, *limits) for rule in script_args.rules}
            pairs.add(i, row["id"], scored, made)

    ####################
    # Save
    ####################
    settings = {"reward_model": model_args.model_name_or_path, "reward_fingerprint": store.fingerprint}
    settings |= {"settings": asdict(script_args)}
    report = pairs.save(candidates, script_args.max_chosen_shorter_fraction, script_args.seed, settings)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    parser = RecipeParser((LabelArguments, RewardModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
