"""
Does time matter? Reward models of the embedded world, trained on pairs whose error only the order of a video's frames
shows: once with videos, once with the same frames as separate images.

OMP_NUM_THREADS=1 python bench/video_study.py --seeds 0 1 2 --output_dir outputs/video_study

Writes `seed_<seed>.json` and prints a table. A seed whose file is there is not computed again.
"""

import argparse
import json
import time
from pathlib import Path

from datasets import Dataset
from transformers import AutoModelForSequenceClassification, AutoProcessor, set_seed
from trl import RewardConfig

from vl_reward import VisionRewardTrainer, share_prefixes
from vl_reward.data.videos.frame_limits import FrameLimits
from vl_reward.models.families import family_of
from vl_reward.tiny.__main__ import CHECKPOINTS
from vl_reward.tiny.digits import CELL
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png
from vl_reward.tiny.video_digits import VIDEO_FEATURES, as_videos, compose_videos, order_pairs


HELD_OUT = 1000


def dataset(pairs, as_video):
    if as_video:
        return Dataset.from_list(as_videos(pairs), VIDEO_FEATURES)
    return Dataset.from_list(as_png(pairs), PREFERENCE_FEATURES)


def study(seed, as_video, steps, batch_size, learning_rate, folder):
    """Train on pairs of one reading, and measure on held-out digits, in the frames' order and shuffled."""
    set_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(CHECKPOINTS / "base", dtype="float32")
    family = family_of(model.config)
    family.vision_tower_of(model).requires_grad_(False)
    for projector in family.projectors_of(model).values():
        projector.requires_grad_(True)
    processor = AutoProcessor.from_pretrained(CHECKPOINTS / "base")
    FrameLimits.keep(processor, max_frames=8, max_pixels=CELL * CELL)
    pairs = order_pairs(compose_videos("preference", seed), steps * batch_size)
    args = RewardConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        learning_rate=learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=20,
        max_length=160,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=50,
        save_strategy="no",
        report_to="none",
        seed=seed,
    )
    trainer = VisionRewardTrainer(
        share_prefixes(model), args, processing_class=processor, train_dataset=dataset(pairs, as_video)
    )
    started, cpu = time.time(), time.process_time()
    trainer.train()
    measures = {"minutes": (time.time() - started) / 60, "cpu_minutes": (time.process_time() - cpu) / 60}
    for name, shuffled in (("in_order", False), ("shuffled", True)):
        held_out = order_pairs(compose_videos("test", 0), HELD_OUT, shuffled)
        measures[name] = trainer.evaluate(dataset(held_out, as_video))["eval_accuracy"]
    return measures


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/video_study"))
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    settings = {"steps": args.steps, "batch_size": args.batch_size, "learning_rate": args.learning_rate}
    for seed in args.seeds:
        file = args.output_dir / f"seed_{seed}.json"
        if not file.exists():
            readings = {"videos": True, "images": False}
            results = {
                name: study(seed, as_video, **settings, folder=args.output_dir / f"{name}_{seed}")
                for name, as_video in readings.items()
            }
            file.write_text(json.dumps({"seed": seed, "n": HELD_OUT, **settings, **results}, indent=1) + "\n")
    print(table([json.loads((args.output_dir / f"seed_{seed}.json").read_text()) for seed in args.seeds]))


def table(results):
    """The accuracies as a table in Markdown."""
    lines = ["| | " + " | ".join(f"seed {result['seed']}" for result in results) + " |"]
    lines.append("|---" * (len(results) + 1) + "|")
    names = {"videos": "a video", "images": "separate images"}
    for reading, told in names.items():
        for measure, order in (("in_order", "frames in order"), ("shuffled", "frames shuffled")):
            values = " | ".join(f"{result[reading][measure]:.3f}" for result in results)
            lines.append(f"| {told}, {order} | {values} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
