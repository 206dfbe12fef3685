"""
How good a policy is on prompts with verifiable answers: greedy accuracy, the same without seeing the image, random of
N, best of N by the reward model, and pass at N. Answers are compared exactly, never by the reward model.

The embedded world, on a CPU:

accelerate launch recipes/evaluate_policy.py
accelerate launch recipes/evaluate_policy.py --model_name_or_path outputs/tiny/mpo --output_dir outputs/tiny/evaluate_2

Qwen2.5-VL-7B, on one GPU:

accelerate launch --config_file accelerate_configs/single_gpu.yaml recipes/evaluate_policy.py \
    --config recipes/configs/qwen2_5_vl_7b/evaluate_policy.yaml

Reads a policy, a reward model and a prompt dataset with `answer`. Writes `responses.jsonl` and `results.json`.
"""

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import PIL.Image
from accelerate import PartialState
from datasets import load_dataset, load_from_disk
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration, set_seed
from trl import ScriptArguments

from vl_reward import RecipeParser, ResponseSampler, RewardScorer, VisionModelConfig, unshare_prefixes


INPUTS = ("model_name_or_path", "reward_model", "dataset_name")


@dataclass
class PolicyEvaluationArguments(ScriptArguments):
    reward_model: str | None = field(default=None, metadata={"help": "Reward model for best of N."})
    output_dir: str = field(default="outputs/evaluate_policy", metadata={"help": "Where to write the results."})
    num_generations: int = field(default=8, metadata={"help": "N; 0 leaves out all that samples."})
    max_new_tokens: int = field(default=1024, metadata={"help": "Longest response."})
    temperature: float = field(default=1.0, metadata={"help": "Of the N samples; greedy decoding has none."})
    batch_size: int = field(default=64, metadata={"help": "Responses generated at a time."})
    seed: int = field(default=0, metadata={"help": "Seed of the N samples."})


# Edit here: what counts as right. The embedded world's responses end in `Answer: <answer>`.
def is_right(response, answer):
    match = re.search(r"Answer: (\S+)\s*$", response)
    return match is not None and match.group(1) == answer


def main(script_args, model_args):
    set_seed(script_args.seed)
    device = PartialState().device

    ####################
    # Model & Processor
    ####################
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        model_args.model_name_or_path,
        revision=model_args.model_revision,
        dtype=model_args.dtype,
        attn_implementation=model_args.attn_implementation,
    ).to(device)
    processor = AutoProcessor.from_pretrained(
        model_args.model_name_or_path, revision=model_args.model_revision, max_pixels=model_args.max_pixels
    )
    greedy = ResponseSampler(model, processor, script_args.max_new_tokens, 0.0, batch_size=script_args.batch_size)

    ####################
    # Dataset
    ####################
    if Path(script_args.dataset_name).exists():
        dataset = load_from_disk(script_args.dataset_name)
    else:
        dataset = load_dataset(script_args.dataset_name, script_args.dataset_config)
    # Edit here: map your columns to `id`, `prompt` (a list of messages), `images` (a list) and `answer`.
    prompts = dataset[script_args.dataset_test_split]
    questions, images, answers = prompts["prompt"][:], prompts["images"][:], prompts["answer"][:]
    blank_images = [[PIL.Image.new("RGB", image.size, "white") for image in row] for row in images]

    ####################
    # Evaluation
    ####################
    greedy_responses, _ = greedy(questions, images)
    blind_responses, _ = greedy(questions, blank_images)
    accuracy = fmean(is_right(row[0], a) for row, a in zip(greedy_responses, answers, strict=True))
    results = {
        "model": model_args.model_name_or_path,
        "n_prompts": len(prompts),
        "greedy_characters": fmean(len(row[0]) for row in greedy_responses),
        "greedy_accuracy": accuracy,
        "greedy_standard_error": math.sqrt(accuracy * (1 - accuracy) / len(prompts)),
        "blind_accuracy": fmean(is_right(row[0], a) for row, a in zip(blind_responses, answers, strict=True)),
    }
    lines = [{"id": i, "greedy": row[0]} for i, row in zip(prompts["id"], greedy_responses, strict=True)]

    if script_args.reward_model is not None:
        scorer = RewardScorer.from_pretrained(script_args.reward_model, dtype=model_args.dtype)
        if not model_args.share_prefixes:
            unshare_prefixes(scorer.model)
        scorer.model.to(device)
        greedy_scores = [row[0] for row in score_rows(scorer, questions, greedy_responses, images)]
        scored = [score for score in greedy_scores if score > -math.inf]
        results |= {"reward_model": script_args.reward_model, "greedy_reward": fmean(scored or [-math.inf])}
        results["empty_greedy_responses"] = len(greedy_scores) - len(scored)
        lines = [line | {"greedy_score": score} for line, score in zip(lines, greedy_scores, strict=True)]

    n = script_args.num_generations
    if script_args.reward_model is not None and n > 0:
        sampling = {"temperature": script_args.temperature, "batch_size": script_args.batch_size}
        samples, _ = ResponseSampler(model, processor, script_args.max_new_tokens, **sampling)(questions, images, n)
        scores = score_rows(scorer, questions, samples, images)
        right = [[is_right(text, answer) for text in row] for row, answer in zip(samples, answers, strict=True)]
        results |= {
            "n": n,
            "random_of_n_accuracy": fmean(fmean(row) for row in right),
            "best_of_n_accuracy": fmean(row[s.index(max(s))] for row, s in zip(right, scores, strict=True)),
            "pass_at_n": fmean(any(row) for row in right),
        }
        lines = [
            line | {"samples": row, "right": ok, "scores": s}
            for line, row, ok, s in zip(lines, samples, right, scores, strict=True)
        ]

    ####################
    # Save
    ####################
    output_dir = Path(script_args.output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "responses.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (output_dir / "results.json").write_text(json.dumps(results, indent=2))
    print(json.dumps(results, indent=2))


def score_rows(scorer, questions, rows, images):
    """Equal responses to one prompt are scored once; an empty one cannot be scored, and is the worst there is."""
    unique = [(i, text) for i, row in enumerate(rows) for text in dict.fromkeys(row) if text.strip()]
    scores = scorer([questions[i] for i, _ in unique], [text for _, text in unique], [images[i] for i, _ in unique])
    score_of = dict(zip(unique, scores, strict=True))
    return [[score_of.get((i, text), -math.inf) for text in row] for i, row in enumerate(rows)]


if __name__ == "__main__":
    parser = RecipeParser((PolicyEvaluationArguments, VisionModelConfig), __file__, INPUTS)
    main(*parser.parse_args_and_config())
