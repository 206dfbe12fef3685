"""
Samples to preferences: the reward model scores every response, and a rule makes pairs of them.

The embedded world, on a CPU:

accelerate launch recipes/label_preferences.py

With a 7B reward model, on 8 GPUs:

accelerate launch --config_file accelerate_configs/multi_gpu.yaml recipes/label_preferences.py \
    --config recipes/configs/qwen2_5_vl_7b/label_preferences.yaml

Reads the candidates of sample_responses.py and a reward model. Writes `scores` and `verdicts` (shards, as they are
made: a stopped run goes on), `scores.jsonl` (every raw score), the dataset `preferences` in TRL's vision-preference
format with its card, `labels.json`: how many prompts gave pairs, why others not, and which answers it cannot read, and
`refused.jsonl`: rows that cannot be used.
"""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState

from vl_reward import DatasetArguments, RecipeParser, RewardModelConfig, RewardScorer, ServerScorer
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.inference.resumable_store import ResumableStore
from vl_reward.labelling import pair_rules, verifiers
from vl_reward.labelling.labelled_pairs import LabelledPairs
from vl_reward.labelling.pair_rules import Candidate
from vl_reward.preflight.row_checks import ResponsesCheck
from vl_reward.preflight.usable_rows import UsableRows


INPUTS = ("model_name_or_path", "dataset_name")


@dataclass
class LabelArguments(DatasetArguments):
    output_dir: str = field(
        default="outputs/labels", metadata={"help": "The folder that scores and preferences are written to."}
    )
    rules: list[str] = field(
        default_factory=lambda: ["best_vs_worst"],
        metadata={"help": f"The rules that make the pairs: any of {', '.join(pair_rules.RULES)}."},
    )
    verifier: str = field(
        default="exact",
        metadata={"help": "What compares a response with the column `answer`.", "choices": [*verifiers.VERIFIERS]},
    )
    min_score_margin: float = field(
        default=1.0, metadata={"help": "The least difference between the scores of a pair's two responses."}
    )
    max_pairs: int = field(default=1, metadata={"help": "The most pairs that each rule makes of a prompt."})
    max_chosen_shorter_fraction: float = field(
        default=1.0, metadata={"help": "The largest fraction of pairs whose chosen response is the shorter one."}
    )
    seed: int = field(default=0, metadata={"help": "The random seed of rules that draw pairs."})

    def __post_init__(self):
        super().__post_init__()
        pair_rules.check_settings(self.rules, self.max_pairs, self.min_score_margin, self.max_chosen_shorter_fraction)


def main(script_args, model_args):
    state = PartialState(cpu=not torch.cuda.is_available())
    output_dir = Path(script_args.output_dir)
    pairs = LabelledPairs(output_dir)

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
    # Dataset
    ####################
    dataset = NamedDataset(script_args.dataset_name, columns=script_args.columns)
    candidates = dataset.split(script_args.dataset_train_split)
    verify = verifiers.VERIFIERS[script_args.verifier]
    verifiers.check_answers(verify, candidates.remove_columns(["prompt", "images", "responses"]))
    if "finish_reasons" not in candidates.column_names:
        state.print("The candidates have no `finish_reasons`: every response counts as finished.")
    check = ResponsesCheck(scorer.processor, scorer.max_length, empty_ones=True)
    usable = UsableRows(candidates, check, output_dir, script_args.max_refused)
    candidates = usable.rows

    ####################
    # Scoring
    ####################
    asked = candidates.select_columns([name for name in check.columns if name in candidates.column_names])
    store = ResumableStore(output_dir / "scores", scorer.fingerprint(), asked, places=usable.places)
    for number, rows in store.pending():
        store.write(number, scores=scorer.score_candidates(rows))
    # In a store of their own: another verifier leaves the scores as they are, and images do not matter.
    columns = [name for name in ("prompt", "responses", "answer") if name in candidates.column_names]
    read = candidates.select_columns(columns).add_column("images", [[]] * len(candidates))
    fingerprint = verifiers.fingerprint(script_args.verifier)
    verdicts = ResumableStore(output_dir / "verdicts", fingerprint, read, places=usable.places)
    for number, rows in verdicts.pending():
        verdicts.write(number, **verifiers.read_responses(verify, rows))
    if not state.is_main_process:
        return state.destroy_process_group()  # an abort at its end would take the process that saves along

    ####################
    # Pairs
    ####################
    rows = candidates.remove_columns("images")
    for i, (row, scores, read) in enumerate(zip(rows, store.read(), verdicts.read(), strict=True)):
        has_answer = bool(verifiers.accepted_answers(row.get("answer")))
        ends = row.get("finish_reasons") or ["stop"] * len(row["responses"])
        responses = zip(row["responses"], scores["scores"], ends, *read.values(), strict=True)
        # Edit here: what is known of a response.
        scored = [
            Candidate(text, score, end == "stop", answer, is_correct, unreadable=has_answer and is_correct is None)
            for text, score, end, answer, is_correct in responses
        ]
        limits = script_args.max_pairs, script_args.min_score_margin, f"{script_args.seed} {row['id']}"
        made = {rule: pair_rules.RULES[rule](scored, *limits) for rule in script_args.rules}
        pairs.add(i, row["id"], scored, made)

    ####################
    # Save
    ####################
    settings = {"reward_model": model_args.model_name_or_path, "reward_fingerprint": store.fingerprint}
    settings |= {"refused_rows": len(usable.refused), "settings": asdict(script_args)}
    report = pairs.save(candidates, script_args.max_chosen_shorter_fraction, script_args.seed, settings)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    parser = RecipeParser((LabelArguments, RewardModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
