"""
Build the embedded world's inputs, which the tiny configs read: two models and two datasets.

```bash
python -m vl_reward.tiny --output_dir outputs/tiny --seed 0
python -m vl_reward.tiny --output_dir outputs/tiny_qwen3_vl --seed 0 --family qwen3_vl
```
"""

import argparse
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from ..arguments.sampling_parameters import SamplingParameters
from ..inference.transformers_sampler import ResponseSampler
from .architectures import FAMILIES
from .digits import compose, compose_text
from .preferences import (
    PREFERENCE_FEATURES,
    PROMPT_FEATURES,
    as_png,
    corrupted_pairs,
    policy_pairs,
    prompt_rows,
    shuffle_questions,
)


CHECKPOINTS = Path(__file__).parent / "checkpoints"


def main():
    """Write the models and data sets of the embedded world."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/tiny"), help="All is written here.")
    parser.add_argument("--seed", type=int, default=0, help="It decides which questions are composed, not the split.")
    parser.add_argument("--family", choices=FAMILIES, default="qwen2_5_vl", help="The models are of this family.")
    parser.add_argument("--models_only", action="store_true", help="The two models are written, and no datasets.")
    for name, default, sentence in (
        ("n_questions", 16000, "The reward model trains on this many questions with images."),
        ("n_policy_questions", 1500, "The policy answers this many questions, for incorrect responses of its own."),
        ("n_text_questions", 2000, "The reward model trains on this many questions without images."),
        ("per_question", 4, "A question has at most this many training pairs."),
        ("n_prompts", 4000, "The policy is sampled on this many prompts, for MPO."),
        ("n_test", 600, "Each kind has this many test pairs."),
        ("n_test_prompts", 2000, "There are this many test prompts; 2,000 have a standard error of 0.011."),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, help=sentence)
    args = parser.parse_args()
    set_seed(args.seed)

    for name in ("base", "policy"):
        kept = (CHECKPOINTS if args.family == "qwen2_5_vl" else CHECKPOINTS / args.family) / name
        model = AutoModelForImageTextToText.from_pretrained(kept, dtype="float32")
        processor = AutoProcessor.from_pretrained(kept)
        model.save_pretrained(args.output_dir / name)
        processor.save_pretrained(args.output_dir / name)
    if args.models_only:
        return
    sampler = ResponseSampler(model, processor, SamplingParameters(max_new_tokens=24, batch_size=256))

    # Seeds are spaced so that no two streams of questions are the same.
    seed = 100 * args.seed
    train = (
        corrupted_pairs(compose("preference", seed), args.n_questions, seed, args.per_question, hard=True)
        + policy_pairs(sampler, "preference", args.n_policy_questions, seed + 1, args.per_question)
        + corrupted_pairs(compose_text(seed + 2), args.n_text_questions, seed + 2, args.per_question, hard=True)
    )
    preferences = {
        "train": shuffle_questions(train, seed),
        "test": corrupted_pairs(compose("test", seed + 3), 2 * args.n_test, seed + 3)
        + policy_pairs(sampler, "test", args.n_test, seed + 4)
        + corrupted_pairs(compose_text(seed + 5), args.n_test // 2, seed + 5),
    }
    prompts = {
        "train": prompt_rows("preference", args.n_prompts, seed + 6),
        "test": prompt_rows("test", args.n_test_prompts, seed + 7),
    }
    for name, splits, features in (
        ("preferences", preferences, PREFERENCE_FEATURES),
        ("prompts", prompts, PROMPT_FEATURES),
    ):
        dataset = DatasetDict({split: Dataset.from_list(as_png(rows), features) for split, rows in splits.items()})
        dataset.save_to_disk(args.output_dir / name)
        print(f"{args.output_dir / name}: {', '.join(f'{len(rows):,} {split}' for split, rows in splits.items())}")


if __name__ == "__main__":
    main()
