"""
A dress rehearsal at real shapes: every training step of this project, on models as wide as Qwen2.5-VL 3B and 7B.

```bash
python bench/rehearsal.py --output docs/memory/rehearsal.json    # both models, on a CPU of 24 GB or a GPU
```

The models have the real widths, heads and vocabularies, and two layers of the decoder and of the vision tower, of which
one attends to windows and one to the whole image. Their weights are random. They are saved as the hub has them, in
bfloat16, under its names and in several files. Then, each in a process of its own: a reward model is loaded from them;
stage 1 takes a step, is resumed for another, and goes into stage 2; MPO takes two steps, and so does LoRA; the result
scores. Images have 1,280 tokens. A step that fails ends the rehearsal.

Where bfloat16 is more than five times slower than float32, it runs with images of 64 tokens, and float32 with 1,280.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from memory import DOCS, ENVIRONMENT, GIB, ROOT, TOKEN, run_measured, write_pairs
from PIL import Image
from safetensors import safe_open
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from vl_reward import Qwen2_5_VLForSequenceClassification, RewardScorer
from vl_reward.tiny.architectures import build_config
from vl_reward.tiny.processor import build_processor


RESPONSE, PROMPT = 64, 128  # tokens of a response, and of a prompt beside its image
IMAGES = {1280: (40, 32), 64: (8, 8)}  # tokens to the sides


def real_settings(size: str, tokenizer) -> dict:
    """The hub's config with the special tokens of the embedded world's tokenizer."""
    given = json.loads((DOCS / f"qwen2_5_vl_{size}.json").read_text())
    ids = {key: value for key, value in build_config(tokenizer).to_dict().items() if key.endswith("_token_id")}
    ids |= {"eos_token_id": tokenizer.eos_token_id, "bos_token_id": None, "pad_token_id": tokenizer.pad_token_id}
    return given | ids


def cut_config(size: str, narrower: int, tokenizer) -> Qwen2_5_VLConfig:
    """The real config with two layers."""
    given = real_settings(size, tokenizer) | {"num_hidden_layers": 2}
    given["vision_config"] |= {"depth": 2, "fullatt_block_indexes": [1]}
    if narrower > 1:  # fewer heads of the real width
        heads = given["num_attention_heads"] // narrower
        given |= {"num_attention_heads": heads, "num_key_value_heads": 1, "hidden_size": 128 * heads}
        given |= {key: given[key] // narrower for key in ("intermediate_size", "vocab_size")}
        vision = {"num_heads": 2, "hidden_size": 160, "intermediate_size": 428, "out_hidden_size": 128 * heads}
        given["vision_config"] |= vision
    return Qwen2_5_VLConfig.from_dict(given)


@dataclass
class Rehearsal:
    """
    Args:
        size (`str`):
            `"3b"` or `"7b"`.
        folder (`Path`):
            All is written here.
        dtype (`str`):
            Of the weights. In bfloat16 matrix products are in bfloat16 too.
        image_tokens (`int`):
            1,280 or 64.
        narrower (`int`, *optional*, defaults to 1):
            Divides the widths and the vocabulary, to try the code.
    """

    size: str
    folder: Path
    dtype: str
    image_tokens: int
    narrower: int = 1

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint"

    def steps(self) -> dict[str, Callable[[], dict]]:
        stage1 = functools.partial(self.recipe, "reward_stage1", self.checkpoint, "stage1", save_strategy="steps")
        return {
            "save the checkpoint": self.write,
            "load": functools.partial(self.own_process, "load"),
            "stage 1": functools.partial(stage1, save_steps=1),
            "stage 1, resumed": functools.partial(stage1, save_steps=1, max_steps=2, resume_from_checkpoint=True),
            "stage 2": functools.partial(self.recipe, "reward_stage2", self.folder / "stage1", "stage2"),
            # The first step makes the optimizer's states; from the second on they are there beside the activations.
            "MPO, two steps": functools.partial(self.recipe, "mpo", self.checkpoint, "mpo", max_steps=2),
            "LoRA, two steps": functools.partial(
                self.recipe, "reward_stage1", self.checkpoint, "lora", max_steps=2, use_peft=True
            ),
            "score": functools.partial(self.own_process, "score"),
        }

    def write(self) -> dict:
        processor = build_processor()
        config = cut_config(self.size, self.narrower, processor.tokenizer)
        torch.manual_seed(0)
        torch.set_default_dtype(torch.bfloat16)
        model = Qwen2_5_VLForConditionalGeneration(config)
        torch.set_default_dtype(torch.float32)
        numel = model.num_parameters()
        model.save_pretrained(self.checkpoint, max_shard_size=2 * numel // 3)  # bytes, of which a weight takes two
        processor.save_pretrained(self.checkpoint)
        write_pairs(self.folder / "pairs", 2, IMAGES[self.image_tokens], RESPONSE)
        files = sorted(path.name for path in self.checkpoint.glob("model-*.safetensors"))
        return {"parameters": numel, "files": len(files)}

    def recipe(self, name: str, model: Path, output: str, **options) -> dict:
        """A step of a recipe, with the memory that it said it needs and that it took."""
        is_bf16 = self.dtype == "bfloat16"
        width, height = IMAGES[self.image_tokens]
        options = {
            "model_name_or_path": model,
            "dataset_name": self.folder / "pairs",
            "output_dir": self.folder / output,
            "max_steps": 1,
            "save_total_limit": 1,
            "per_device_train_batch_size": 1,
            "per_device_eval_batch_size": 1,
            "max_length": self.image_tokens + PROMPT + RESPONSE,
            "max_pixels": width * height * TOKEN**2,
            "dataloader_num_workers": 0,
            "gradient_checkpointing": True,
            "warmup_steps": 0,
            "dtype": self.dtype,
            "bf16": is_bf16,
            "optim": "adamw_torch_fused" if is_bf16 else "sgd",  # 16 bytes a weight would be 26 GB of the 7B model's
            "use_cpu": not torch.cuda.is_available(),
            **options,
        }
        arguments = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        config = ROOT / f"recipes/configs/tiny/{name}.yaml"
        command = [str(ROOT / f"recipes/{name}.py"), "--config", str(config), *arguments]
        row = run_measured(self.folder / "measured.json", command, [sys.executable], to_end=True)
        return {key: row[key] for key in ("estimated", "measured", "process", "cpu_seconds")}

    def own_process(self, name: str) -> dict:
        """One of this class's methods in a process of its own."""
        settings = json.dumps({**vars(self), "folder": str(self.folder)})
        command = [sys.executable, __file__, "--step", name, "--settings", settings]
        environment = {**os.environ, **ENVIRONMENT, "PYTHONPATH": str(ROOT / "src")}
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        if result.returncode:
            raise RuntimeError(f"{name} failed:\n{result.stdout[-3000:]}{result.stderr[-3000:]}")
        return json.loads(result.stdout.splitlines()[-1])

    def load(self) -> dict:
        """The backbone is what the files hold, and the head is new, in float32."""
        model = Qwen2_5_VLForSequenceClassification.from_pretrained(self.checkpoint, dtype=self.dtype)
        weights, compared = model.state_dict(), 0
        for path in sorted(self.checkpoint.glob("*.safetensors")):
            with safe_open(path, "pt") as tensors:
                for name in tensors.keys():
                    own = name.replace("visual.", "model.visual.", 1) if name.startswith("visual.") else name
                    own = own.replace("model.", "model.language_model.", 1) if name.startswith("model.") else own
                    if name != "lm_head.weight":
                        if not torch.equal(weights.pop(own), tensors.get_tensor(name).to(getattr(torch, self.dtype))):
                            raise ValueError(f"{name} in {path.name} is not the model's {own}.")
                        compared += 1
        if list(weights) != ["score.weight"] or weights["score.weight"].dtype != torch.float32:
            raise ValueError(f"The files do not hold {list(weights)}; only a head in float32 is to be new.")
        return {"compared": compared}

    def score(self) -> dict:
        scorer = RewardScorer.from_pretrained(str(self.folder / "stage2"), dtype=self.dtype)
        image = Image.new("RGB", tuple(TOKEN * side for side in IMAGES[self.image_tokens]), (0, 128, 255))
        blank = Image.new("RGB", image.size, "white")
        images, texts = [[image], [image], [blank]], ["1" * RESPONSE, "2" * RESPONSE, "1" * RESPONSE]
        scores = scorer(prompts=["0" * 64] * 3, completions=texts, images=images)
        if not torch.tensor(scores).isfinite().all() or len({*scores}) != 3:
            raise ValueError(f"Two responses, and one to another image, have the scores {scores}.")
        return {"scores": scores}

    def run(self) -> list[dict]:
        rows = []
        for name, step in self.steps().items():
            before = time.perf_counter()
            row = {"model": self.size, "dtype": self.dtype, "image_tokens": self.image_tokens, "step": name} | step()
            rows.append(row | {"seconds": round(time.perf_counter() - before, 1)})
            print(
                " ".join(f"{value:.2f}" if isinstance(value, float) else str(value) for value in rows[-1].values()),
                flush=True,
            )
        return rows


def bfloat16_slowdown() -> float:
    """How much longer a matrix product takes in bfloat16 than in float32, on the CPU or the GPU."""
    device, seconds = "cuda" if torch.cuda.is_available() else "cpu", []
    for dtype in (torch.float32, torch.bfloat16):
        factors = [torch.ones(512, 512, dtype=dtype, device=device) for _ in range(2)]
        torch.matmul(*factors)
        before = time.perf_counter()
        torch.matmul(*factors).sum().item()
        seconds.append(time.perf_counter() - before)
    return seconds[1] / seconds[0]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["3b", "7b"], help="These models are rehearsed.")
    parser.add_argument("--output", type=Path, help="The table is written here, as JSON.")
    parser.add_argument("--step", choices=["load", "score"], help="A step that the rehearsal starts by itself.")
    parser.add_argument("--settings", help="The rehearsal that it is a step of.")
    args = parser.parse_args()
    if args.step is not None:
        settings = json.loads(args.settings)
        rehearsal = Rehearsal(**settings | {"folder": Path(settings["folder"])})
        result = rehearsal.load() if args.step == "load" else rehearsal.score()
        with open("/proc/self/status") as status:
            peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        print(json.dumps(result | {"process": peak * 1024 / GIB}))
        return

    slowdown, rows = bfloat16_slowdown(), []
    passes = [("bfloat16", 1280)] if slowdown < 5 else [("bfloat16", 64), ("float32", 1280)]
    print(f"bfloat16 takes {slowdown:.1f} times as long as float32.", flush=True)
    for size in args.sizes:
        for dtype, image_tokens in passes:
            with tempfile.TemporaryDirectory() as folder:
                rows += Rehearsal(size, Path(folder), dtype, image_tokens).run()
    if args.output is not None:
        args.output.write_text(json.dumps({"bfloat16_slowdown": slowdown, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
