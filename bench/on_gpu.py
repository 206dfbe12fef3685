"""
The recipes on one GPU, against one process on a CPU: each cell of

    {reward stage 2, MPO} x {one process, ZeRO-2, ZeRO-3, FSDP2} x {full, LoRA} x {float32, bfloat16}
    {reward stage 2, MPO} x {one process} x {QLoRA} x {float32, bfloat16}
    {GRPO} x {one process, ZeRO-2, ZeRO-3, FSDP2} x {full} x {bfloat16}
    {evaluate, sample, label}

runs a recipe with the rows of `bench/distributed.py`: one image, several, none. Losses, gradient norms, margins and
scores have to be the CPU's: in float32 to rounding, in bfloat16 to bfloat16's. GRPO draws other samples on a GPU, so it
has to end, with numbers.

python bench/on_gpu.py --output_dir docs/gpu      # three minutes with 16 cores

Writes results.json and table.md, and ends with an error where a cell differs.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from distributed import ALONE, ONLY_SCORED, Cell, arguments_of, difference, measured, prepare
from launches import CONFIGS, ENVIRONMENT, ROOT, gpu_launcher


LAUNCHES = [ALONE, *(launch for launch in CONFIGS if launch != "DDP")]
# Three steps of training, whose differences grow. A product of 4-bit weights has its own kernel on a GPU.
TOLERANCE = {("full", False): 2e-3, ("LoRA", False): 2e-3, ("QLoRA", False): 5e-2}
BFLOAT16_TOLERANCE = 0.2  # DeepSpeed computes with weights in bfloat16, which lose most of a small step


@dataclass(frozen=True)
class GPUCell:
    """One run: a recipe, how it is launched, which weights train, and whether in bfloat16."""

    recipe: str
    launch: str
    weights: str
    bf16: bool

    @property
    def on_cpu(self) -> Cell:
        return Cell(self.recipe, ALONE, True, self.weights)

    @property
    def tolerance(self) -> float:
        return BFLOAT16_TOLERANCE if self.bf16 else TOLERANCE[self.weights, False]


def all_cells() -> list[GPUCell]:
    pairs = ("reward_stage2", "mpo")
    trained = itertools.chain(
        itertools.product(pairs, LAUNCHES, ("full", "LoRA"), (True, False)),
        itertools.product(pairs, (ALONE,), ("QLoRA",), (True, False)),
        itertools.product(("grpo",), LAUNCHES, ("full",), (True,)),
    )
    return [GPUCell(*cell) for cell in trained] + [GPUCell(recipe, ALONE, "full", False) for recipe in ONLY_SCORED]


def run(cell: GPUCell | Cell, folder: Path) -> dict:
    """What a cell measured, or the last line of its error."""
    on_gpu = isinstance(cell, GPUCell)
    plain = cell.on_cpu if on_gpu else cell
    name = "_".join(map(str, asdict(cell).values())).replace(" ", "_")
    out = folder / "runs" / ("gpu" if on_gpu else "cpu") / name
    # By default a GPU rounds a convolution's float32 to 11 bits.
    command, environment = [sys.executable], ENVIRONMENT | {"NVIDIA_TF32_OVERRIDE": "0"}
    environment |= {} if on_gpu else {"CUDA_VISIBLE_DEVICES": ""}
    arguments = arguments_of(plain, folder, out)
    if on_gpu and cell.launch != ALONE:
        command = gpu_launcher(CONFIGS[cell.launch], out, cell.bf16)
    if on_gpu and "--use_cpu" in arguments:
        place = arguments.index("--use_cpu")
        arguments[place : place + 2] = ["--bf16", str(cell.bf16).lower()]
    start = time.monotonic()
    command += [str(ROOT / f"recipes/{plain.recipe}.py"), *arguments]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240)
    seconds = round(time.monotonic() - start, 1)
    if result.returncode:
        (out.parent / f"{name}.log").write_text(result.stdout + result.stderr)
        lines = [line for line in result.stderr.splitlines() if "Error: " in line and "ChildFailed" not in line]
        return {"seconds": seconds, "error": (lines or result.stderr.splitlines()[-3:] or ["no message"])[-1].strip()}
    return {"seconds": seconds, "numbers": measured(plain, out)}


def verdict(cell: GPUCell, result: dict, expected: dict | None) -> str:
    if "error" in result:
        refused = "ValueError: " in result["error"]
        return f"{'refused' if refused else 'FAILED'}: {result['error'].split('Error: ', 1)[-1]}"
    numbers = result["numbers"]
    if not numbers or not all(map(math.isfinite, numbers)):
        return f"FAILED: {numbers}"
    if expected is None:
        return "ran"
    wanted = expected.get("numbers", [])
    if len(numbers) != len(wanted):
        return f"FAILED: {len(numbers)} numbers instead of {len(wanted)} ({expected.get('error')})"
    gap = difference(numbers, wanted)
    return f"{gap:.0e}" if gap <= cell.tolerance else f"FAILED: {gap:.1e} apart"


def table(results: list[dict]) -> str:
    """A row per recipe, weights and type; a column per launch. A number is the largest difference to the CPU's."""
    rows = {}
    for cell in results:
        name = (cell["recipe"], cell["weights"], "bfloat16" if cell["bf16"] else "float32")
        rows.setdefault(name, {})[cell["launch"]] = cell["verdict"]
    lines = ["| recipe | weights | products | " + " | ".join(LAUNCHES) + " |", "|---" * (3 + len(LAUNCHES)) + "|"]
    for name, verdicts in rows.items():
        lines.append("| " + " | ".join([*name, *(verdicts.get(launch, "") for launch in LAUNCHES)]) + " |")
    return "\n".join(lines) + "\n"


def write(results: list[dict], output_dir: Path) -> None:
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    output_dir.mkdir(parents=True, exist_ok=True)
    (output_dir / "results.json").write_text(json.dumps({**machine, "cells": results}, indent=1) + "\n")
    (output_dir / "table.md").write_text(table(results))


def main(arguments):
    wanted = [cell for cell in all_cells() if arguments.recipe in (None, cell.recipe)]
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.world or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "candidates").exists():
            prepare(folder)
        alone = dict.fromkeys(cell.on_cpu for cell in wanted if cell.recipe != "grpo")
        with ThreadPoolExecutor(arguments.jobs) as pool:
            expected = dict(zip(alone, pool.map(lambda cell: run(cell, folder), alone), strict=True))
            results = []
            for cell, result in zip(wanted, pool.map(lambda cell: run(cell, folder), wanted), strict=True):
                told = verdict(cell, result, expected.get(cell.on_cpu))
                results.append({**asdict(cell), "verdict": told, "seconds": result["seconds"]})
                print(*results[-1].values(), sep="  ", flush=True)
                write(results, arguments.output_dir)
    print(table(results))
    if failed := [cell for cell in results if cell["verdict"].startswith("FAILED")]:
        raise SystemExit(f"{len(failed)} of {len(results)} cells failed.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=["reward_stage2", "mpo", "grpo", *ONLY_SCORED])
    parser.add_argument("--jobs", type=int, default=6, help="So many runs at a time; each takes a core and 1 GB.")
    parser.add_argument("--world", type=Path, help="Keep models, data and runs here.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/on_gpu"))
    main(parser.parse_args())
