"""
MPO's step beside ms-swift 4.6, the leanest other trainer of it. Its versions of TRL and transformers are others, so it
has an environment of its own. Both train on the same rows, weights and settings, in turns, each by its own command.

```bash
python3 -m venv .venv-swift
.venv-swift/bin/pip install torch==2.14.1 torchvision==0.29.1 ms-swift==4.6.0 transformers==5.19.0 qwen-vl-utils
python bench/ms_swift.py --swift_python .venv-swift/bin/python
```

The vocabulary is Qwen's, decoder and vision tower the embedded world's, as in `bench/peers.py`. The reference is live.
ms-swift's vision tower is frozen, as it is by default; `recipes/mpo.py` trains it. Seconds are the CPU's in
`Trainer.training_step`: forward and backward passes. A run gives the median of its steps without the first two, and a
cell the lowest of its runs. Memory is the peak of the steps, optimizer included, above what was there before the first.
The first losses have to be equal. Writes `ms_swift.json` and the table of `docs/peers.md`.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from datasets import Dataset
from peers import PAGE, QUESTION, TOKEN, VOCABULARY, build_model, draw, preference_rows, put_between
from transformers import Qwen2_5_VLProcessor, Qwen2Tokenizer

from vl_reward.tiny.preferences import PREFERENCE_FEATURES
from vl_reward.tiny.processor import build_processor


ROOT = Path(__file__).parent.parent
CELLS = [(2, 256, 8), (2, 256, 64), (2, 256, 256), (2, 1280, 64), (16, 256, 8)]  # pairs a step, visual, response
STEPS = 6
FIRST_SPECIAL = 151_643  # of Qwen's tokens, which follow
SPECIAL_TOKENS = ["endoftext", "im_start", "im_end", "object_ref_start", "object_ref_end", "box_start", "box_end"]
SPECIAL_TOKENS += ["quad_start", "quad_end", "vision_start", "vision_end", "vision_pad", "image_pad", "video_pad"]
SPECIAL_TOKENS = [f"<|{name}|>" for name in SPECIAL_TOKENS]
# As in bench/serving.py: else most of the time goes into pages that are asked for again.
ENVIRONMENT = {**os.environ, "MALLOC_TRIM_THRESHOLD_": str(2**33), "MALLOC_MMAP_THRESHOLD_": str(2**32)}
ENVIRONMENT |= {"MALLOC_TOP_PAD_": str(2**29), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
ENVIRONMENT |= {"USE_HF": "1"}  # ms-swift looks at another hub otherwise
ENVIRONMENT |= {"CUDA_VISIBLE_DEVICES": "", "MAX_PIXELS": str(1280 * TOKEN**2), "PYTHONPATH": str(ROOT / "src")}
COMMON = {
    "loss_type": ["sigmoid", "bco_pair", "sft"],
    "loss_weights": ["0.8", "0.2", "1.0"],
    "max_steps": [str(STEPS)],
    "learning_rate": ["1e-6"],
    "bf16": ["false"],
    "gradient_checkpointing": ["false"],
    "gradient_accumulation_steps": ["1"],
    "dataloader_num_workers": ["0"],
    "report_to": ["none"],
    "save_strategy": ["no"],
    "max_length": ["4096"],
}


def build_processor_with_ids_of_qwen() -> Qwen2_5_VLProcessor:
    """The embedded world's processor, whose special tokens have the numbers that ms-swift takes for granted."""
    processor = build_processor()
    bpe = json.loads(processor.tokenizer.backend_tokenizer.to_str())["model"]
    words = [word for word in sorted(bpe["vocab"], key=bpe["vocab"].get) if not word.startswith("<|")]
    words += [f"unused {i}" for i in range(len(words), FIRST_SPECIAL)]
    tokenizer = Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate(words)},
        merges=[tuple(merge) for merge in bpe["merges"]],
        eos_token=SPECIAL_TOKENS[0],
        pad_token=SPECIAL_TOKENS[0],
    )
    tokenizer.add_tokens(SPECIAL_TOKENS, special_tokens=True)
    tokenizer.eos_token = "<|im_end|>"
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == 151_655
    return Qwen2_5_VLProcessor(
        image_processor=processor.image_processor,
        tokenizer=tokenizer,
        video_processor=processor.video_processor,
        chat_template=processor.chat_template,
    )


def write_rows(folder: Path, pairs: int, visual: int, response: int) -> None:
    """The rows as each of them reads them."""
    number = pairs * STEPS
    Dataset.from_list(preference_rows(number, visual, response), PREFERENCE_FEATURES).save_to_disk(folder / "ours")
    with open(folder / "swift.jsonl", "w") as file:
        for i in range(number):
            image, (chosen, rejected) = draw(visual, response, i, 2)
            image.save(folder / f"{i}.png")
            turns = [{"role": "user", "content": f"<image>{QUESTION}"}, {"role": "assistant", "content": chosen}]
            row = {"messages": turns, "rejected_response": rejected, "images": [str(folder / f"{i}.png")]}
            file.write(json.dumps(row) + "\n")


def commands(folder: Path, rows: Path, pairs: int, swift_python: str) -> dict[str, list[str]]:
    """Each one's command, by its name in the table."""
    common = COMMON | {"per_device_train_batch_size": [str(pairs)], "output_dir": [str(rows / "out")]}
    ours = common | {
        "model_name_or_path": [str(folder / "model")],
        "dataset_name": [str(rows / "ours")],
        "train_sampling_strategy": ["sequential"],
        "use_cpu": ["true"],
        "attn_implementation": ["sdpa"],
    }
    swift = common | {
        "rlhf_type": ["dpo"],
        "model": [str(folder / "model")],
        "model_type": ["qwen2_5_vl"],
        "template": ["qwen2_5_vl"],
        "dataset": [str(rows / "swift.jsonl")],
        "tuner_type": ["full"],
        "freeze_vit": ["true"],
        "freeze_aligner": ["false"],
        "split_dataset_ratio": ["0"],
        "dataset_shuffle": ["false"],
        "train_dataloader_shuffle": ["false"],
        "torch_dtype": ["float32"],
        "attn_impl": ["sdpa"],
    }

    def command(python: str, script: str, options: dict[str, list[str]]) -> list[str]:
        words = [word for name, values in options.items() for word in (f"--{name}", *values)]
        return [python, str(ROOT / "bench/timed_steps.py"), str(rows / "steps.json"), script, *words]

    recipe = str(ROOT / "recipes/mpo.py")
    return {
        "ms-swift": command(swift_python, "swift.pipelines:rlhf_main", swift),
        "ours": command(sys.executable, recipe, ours),
        "ours, ahead": command(sys.executable, recipe, ours | {"precompute_ref_log_probs": ["true"]}),
    }


def run(command: list[str], rows: Path) -> dict:
    ended = subprocess.run(command, env=ENVIRONMENT, cwd=rows, capture_output=True, text=True)
    assert ended.returncode == 0, f"{command}\n{ended.stdout[-2000:]}\n{ended.stderr[-4000:]}"
    return json.loads((rows / "steps.json").read_text())


def measure(folder: Path, cell: tuple[int, int, int], rounds: int, swift_python: str) -> dict:
    pairs, visual, response = cell
    rows = folder / "_".join(map(str, cell))
    rows.mkdir()
    write_rows(rows, pairs, visual, response)
    ways: dict[str, list[dict]] = {}
    for _ in range(rounds):
        for name, command in commands(folder, rows, pairs, swift_python).items():
            ways.setdefault(name, []).append(run(command, rows))
    losses = {name: runs[0]["steps"][0]["loss"] for name, runs in ways.items()}
    assert max(losses.values()) - min(losses.values()) < 1e-3, f"{cell}: the first losses differ: {losses}"
    seconds = {
        name: min(statistics.median(step["cpu_seconds"] for step in one["steps"][2:]) for one in runs)
        for name, runs in ways.items()
    }
    peaks = {name: min(one["peak_mib"] for one in runs) for name, runs in ways.items()}
    sizes = {"pairs": pairs, "visual_tokens": visual, "response_tokens": response}
    return {**sizes, "cpu_seconds": seconds, "peak_mib": peaks, "first_loss": losses}


def table(cells: list[dict]) -> str:
    heads = ["pairs a step", "visual tokens", "response", "way", "CPU s", "ratio", "peak MiB", "ratio"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cell in cells:
        seconds, peaks = cell["cpu_seconds"], cell["peak_mib"]
        for way in seconds:
            lines.append(
                f"| {cell['pairs']} | {cell['visual_tokens']:,} | {cell['response_tokens']} | {way} "
                f"| {seconds[way]:.2f} | {seconds['ms-swift'] / seconds[way]:.1f} "
                f"| {peaks[way]:,.0f} | {peaks['ms-swift'] / peaks[way]:.1f} |"
            )
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swift_python", required=True, help="The Python of the environment that has ms-swift.")
    parser.add_argument("--output_dir", type=Path, default=PAGE.with_suffix(""))
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder) / "model", VOCABULARY, build_processor_with_ids_of_qwen())
        cells = [measure(Path(folder), cell, args.rounds, str(Path(args.swift_python).absolute())) for cell in CELLS]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "ms_swift.json").write_text(json.dumps(cells, indent=1) + "\n")
    if args.output_dir == PAGE.with_suffix(""):
        PAGE.write_text(put_between(PAGE.read_text(), "ms-swift", table(cells)))
    print(table(cells))


if __name__ == "__main__":
    main()
