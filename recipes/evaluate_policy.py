"""
How good a policy is on prompts with verifiable answers: greedy accuracy, the same with blank images, the mean of N,
best of N by the reward model, and pass at N. Answers are compared exactly, never by the reward model.

The embedded world, on a CPU:

accelerate launch recipes/evaluate_policy.py
accelerate launch recipes/evaluate_policy.py --model_name_or_path outputs/tiny/mpo --output_dir outputs/tiny/evaluate_2

Qwen2.5-VL-7B, on one GPU:

accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/evaluate_policy.py \
    --config recipes/configs/qwen2_5_vl_7b/evaluate_policy.yaml

Reads a policy, a reward model and a prompt dataset with `answer`. Writes `responses.jsonl`, `results.json` and
`refused.jsonl`: prompts that cannot be used.
"""

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

from accelerate import PartialState
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from vl_reward import (
    DatasetArguments,
    RecipeParser,
    ResponseSampler,
    RewardScorer,
    SamplingParameters,
    VisionModelConfig,
)
from vl_reward.benchmarks.benchmark_images import AskedRows
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.labelling import verifiers
from vl_reward.preflight.row_checks import PromptCheck
from vl_reward.preflight.usable_rows import UsableRows


INPUTS = ("model_name_or_path", "reward_model", "dataset_name")


@dataclass
class PolicyEvaluationArguments(DatasetArguments):
    reward_model: str | None = field(default=None, metadata={"help": "The reward model that chooses the best of N."})
    output_dir: str = field(default="outputs/evaluate_policy", metadata={"help": "Results are written here."})
    verifier: str = field(
        default="exact",
        metadata={"help": "What compares a response with the column `answer`.", "choices": [*verifiers.VERIFIERS]},
    )
    num_generations: int = field(default=8, metadata={"help": "N, the samples of a prompt. 0: greedy alone."})
    seed: int = field(default=0, metadata={"help": "The seed of the N samples."})


def main(script_args, sampling, model_args):
    set_seed(script_args.seed)
    device, verify = PartialState().device, verifiers.VERIFIERS[script_args.verifier]

    ####################
    # Model & Processor
    ####################
    model = AutoModelForImageTextToText.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    ).to(device)
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.image_pixels
    )
    FrameLimits.keep(processor, **model_args.video_limits)
    greedy = ResponseSampler(model, processor, replace(sampling, temperature=0.0))

    ####################
    # Dataset
    ####################
    # Edit here: the rows. `columns` in the YAML maps yours to `id`, `prompt`, `images` and `answer`.
    dataset = NamedDataset(script_args.dataset_name, script_args.dataset_config, script_args.columns)
    prompts, output_dir = dataset.split(script_args.dataset_test_split), Path(script_args.output_dir)
    usable = UsableRows(prompts, PromptCheck(processor), output_dir, script_args.max_refused)
    prompts = usable.rows
    verifiers.check_answers(verify, prompts.select_columns(["id", "answer"]), needed=True)
    # Images are read when a batch asks for them: `asked` and its columns are files.
    asked = prompts.select_columns([name for name in PromptCheck.columns if name in prompts.column_names])
    questions, images, videos = (
        asked[key] if key in asked.column_names else [None] * len(asked) for key in ("prompt", "images", "videos")
    )
    blank = AskedRows.with_blank_images(asked)
    blank_images, blank_videos = ([row[key] for row in blank] for key in ("images", "videos"))
    names, answers = [f"row {i}" for i in asked["id"]], prompts["answer"][:]

    ####################
    # Evaluation
    ####################
    greedy_responses, _ = greedy(questions, images, names=names, videos=videos)
    blank_responses, _ = greedy(questions, blank_images, names=names, videos=blank_videos)
    verdicts = [verify(row[0], a) for row, a in zip(greedy_responses, answers, strict=True)]
    accuracy = fmean(map(bool, verdicts))
    results = {
        "model": model_args.model_name_or_path,
        "n_prompts": len(prompts),
        "refused_rows": len(usable.refused),
        "greedy_characters": fmean(len(row[0]) for row in greedy_responses),
        "greedy_accuracy": accuracy,
        "greedy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(prompts)),
        "unreadable_responses": verdicts.count(None),  # they hold an answer, but in no known form
        "blank_image_accuracy": fmean(bool(verify(row[0], a)) for row, a in zip(blank_responses, answers, strict=True)),
    }
    lines = [{"id": i, "greedy": row[0]} for i, row in zip(prompts["id"], greedy_responses, strict=True)]
    # So many rows are scored at a time, since all of their images are in memory.
    numbers = [range(len(asked))[start : start + 256] for start in range(0, len(asked), 256)]
    if script_args.reward_model is not None:
        settings = {"dtype": model_args.dtype, "share_prefixes": model_args.share_prefixes}
        scorer = RewardScorer.from_pretrained(script_args.reward_model, **settings)
        scorer.model.to(device)
        given = ([asked[i] | {"responses": greedy_responses[i]} for i in part] for part in numbers)
        scores = [row for rows in given for row in scorer.score_candidates(rows)]
        scored = [row[0] for row in scores if row[0] is not None]  # an empty response has no score
        results |= {"reward_model": script_args.reward_model, "greedy_reward": fmean(scored or [-math.inf])}
        results["empty_greedy_responses"] = len(scores) - len(scored)
        lines = [line | {"greedy_score": row[0]} for line, row in zip(lines, scores, strict=True)]

    if script_args.reward_model is not None and script_args.num_generations > 0:
        sampler = ResponseSampler(model, processor, sampling)
        samples, _ = sampler(questions, images, script_args.num_generations, names, videos)
        given = ([asked[i] | {"responses": samples[i]} for i in part] for part in numbers)
        scores = [row for rows in given for row in scorer.score_candidates(rows)]
        ranks = [[-math.inf if score is None else score for score in row] for row in scores]  # empty: the worst
        correct = [[bool(verify(text, answer)) for text in row] for row, answer in zip(samples, answers, strict=True)]
        results |= {
            "n": script_args.num_generations,
            "mean_at_n": fmean(fmean(row) for row in correct),
            "best_of_n_accuracy": fmean(row[s.index(max(s))] for row, s in zip(correct, ranks, strict=True)),
            "pass_at_n": fmean(any(row) for row in correct),
        }
        lines = [
            line | {"samples": row, "is_correct": right, "scores": s}
            for line, row, right, s in zip(lines, samples, correct, scores, strict=True)
        ]

    ####################
    # Save
    ####################
    (output_dir / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (output_dir / "results.json").write_text(json.dumps(results, indent=2))
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    parser = RecipeParser((PolicyEvaluationArguments, SamplingParameters, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
