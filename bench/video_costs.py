"""
What a row with a video costs beside one with an image: visual tokens, memory and time of a training step.

```bash
python bench/video_costs.py --output docs/video/costs.json    # and puts both tables into docs/video.md
```

The first table is estimated for the whole 7B model on a GPU, with LoRA, as `--estimate true` does it. The second is
measured on this machine: stage 1 with LoRA on the 7B model's widths with two layers, in bfloat16, one pair at a time,
under gradient checkpointing. Seconds are those of the CPU, of all threads, so that other work on the machine counts
little.
"""

import argparse
import json
import tempfile
from pathlib import Path

from datasets import Dataset, DatasetDict
from memory import GIB, ROOT, TOKEN, load_recipe, write_pairs
from PIL import Image
from rehearsal import PROMPT, RESPONSE, Rehearsal
from transformers import AutoModelForSequenceClassification

from vl_reward import RecipeParser
from vl_reward.memory.estimate import MemoryEstimate
from vl_reward.memory.sharding import Sharding
from vl_reward.tiny.video_digits import VIDEO_FEATURES, as_videos


SIDES = (16, 12)  # visual tokens of a frame: 448 x 336 pixels, just within the default of 151,200
LONG_RESPONSE = 1024
PAGE = ROOT / "docs/video.md"


def tokens_of(frames: int) -> int:
    """Two frames are one step in time."""
    return frames // 2 * SIDES[0] * SIDES[1]


def limits_of(frames: int) -> list[str]:
    return ["--video_max_frames", str(frames), "--video_max_pixels", str(SIDES[0] * SIDES[1] * TOKEN**2)]


def estimate(frames: int) -> dict:
    """The whole 7B model with LoRA on a GPU; no frames are an image of 1,280 tokens."""
    module, types = load_recipe(ROOT / "recipes/reward_stage1.py")
    visual = tokens_of(frames) if frames else 1280
    arguments = ["--config", str(ROOT / "recipes/configs/qwen2_5_vl_7b/reward_stage1_lora.yaml"), "--use_cpu", "true"]
    arguments += ["--model_name_or_path", str(ROOT / "docs/memory/qwen2_5_vl_7b.json"), "--max_pixels", "1003520"]
    arguments += ["--max_length", str(visual + PROMPT + LONG_RESPONSE)]
    arguments += limits_of(frames) if frames else []
    _, training_args, model_args = RecipeParser(types, module.__file__, ()).parse_args_and_config(arguments)
    found = MemoryEstimate(
        AutoModelForSequenceClassification, training_args, model_args, module.freeze, sharding=Sharding(), on_gpu=True
    )
    return {"frames": frames, "visual_tokens": visual, "max_length": training_args.max_length, "gib": found.peak / GIB}


def write_video_pairs(folder: Path, frames: int) -> None:
    """The pairs of `write_pairs`, about videos."""
    write_pairs(folder, 2, SIDES, RESPONSE)
    pairs = DatasetDict.load_from_disk(folder)["train"]
    shades = [
        [Image.new("RGB", [TOKEN * side for side in SIDES], (i, 9 * j, 0)) for j in range(frames)] for i in (1, 2)
    ]
    rows = as_videos([{**row, "images": images} for row, images in zip(pairs, shades, strict=False)])
    split = Dataset.from_list(rows, VIDEO_FEATURES)
    DatasetDict({"train": split, "test": split.select([0])}).save_to_disk(folder.with_name("videos"))


def measure(rehearsal: Rehearsal, frames: int) -> dict:
    """Two steps; a step's seconds are half of what both take."""
    visual = tokens_of(frames) if frames else 1280
    options = {"max_steps": 2, "use_peft": True, "max_length": visual + PROMPT + RESPONSE}
    given = limits_of(frames) if frames else []
    if frames:
        write_video_pairs(rehearsal.folder / "pairs", frames)
        options["dataset_name"] = rehearsal.folder / "videos"
    options |= dict(zip((name.removeprefix("--") for name in given[::2]), given[1::2], strict=True))
    row = rehearsal.recipe("reward_stage1", rehearsal.checkpoint, f"frames_{frames}", **options)
    return {"frames": frames, "visual_tokens": visual} | {
        "estimated": row["estimated"],
        "measured": row["measured"],
        "cpu_seconds": row["cpu_seconds"] / 2,
    }


def tables(found: dict) -> str:
    """Both tables of docs/video.md."""
    name = "an image of 1,280 tokens"
    lines = ["| 7B, LoRA, on a GPU | visual tokens | `max_length` | estimated, GiB |", "|---|---|---|---|"]
    for row in found["estimated"]:
        what = f"a video of {row['frames']} frames" if row["frames"] else name
        lines.append(f"| {what} | {row['visual_tokens']:,} | {row['max_length']:,} | {row['gib']:.1f} |")
    lines += ["", "| 7B's widths, two layers | estimated, GiB | measured, GiB | CPU seconds a step | of an image's |"]
    lines.append("|---|---|---|---|---|")
    image = next(row["cpu_seconds"] for row in found["measured"] if not row["frames"])
    for row in found["measured"]:
        what = f"a video of {row['frames']} frames" if row["frames"] else name
        sizes = f"{row['estimated']:.2f} | {row['measured']:.2f}"
        lines.append(f"| {what} | {sizes} | {row['cpu_seconds']:.0f} | {row['cpu_seconds'] / image:.2f} |")
    return "\n".join(lines)


def fill(text: str) -> str:
    """Put the tables of the kept file between their markers."""
    kept = tables(json.loads((ROOT / "docs/video/costs.json").read_text()))
    before, rest = text.split("<!-- costs -->\n")
    return f"{before}<!-- costs -->\n{kept}\n<!-- end of costs -->{rest.split('<!-- end of costs -->')[1]}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="The numbers are written here, as JSON.")
    parser.add_argument("--narrower", type=int, default=1, help="Divides the widths, to try the code.")
    parser.add_argument("--frames", type=int, nargs="+", default=[8, 16, 24], help="Videos so long are measured.")
    args = parser.parse_args()
    found = {"estimated": [estimate(frames) for frames in (0, 8, 16, 32, 64)], "measured": []}
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = Rehearsal("7b", Path(folder), "bfloat16", 1280, args.narrower)
        rehearsal.write()
        for frames in (0, *args.frames):
            found["measured"].append(measure(rehearsal, frames))
            print(found["measured"][-1], flush=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    print(tables(found))
    PAGE.write_text(fill(PAGE.read_text()))


if __name__ == "__main__":
    main()
