"""
The LoRA and QLoRA recipes of `recipes/configs/qwen2_5_vl_7b`, as they stand, on a whole Qwen2.5-VL-7B with random
weights: the memory that they say they need of a GPU, beside what they take of it.

```bash
python bench/whole_model.py --output docs/gpu/whole_model.json     # a GPU of 80 GB, 20 GB of disk
```

Each takes steps of one pair, whose two rows have `max_length` tokens, 1,280 of them of an image.
"""

import argparse
import itertools
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from memory import GIB, ROOT, TOKEN, run_measured, write_pairs
from rehearsal import IMAGES, PROMPT, real_settings
from transformers import AutoModelForImageTextToText, Qwen2_5_VLConfig

from vl_reward.tiny.processor import build_processor


CASES = [f"{recipe}_{way}" for way in ("lora", "qlora") for recipe in ("reward_stage1", "mpo")]


def write_model(folder: Path, size: str) -> None:
    processor = build_processor()
    config = Qwen2_5_VLConfig.from_dict(real_settings(size, processor.tokenizer))
    with torch.device("cuda"):
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def measure(case: str, length: int, model: Path, folder: Path, attention: str, steps: int) -> dict:
    """A recipe's YAML with the model, the rows and few steps in the place of its own."""
    width, height = IMAGES[1280]
    write_pairs(folder / "pairs", 2 * steps, IMAGES[1280], length - width * height - PROMPT)
    options = {
        "model_name_or_path": model,
        "dataset_name": folder / "pairs",
        "output_dir": folder / "out",
        "max_steps": steps,
        "max_length": length,
        "max_pixels": width * height * TOKEN**2,
        "gradient_accumulation_steps": 1,
        "dataloader_num_workers": 0,
        "attn_implementation": attention,
        "save_strategy": "no",
        "learning_rate": 1e-9,  # a random policy would leave its reference at once, which MPO refuses
    }
    recipe = case.rsplit("_", 1)[0]
    command = [str(ROOT / f"recipes/{recipe}.py"), "--config", str(ROOT / f"recipes/configs/qwen2_5_vl_7b/{case}.yaml")]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    row = {"case": case, "max_length": length, "attention": attention}
    try:
        found = run_measured(folder / "measured.json", command, [sys.executable])
    except RuntimeError as error:
        return row | {"error": str(error)[-600:]}
    return row | {key: found[key] for key in ("estimated", "measured")}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="The rows are written here, as JSON.")
    parser.add_argument("--size", choices=["3b", "7b"], default="7b")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=CASES)
    parser.add_argument("--lengths", type=int, nargs="+", default=[2048, 8192])
    parser.add_argument("--attention", default="sdpa")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1, help="So many runs at a time, where all fit the GPU.")
    args = parser.parse_args()
    properties = torch.cuda.get_device_properties(0)
    machine = {"gpu": properties.name, "gib": properties.total_memory / GIB, "torch": torch.__version__}
    rows = []
    with tempfile.TemporaryDirectory() as name:
        model = Path(name) / "model"
        write_model(model, args.size)
        torch.cuda.empty_cache()
        runs = list(itertools.product(args.cases, args.lengths))

        def run(number: int) -> dict:
            case, length = runs[number]
            folder = Path(name) / str(number)
            return measure(case, length, model, folder, args.attention, args.steps)

        with ThreadPoolExecutor(args.jobs) as pool:
            for row in pool.map(run, range(len(runs))):
                rows.append({"size": args.size} | row)
                print(*rows[-1].values(), sep="  ", flush=True)
                if args.output is not None:
                    args.output.parent.mkdir(parents=True, exist_ok=True)
                    args.output.write_text(json.dumps({**machine, "rows": rows}, indent=1) + "\n")
    if failed := sum("error" in row for row in rows):
        raise SystemExit(f"{failed} of {len(rows)} runs failed.")


if __name__ == "__main__":
    main()
