"""
Samples to preferences: the reward model scores every response, and a rule makes pairs of them.

The embedded world, on a CPU:

accelerate launch recipes/label_preferences.py

With a 7B reward model, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/label_preferences.py \
    --config recipes/configs/qwen2_5_vl_7b/label_preferences.yaml

Reads the candidates of sample_responses.py and a reward model. Writes `score_log` (scores as they are made: a stopped
run goes on), `scores.jsonl` (every raw score), the dataset `preferences` in TRL's vision-preference format with its
card, and `labels.json`: how many prompts gave pairs, and why others not.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Image, List, load_from_disk
from trl import ModelConfig, ScriptArguments

from vl_reward import RecipeParser, RewardScorer, unshare_prefixes
from vl_reward.inference.score_log import ResumableScorer
from vl_reward.labelling import pair_rules, verifiers
from vl_reward.labelling.labelled_pairs import LabelledPairs
from vl_reward.labelling.pair_rules import Candidate


INPUTS = ("model_name_or_path", "dataset_name")
RULES = ["best_against_worst", "right_against_wrong", "format_pairs", "best_of_right", "random_pairs"]
VERIFIERS = ["exact", "multiple_choice", "mathematical"]


@dataclass
class LabelArguments(ScriptArguments):
    output_dir: str = field(default="outputs/labels", metadata={"help": "Where to write scores and preferences."})
    rules: list[str] = field(default_factory=lambda: RULES[:1], metadata={"help": f"Any of {', '.join(RULES)}."})
    verifier: str = field(
        default="exact", metadata={"help": "Compares with the column `answer`.", "choices": VERIFIERS}
    )
    min_gap: float = field(default=1.0, metadata={"help": "Least score of the better response above the worse."})
    max_pairs: int = field(default=1, metadata={"help": "Pairs per prompt and rule."})
    max_shorter_share: float = field(default=1.0, metadata={"help": "Of pairs whose chosen response is the shorter."})
    max_batch_tokens: int = field(default=16384, metadata={"help": "Tokens scored at a time, per process."})
    max_length: int | None = field(default=None, metadata={"help": "Refuse longer responses, prompt included."})
    share_prefixes: bool = field(default=True, metadata={"help": "Compute what responses have in common once."})
    seed: int = field(default=0, metadata={"help": "Which pairs are drawn, where a rule draws."})


def different_texts(responses):
    """Equal responses to one prompt are scored once, an empty one not at all."""
    return {"texts": list(dict.fromkeys(text for text in responses if text.strip()))}


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
    output_dir = Path(script_args.output_dir)
    resumable = ResumableScorer(scorer, output_dir / "score_log", state.process_index, state.num_processes)
    with state.main_process_first():
        responses = candidates.select_columns("responses")
        texts = responses.map(different_texts, input_columns="responses", remove_columns="responses")["texts"]
    resumable(candidates["prompt"], texts, candidates["images"])
    state.wait_for_everyone()
    if not state.is_main_process:
        return
    merged = resumable.merge(candidates["prompt"], texts, candidates["images"])

    ####################
    # Pairs
    ####################
    verify, pairs = getattr(verifiers, script_args.verifier), LabelledPairs(output_dir)
    with open(output_dir / "scores.jsonl", "w") as file:
        for i, row in enumerate(candidates.remove_columns("images")):
            score_of, answer = dict(zip(texts[i], merged[i], strict=True)), row.get("answer")
            scores = [score_of.get(text) for text in row["responses"]]
            file.write(json.dumps({"index": i, "id": row["id"], "scores": scores}) + "\n")
            # Edit here: what is known of a response.
            scored = [
                Candidate(text, score, reason == "stop", verifiers.final_answer(text), answer and verify(text, answer))
                for text, score, reason in zip(row["responses"], scores, row["finish_reasons"], strict=True)
            ]
            limits = script_args.max_pairs, script_args.min_gap, f"{script_args.seed} {row['id']}"
            made = {rule: getattr(pair_rules, rule)(scored, *limits) for rule in script_args.rules}
            pairs.add(i, row["id"], scored, made)

    ####################
    # Save
    ####################
    settings = {"reward_model": model_args.model_name_or_path, "reward_fingerprint": resumable.fingerprint}
    settings |= {"settings": asdict(script_args)}
    report = pairs.save(candidates, script_args.max_shorter_share, script_args.seed, settings)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    parser = RecipeParser((LabelArguments, ModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
