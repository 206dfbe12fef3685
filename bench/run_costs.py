"""
What the 7B run costs, on paper: operations of each step, hours at an assumed utilisation, GiB on disk and on a GPU.

```bash
python bench/run_costs.py --output docs/run_7b/costs.json    # and puts the table into docs/run_7b.md
```

Weights are counted on the model's config, which is kept. An operation is a multiplication or an addition. A weight
takes 2 for a token in a forward pass, 4 in a backward pass, and 2 again where gradient checkpointing computes a layer
anew. A vision tower that is frozen has a forward pass alone. A prompt and its image are computed once for both
responses. Attention itself is left out: some 3 % at these lengths. `utilisation` is the part of the peak that a GPU
really does; it is an assumption, as are the two rates of sampling and scoring, which are those of labelling_scale.py.
Nothing here was measured on a GPU.
"""

import argparse
import json
from pathlib import Path

import torch
from labelling_scale import plan
from transformers import AutoConfig, AutoModelForImageTextToText


ROOT = Path(__file__).parent.parent
GIB = 2**30
PATCHES = 4  # of the vision tower to a visual token of the decoder


FORWARD, STEP = 2, 8  # operations of a weight for a token; a step is under gradient checkpointing


def weights() -> dict[str, int]:
    """Parameters of the 7B model's parts."""
    config = AutoConfig.from_pretrained(ROOT / "docs/memory/qwen2_5_vl_7b.json")
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config)
    inside = model.model
    parts = {"vision": inside.visual, "merger": inside.visual.merger, "decoder": inside.language_model.layers}
    parts |= {"head": model.lm_head, "all": model}
    return {name: sum(parameter.numel() for parameter in part.parameters()) for name, part in parts.items()}


def pair_operations(args, counted: dict[str, int], image: int, decoder: int, vision: int, head: int) -> float:
    """Of a pair, with the passes of each part: `FORWARD`, `STEP`, or 0 where there is none."""
    responses = 2 * args.response_tokens
    in_decoder = decoder * counted["decoder"] * (image + args.text_tokens + responses)
    return in_decoder + vision * counted["vision"] * image * PATCHES + head * counted["head"] * responses


def costs(args: argparse.Namespace) -> list[dict]:
    """One row per step of the run."""
    counted, image = weights(), args.image_tokens
    a_second = args.gpus * args.peak_tflops * 1e12 * args.utilisation
    of_pairs = {
        "image pairs, reward": pair_operations(args, counted, image, STEP, FORWARD, 0),
        "text pairs, reward": pair_operations(args, counted, 0, STEP, 0, 0),
        "reference": pair_operations(args, counted, image, FORWARD, FORWARD, FORWARD),
        "mpo": pair_operations(args, counted, image, STEP, STEP, STEP),
    }
    hours = {name: operations / a_second / 3600 for name, operations in of_pairs.items()}
    of_images = 2 * args.image_pairs * hours["image pairs, reward"]  # two epochs
    of_text = 2 * (args.pairs - args.image_pairs) * hours["text pairs, reward"]
    rates = (args.response_tokens, image + args.text_tokens, args.sampled_per_second, args.scored_per_second)
    labels = plan(args.prompts, args.samples, args.gpus, *rates)
    reward = {"gpu_gib": memory("reward_stage1"), "disk_gib": disk(counted, ("head",), ("vision",))}
    return [
        {"step": "reward_stage1", "hours": of_images, "steps": 2 * args.image_pairs // args.batch} | reward,
        {"step": "reward_stage2", "hours": of_images + of_text, "steps": 2 * args.pairs // args.batch} | reward,
        {"step": "sample_responses", "hours": labels["hours_of_sampling"], "disk_gib": 2 * sampled_gib(args)},
        {"step": "label_preferences", "hours": labels["hours_of_scoring"]},
        {"step": "mpo: reference log-probabilities", "hours": args.prompts * hours["reference"]},
        {"step": "mpo", "hours": args.prompts * hours["mpo"], "steps": args.prompts // args.mpo_batch}
        | {"gpu_gib": memory("mpo"), "disk_gib": disk(counted, (), ())},
    ]


def memory(recipe: str) -> float:
    """GiB of a GPU for the 7B config of a recipe, as bench/memory.py estimated it."""
    rows = json.loads((ROOT / "docs/memory/gpus.json").read_text())
    found = [row for row in rows if (row["model"], row["recipe"], row["max_length"]) == ("7b", recipe, 8192)]
    return next(row["gib"] for row in found if row["way"].startswith("full"))


def disk(counted: dict[str, int], absent: tuple[str, ...], frozen: tuple[str, ...]) -> float:
    """GiB of three checkpoints, which are there while the third is written, and of the model in bfloat16."""
    kept = counted["all"] - sum(counted[name] for name in absent)
    trained = kept - sum(counted[name] - counted["merger"] for name in frozen)
    return (3 * (2 * kept + 12 * trained) + 2 * kept) / GIB  # a float32 copy and AdamW's two states


def sampled_gib(args) -> float:
    """Of text: 4 characters a token."""
    return 4 * args.prompts * args.samples * args.response_tokens / GIB


def table(found: dict) -> str:
    """Markdown of what `costs.json` holds."""
    gpus = found["assumed"]["gpus"]
    lines = [
        f"| step | optimizer steps | hours on {gpus} GPUs | GPU hours | GiB per GPU | GiB on disk |",
        "|---|---|---|---|---|---|",
    ]
    for row in found["steps"]:
        cells = [f"{row['steps']:,}" if "steps" in row else "", f"{row['hours']:.1f}", f"{row['hours'] * gpus:.0f}"]
        cells += [f"{row[key]:.0f}" if key in row else "" for key in ("gpu_gib", "disk_gib")]
        lines.append(f"| {row['step']} | {' | '.join(cells)} |")
    total = sum(row["hours"] for row in found["steps"])
    return "\n".join([*lines, f"| all |  | {total:.1f} | {total * gpus:.0f} |  |  |"])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=ROOT / "docs/run_7b/costs.json")
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument(
        "--peak_tflops", type=float, default=989, help="Of a GPU in bfloat16: 989 of an H100, 312 of an A100."
    )
    parser.add_argument("--utilisation", type=float, default=0.3, help="The part of it that is reached: an assumption.")
    parser.add_argument("--pairs", type=int, default=190_000, help="Skywork-VL Reward, section 3.")
    parser.add_argument("--image_pairs", type=int, default=133_000, help="Some 70 % of them.")
    parser.add_argument("--batch", type=int, default=64, help="Pairs to a step of the reward model.")
    parser.add_argument("--prompts", type=int, default=300_000, help="Each makes a pair for MPO.")
    parser.add_argument("--mpo_batch", type=int, default=256, help="Pairs to a step of MPO.")
    parser.add_argument("--samples", type=int, default=32, help="Responses to a prompt.")
    parser.add_argument("--image_tokens", type=int, default=1280)
    parser.add_argument("--text_tokens", type=int, default=150, help="Of a prompt, without its image.")
    parser.add_argument("--response_tokens", type=int, default=300, help="MMPR's means are 171 to 351.")
    parser.add_argument("--sampled_per_second", type=float, default=2000, help="Tokens a GPU samples: an assumption.")
    parser.add_argument("--scored_per_second", type=float, default=10000, help="Tokens a GPU scores: an assumption.")
    args = parser.parse_args()
    assumed = {key: value for key, value in vars(args).items() if key != "output"}
    found = {"assumed": assumed, "steps": costs(args)}
    print(table(found))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(found, indent=1) + "\n")
    page = ROOT / "docs/run_7b.md"
    if args.output == ROOT / "docs/run_7b/costs.json":
        page = ROOT / "docs/run_7b.md"
        start, end = "<!-- costs -->\n", "\n<!-- end of costs -->"
        before, after = page.read_text().split(start)[0], page.read_text().split(end)[1]
        page.write_text(before + start + table(found) + end + after)


if __name__ == "__main__":
    main()
