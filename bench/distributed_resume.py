"""
Trainings that are stopped and go on in new processes, against those that are not: each cell of

    {reward stage 2, MPO} x {1 process, DDP, ZeRO-2, ZeRO-3, FSDP2} x {full, LoRA, QLoRA, DoRA}

takes four steps, over the end of an epoch and in a random order. Another run begins with what it had saved after the
second step, which is all that a kill leaves, and takes the other two. Both must log the same, and end with the same
weights: the model's, and the adapter's.

python bench/distributed_resume.py                                  # all cells: with `make test-distributed`
python bench/distributed_resume.py --recipe mpo --launch FSDP2      # some

Keeps results in resume.json, cell by cell, those of other cells too. Ends with an error where a cell differs.
"""

import argparse
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distributed import ALONE, LAUNCHES, WEIGHTS, Cell, arguments_of, prepare, told_error
from launches import CONFIGS, ENVIRONMENT, ROOT, launcher
from safetensors.torch import load_file


RECIPES = ("reward_stage2", "mpo")
# Given again, since the last one counts.
STEPS = ["--max_steps", "4", "--save_steps", "2", "--train_sampling_strategy", "random"]
TOLERANCE = 1e-6  # absolute, of a logged value or a weight


def train(cell: Cell, folder: Path, out: Path, *more: str) -> str | None:
    """The error of a training, if there is one."""
    command = [sys.executable] if cell.launch == ALONE else launcher(CONFIGS[cell.launch], folder)
    command += [str(ROOT / f"recipes/{cell.recipe}.py"), *arguments_of(cell, folder, out), *STEPS, *more]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    return told_error(result.stderr) if result.returncode else None


def logged(out: Path) -> dict[str, float]:
    """What was logged after the second step, but for times. The mean loss of a training is of its own steps."""
    history = json.loads((out / "trainer_state.json").read_text())["log_history"]
    return {
        f"{key} at step {entry['step']}": value
        for entry in history
        for key, value in entry.items()
        if entry["step"] > 2 and "train_runtime" not in entry and not key.endswith(("_runtime", "_per_second"))
    }


def difference(out: Path, other: Path) -> float:
    """The largest one between what two runs logged, and the weights that they ended with."""
    values, others = logged(out), logged(other)
    assert values.keys() == others.keys() and len(values) > 10, values.keys() ^ others.keys()
    largest = max(abs(value - others[key]) for key, value in values.items())
    for path in [*out.glob("*.safetensors"), *out.glob("adapter/*.safetensors")]:
        weights, wanted = load_file(path), load_file(other / path.relative_to(out))
        assert weights.keys() == wanted.keys() and weights
        gaps = ((weights[name].float() - wanted[name].float()).abs().max().item() for name in weights)
        largest = max(largest, *gaps)
    return largest


def verdict(cell: Cell, folder: Path) -> str:
    whole, stopped = (folder / "resumed" / name for name in ("whole", "stopped"))
    shutil.rmtree(folder / "resumed", ignore_errors=True)
    if error := train(cell, folder, whole):
        return f"refused: {error.split('ValueError: ', 1)[1]}" if "ValueError: " in error else f"FAILED: {error}"
    shutil.copytree(whole / "checkpoint-2", stopped / "checkpoint-2")
    if error := train(cell, folder, stopped, "--resume_from_checkpoint", "true"):
        return f"FAILED on resume: {error}"
    gap = difference(stopped, whole)
    return f"{gap:.0e}" if gap <= TOLERANCE else f"FAILED: {gap:.1e} apart"


def table(cells: list[dict]) -> str:
    """A row per recipe and weights, a column per launch. A number is the largest difference."""
    verdicts = {(cell["recipe"], cell["weights"], cell["launch"]): cell["verdict"] for cell in cells}
    lines = ["| recipe | weights | " + " | ".join(LAUNCHES) + " |", "|---" * (2 + len(LAUNCHES)) + "|"]
    for row in dict.fromkeys((recipe, weights) for recipe, weights, _ in verdicts):
        lines.append("| " + " | ".join([*row, *(verdicts.get((*row, launch), "") for launch in LAUNCHES)]) + " |")
    return "\n".join(lines) + "\n"


def main(arguments):
    path = arguments.output_dir / "resume.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = json.loads(path.read_text()) if path.exists() else []
    results = {(cell["recipe"], cell["weights"], cell["launch"]): cell for cell in kept}
    order = [*itertools.product(RECIPES, WEIGHTS, LAUNCHES)]
    given = (arguments.recipe, arguments.weights, arguments.launch)
    wanted = [key for key in order if all(one in (None, part) for one, part in zip(given, key, strict=True))]
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.world or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "candidates").exists():
            prepare(folder)
        for recipe, weights, launch in wanted:
            start = time.monotonic()
            cell = {"recipe": recipe, "weights": weights, "launch": launch}
            cell["verdict"] = verdict(Cell(recipe, launch, True, weights), folder)
            results[recipe, weights, launch] = cell | {"seconds": round(time.monotonic() - start, 1)}
            print(*results[recipe, weights, launch].values(), sep="  ", flush=True)
            path.write_text(json.dumps([results[key] for key in order if key in results], indent=1) + "\n")
    print(table([results[key] for key in order if key in results]))
    if failed := [key for key in wanted if results[key]["verdict"].startswith("FAILED")]:
        raise SystemExit(f"{len(failed)} of {len(wanted)} cells failed.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=RECIPES)
    parser.add_argument("--weights", choices=WEIGHTS)
    parser.add_argument("--launch", choices=LAUNCHES)
    parser.add_argument("--world", type=Path, help="Keep models and data here.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/distributed"))
    main(parser.parse_args())
