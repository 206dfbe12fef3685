"""
What `--estimate true` says of a run's peak memory, beside what the run takes.

```bash
python bench/memory.py measure    # writes docs/memory/measured.json: some twenty minutes on 2 cores
python bench/memory.py gpus       # writes docs/memory/gpus.json: Qwen2.5-VL 3B, 7B and Qwen3-VL 8B on 24, 40 and 80 GB
python bench/memory.py table      # puts both into docs/memory.md
```

A case is a recipe on a random Qwen2.5-VL of some 60 M parameters and pairs of 400 to 900 tokens a row. It runs twice:
with `--estimate true`, and for two steps. The kernel measures the second run: the largest resident memory while the
trainer trains, less what was resident before the model was loaded. The allocator gives memory back at once, so what is
resident is in use. On a GPU it is PyTorch's own peak.
"""

import argparse
import ast
import dataclasses
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
import yaml
from datasets import Dataset, DatasetDict
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Trainer,
)

from vl_reward import RecipeParser
from vl_reward.memory.estimate import MemoryEstimate
from vl_reward.memory.sharding import Sharding
from vl_reward.tiny.architectures import build_config
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png
from vl_reward.tiny.processor import build_processor


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs/memory"
GIB = 2**30
TOKEN = 28  # pixels to a side
# Blocks of more than 64 KiB are mapped by themselves, and given back when they are freed.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "HF_HUB_OFFLINE": "1"}


def medium_config(vocabulary: int, width: int, layers: int, tokenizer) -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's architecture with the 7B model's proportions of MLP, heads and vision tower."""
    config = build_config(tokenizer)
    text = {"vocab_size": vocabulary, "hidden_size": width, "intermediate_size": 5 * width, "num_attention_heads": 8}
    text |= {"num_key_value_heads": 2, "num_hidden_layers": layers, "max_position_embeddings": 8192}
    section = [width // 64, 3 * width // 128, 3 * width // 128]
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": section}
    vision = {"depth": 3, "hidden_size": 320, "intermediate_size": 864, "num_heads": 5, "out_hidden_size": width}
    given = config.to_dict()
    text = {**given["text_config"], **text, "layer_types": ["full_attention"] * layers}
    vision = {**given["vision_config"], **vision, "window_size": 112}
    return Qwen2_5_VLConfig.from_dict({**given, "text_config": text, "vision_config": vision})


def write_pairs(folder: Path, pairs: int, image: tuple[int, int], response: int) -> None:
    """Pairs of an image of so many tokens to its sides, 128 tokens of a prompt's text, and `response` other tokens."""
    template = 28  # tokens of the chat template around a prompt and its image
    rows = [
        {
            "id": str(number),
            "source": "drawn",
            "prompt": [{"role": "user", "content": "0" * (128 - template)}],
            "images": [Image.new("RGB", tuple(TOKEN * side for side in image), (number, 128, 255))],
            # A response ends with `<|im_end|>` and a newline.
            "chosen": [{"role": "assistant", "content": "1" * (response - 2)}],
            "rejected": [{"role": "assistant", "content": "2" * (response - 2)}],
        }
        for number in range(pairs)
    ]
    split = Dataset.from_list(as_png(rows), PREFERENCE_FEATURES)
    DatasetDict({"train": split, "test": split.select([0])}).save_to_disk(folder)


@dataclass
class Case:
    """A run to estimate and to measure: a recipe with its options on a model and pairs of a size."""

    name: str
    recipe: str
    options: dict = field(default_factory=dict)
    vocabulary: int = 32768
    width: int = 512
    layers: int = 6
    image_side: int = 12
    response: int = 512
    pairs: int = 2
    processes: int = 1
    zero3: bool = False

    def write(self, folder: Path) -> None:
        processor = build_processor()
        torch.manual_seed(0)
        config = medium_config(self.vocabulary, self.width, self.layers, processor.tokenizer)
        Qwen2_5_VLForConditionalGeneration(config).save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        write_pairs(folder / "pairs", 2 * self.pairs * self.processes, (self.image_side,) * 2, self.response)

    def command(self, folder: Path) -> list[str]:
        options = {
            "model_name_or_path": folder / "model",
            "dataset_name": folder / "pairs",
            "output_dir": folder / "out",
            "per_device_train_batch_size": self.pairs,
            "per_device_eval_batch_size": 1,
            "max_steps": 2,
            "max_length": self.image_side**2 + 128 + self.response,
            "max_pixels": (self.image_side * TOKEN) ** 2,
            "dataloader_num_workers": 0,
            "use_cpu": not torch.cuda.is_available(),
            **self.options,
        }
        arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
        config = ROOT / f"recipes/configs/tiny/{self.recipe}.yaml"
        return [str(ROOT / f"recipes/{self.recipe}.py"), "--config", str(config), *arguments]

    def launcher(self, folder: Path) -> list[str]:
        if self.processes == 1:
            return [sys.executable]
        settings = yaml.safe_load((ROOT / "accelerate_configs/cpu_2_processes.yaml").read_text())
        if self.zero3:
            auto = ("train_micro_batch_size_per_gpu", "gradient_accumulation_steps", "gradient_clipping")
            # The buffers are in proportion to the model.
            zero = {"stage": 3, "stage3_gather_16bit_weights_on_model_save": True, "reduce_bucket_size": 20_000_000}
            (folder / "zero3.json").write_text(json.dumps({**dict.fromkeys(auto, "auto"), "zero_optimization": zero}))
            settings = yaml.safe_load((ROOT / "accelerate_configs/deepspeed_zero3.yaml").read_text())
            del settings["mixed_precision"]  # accelerate wants all of it in the file
            zero3 = {"deepspeed_config_file": str(folder / "zero3.json"), "zero3_init_flag": True}
            settings |= {"deepspeed_config": zero3}
            settings |= {"num_processes": self.processes, "use_cpu": True}
        (folder / "accelerate.yaml").write_text(yaml.safe_dump(settings))
        config = ["--config_file", str(folder / "accelerate.yaml")]
        return [sys.executable, "-m", "accelerate.commands.launch", *config]

    def run(self, folder: Path) -> dict:
        """Estimate and measure, in GiB."""
        self.write(folder)
        return {
            "name": self.name,
            **run_measured(folder / "measured.json", self.command(folder), self.launcher(folder)),
        }


def run_measured(path: Path, command: list[str], launcher: list[str], to_end: bool = False) -> dict:
    """
    Run a recipe as a process of its own, and return its estimate and what its training took, in GiB, what the whole
    process took at most, and the seconds. It ends after the training, unless it is to go on `to_end`.
    """
    environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
    mode = "run_to_end" if to_end else "run"
    before = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(
            [*launcher, __file__, mode, str(path), *command], env=environment, stdout=said, stderr=said
        )
        _, status, usage = os.wait4(process.pid, 0)
        said.seek(0)
        text = said.read()
    if status:
        raise RuntimeError(f"This failed: {' '.join(command)}\n{text[-6000:]}")
    columns = {
        name.strip(): float(chosen) for name, chosen in re.findall(r"^ *(\w.*?)  +([\d.]+) +[\d.]+$", text, re.M)
    }
    whole = {"process": usage.ru_maxrss / 2**20, "seconds": time.perf_counter() - before}
    return {"estimated": columns["peak"], **json.loads(path.read_text()), **whole, "parts": columns}


def load_recipe(path: Path):
    """A recipe as a module, and the dataclasses that it gives its parser."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    call = next(node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "RecipeParser")
    return module, tuple(vars(module)[name.id] for name in call.args[0].elts)


def resident(name: str) -> int:
    """`VmRSS`, what is resident, or `VmHWM`, the most that was since it was last reset, in bytes."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+) kB", status)[1]) * 1024


def measure(path: Path, recipe: Path, arguments: list[str], to_end: bool) -> None:
    """Run a recipe for its estimate, then up to the end of its training, and write the peak of its memory."""
    module, types = load_recipe(recipe)
    parsed = RecipeParser(types, str(recipe), module.INPUTS).parse_args_and_config(arguments)
    module.main(*parsed[:2], dataclasses.replace(parsed[2], estimate=True))
    train, before = Trainer.train, resident("VmRSS")

    def measured_train(self, *args, **kwargs):
        models = [self.model, vars(self).get("ref_model")]
        for model in models if not (torch.cuda.is_available() or self.is_deepspeed_enabled) else []:
            # A CPU maps weights from their file, and what is never read, as most of a frozen embedding, takes nothing.
            for weight in model.parameters() if model is not None else ():
                weight.data = weight.data.clone()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, see proc(5)
        started = time.process_time()
        train(self, *args, **kwargs)
        spent = time.process_time() - started
        peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident("VmHWM") - before
        if self.args.process_index == 0:
            path.write_text(json.dumps({"measured": peak / GIB, "cpu_seconds": spent}))
        self.accelerator.wait_for_everyone()
        if not to_end:
            os._exit(0)

    Trainer.train = measured_train
    module.main(*parsed)


DEEP = {"layers": 12, "image_side": 16, "pairs": 1}  # the vocabulary is not all
CASES = [
    Case("reward, full", "reward_stage1"),
    Case("reward, full, checkpointing", "reward_stage1", {"gradient_checkpointing": True}),
    Case("reward, full, prefixes not shared", "reward_stage1", {"share_prefixes": False}),
    Case("reward, LoRA", "reward_stage1", {"use_peft": True}),
    Case("reward, LoRA, checkpointing", "reward_stage1", {"use_peft": True, "gradient_checkpointing": True}),
    Case("reward, full, bfloat16 autocast", "reward_stage1", {"bf16": True}, layers=2, image_side=6, response=256),
    Case("MPO, full", "mpo", **DEEP),
    Case("MPO, full, checkpointing", "mpo", {"gradient_checkpointing": True}, **DEEP),
    Case("MPO, full, reference computed before", "mpo", {"precompute_ref_log_probs": True}, **DEEP),
    Case("MPO, LoRA", "mpo", {"use_peft": True}, **DEEP),
    Case("MPO, LoRA, checkpointing", "mpo", {"use_peft": True, "gradient_checkpointing": True}, **DEEP),
    Case("reward, full, 2 processes", "reward_stage1", pairs=1, processes=2),
    Case("reward, full, ZeRO-3 on 2 processes", "reward_stage1", pairs=1, processes=2, zero3=True, layers=12),
    Case("MPO, full, ZeRO-3 on 2 processes", "mpo", pairs=1, processes=2, zero3=True, layers=12),
]
GPUS, GPU_PART = (24, 40, 80), 0.9  # sizes in GB; a run fits that takes this part of one
WAYS = {
    "full, ZeRO-3 on 8 GPUs": ("", [], Sharding("zero3", 8)),
    "LoRA, one GPU": ("_lora", [], Sharding()),
    "QLoRA, one GPU": ("_lora", ["--load_in_4bit", "true"], Sharding()),
}

# By their names in the table: the config of the model, and the folder of the recipes' configs.
MODELS = {
    "Qwen2.5-VL 3B": ("qwen2_5_vl_3b", "qwen2_5_vl_7b"),
    "Qwen2.5-VL 7B": ("qwen2_5_vl_7b", "qwen2_5_vl_7b"),
    "Qwen3-VL 8B": ("qwen3_vl_8b", "qwen3_vl_8b"),
}


def estimate_gpus() -> list[dict]:
    """The configs of the recipes, for three models, two lengths of rows and three ways to train."""
    rows = []
    for size, recipe, way, length in itertools.product(MODELS, ("reward_stage1", "mpo"), WAYS, (2048, 8192)):
        suffix, options, sharding = WAYS[way]
        module, types = load_recipe(ROOT / f"recipes/{recipe}.py")
        model, configs = MODELS[size]
        config = ROOT / f"recipes/configs/{configs}/{recipe}{suffix}.yaml"
        model = ["--model_name_or_path", str(DOCS / f"{model}.json"), "--use_cpu", "true"]
        arguments = ["--config", str(config), *model, "--max_length", str(length), *options]
        _, training_args, model_args = RecipeParser(types, module.__file__, ()).parse_args_and_config(arguments)
        is_reward = recipe != "mpo"
        model_class = AutoModelForSequenceClassification if is_reward else AutoModelForImageTextToText
        freeze = module.freeze if is_reward else None
        estimate = MemoryEstimate(model_class, training_args, model_args, freeze, sharding=sharding, on_gpu=True)
        rows.append({"model": size, "recipe": recipe, "way": way, "max_length": length, "gib": estimate.peak / GIB})
        print(rows[-1], flush=True)
    return rows


def tables() -> dict[str, str]:
    """Markdown of what the two commands wrote."""
    measured = json.loads((DOCS / "measured.json").read_text())
    lines = ["| run | estimated, GiB | measured, GiB | estimated / measured |", "|---|---|---|---|"]
    for row in measured:
        ratio = row["estimated"] / row["measured"]
        lines.append(f"| {row['name']} | {row['estimated']:.2f} | {row['measured']:.2f} | {ratio:.2f} |")
    gpus = [f"| model | recipe | way | `max_length` | GiB per GPU | {' | '.join(f'{size} GB' for size in GPUS)} |"]
    gpus.append("|---" * (5 + len(GPUS)) + "|")
    for row in json.loads((DOCS / "gpus.json").read_text()):
        fits = " | ".join("fits" if row["gib"] <= GPU_PART * size else "" for size in GPUS)
        start = f"| {row['model']} | `{row['recipe']}` | {row['way']} | {row['max_length']:,} "
        gpus.append(f"{start}| {row['gib']:.1f} | {fits} |")
    steps = [
        "| model | step | seconds | estimated, GiB | measured, GiB | whole process, GiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in json.loads((DOCS / "rehearsal.json").read_text())["rows"]:
        sizes = [f"{row[key]:.2f}" if key in row else "" for key in ("estimated", "measured", "process")]
        name = f"{row['model'].upper()}, {row['dtype']}, {row['image_tokens']:,} image tokens"
        steps.append(f"| {name} | {row['step']} | {row['seconds']:.0f} | {' | '.join(sizes)} |")
    return {"measured": "\n".join(lines), "gpus": "\n".join(gpus), "rehearsal": "\n".join(steps)}


def fill(text: str) -> str:
    """Put the tables between their markers."""
    for name, table in tables().items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL)
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = ["measure", "gpus", "table", "run", "run_to_end"]
    parser.add_argument("command", choices=commands, help="The last two are what `measure` and the rehearsal start.")
    parser.add_argument("--only", default="", help="Cases whose name this pattern matches are measured.")
    args, rest = parser.parse_known_args()
    if args.command.startswith("run"):
        measure(Path(rest[0]), Path(rest[1]), rest[2:], args.command == "run_to_end")
    if args.command == "measure":
        rows = []
        for case in CASES:
            if re.search(args.only, case.name):
                with tempfile.TemporaryDirectory() as folder:
                    rows.append(case.run(Path(folder)))
                print(rows[-1], flush=True)
        if not args.only:
            (DOCS / "measured.json").write_text(json.dumps(rows, indent=1) + "\n")
    if args.command == "gpus":
        (DOCS / "gpus.json").write_text(json.dumps(estimate_gpus(), indent=1) + "\n")
    if args.command == "table":
        page = ROOT / "docs/memory.md"
        page.write_text(fill(page.read_text()))


if __name__ == "__main__":
    main()
