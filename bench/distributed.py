"""
The recipes on several processes, against one: each cell of

    {reward stage 2, MPO, MPO with its reference ahead, GRPO, evaluate, sample, label}
    x {DDP, ZeRO-2, ZeRO-3, FSDP2} x {prefixes shared or not} x {full, LoRA, QLoRA, DoRA}

runs a recipe of this repo with two processes on a CPU, whose batches differ: one image, several, none. What it measured
has to be what one process measures, to rounding. ZeRO-3 shards every parameter, however small.

python bench/distributed.py                                  # all cells: `make test-distributed`
python bench/distributed.py --recipe mpo --launch FSDP2      # some
python bench/distributed.py --part 2/15                      # the second of 15 parts: `make test-rotation PART=2/15`

Writes results.json and table.md, and ends with an error where a cell differs.
"""

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from datasets import DatasetDict, concatenate_datasets, load_from_disk
from launches import CONFIGS, ENVIRONMENT, ROOT, launcher


ALONE = "1 process"
LAUNCHES = [ALONE, *CONFIGS]
WEIGHTS = {
    "full": ["--learning_rate", "1e-4"],
    "LoRA": ["--use_peft", "true", "--learning_rate", "1e-3"],
    "QLoRA": ["--use_peft", "true", "--learning_rate", "1e-3", "--load_in_4bit", "true"],
    "DoRA": ["--use_peft", "true", "--learning_rate", "1e-3", "--use_dora", "true"],
}
TRAINED = ("reward_stage2", "mpo", "mpo ahead", "grpo")
ONLY_SCORED = ("evaluate_reward", "sample_responses", "label_preferences")
# What trainers log of a step. A process's MPO loss is of its own rows; these are gathered.
LOGGED = {
    "reward_stage2": ("grad_norm", "loss", "margin", "eval_margin", "eval_n_pairs"),
    "mpo": ("grad_norm", "sft_loss", "rewards/margins", "reward_shift"),
    "grpo": ("reward", "entropy", "completions/mean_length"),
}
# Absolute, and relative to values above 1: what float32 rounds in three steps. A product with 4-bit weights rounds
# more, and otherwise for another number of rows.
TOLERANCE = {"full": 2e-4, "LoRA": 2e-4, "QLoRA": 5e-3, "DoRA": 2e-4}
STEPS = ["--max_steps", "3", "--logging_steps", "1", "--save_strategy", "steps", "--save_steps", "1"]
STEPS += ["--dataloader_num_workers", "0", "--warmup_steps", "0"]


@dataclass(frozen=True)
class Cell:
    """One run: a recipe (or a variant of it), how it is launched, whether prefixes are shared, which weights train."""

    recipe: str
    launch: str
    shared: bool
    weights: str

    @property
    def alone(self) -> "Cell":
        """The run that this one has to agree with. GRPO draws its samples per process, so DDP's stands for it."""
        return Cell(self.recipe, "DDP" if self.recipe == "grpo" else ALONE, self.shared, self.weights)

    @property
    def row(self) -> tuple[str, str, str]:
        """Its row of the table."""
        return self.recipe, self.weights, "shared" if self.shared else "plain"


def all_cells() -> list[Cell]:
    trained = itertools.product(TRAINED, LAUNCHES, (True, False), WEIGHTS)
    scored = itertools.product(ONLY_SCORED, LAUNCHES, (True, False), ("full",))
    cells = [Cell(*cell) for cell in (*trained, *scored)]
    # GRPO shares always, and sampling shares nothing: its responses are generated. LoRA needs no reference ahead: its
    # refusal is shown once.
    return [
        cell
        for cell in cells
        if (cell.shared or cell.recipe not in ("grpo", "sample_responses"))
        and (cell.recipe, cell.launch) != ("grpo", ALONE)  # which draws other samples
        and (cell.recipe != "mpo ahead" or cell.weights == "full" or (cell.launch == ALONE and cell.shared))
    ]


def part_of(cells: list[Cell], part: str) -> list[Cell]:
    """
    Part K of N, as `K/N`: every N-th row of the table, the K-th first. The cells of a row are compared with one run.

    Raises:
        ValueError: If there is no such part.
    """
    number, total = map(int, part.split("/"))
    if not 1 <= number <= total:
        raise ValueError(f"`--part {part}`: there are parts 1/{total} to {total}/{total}.")
    rows = list(dict.fromkeys(cell.row for cell in cells))[number - 1 :: total]
    return [cell for cell in cells if cell.row in rows]


def build_world(folder: Path):
    """The embedded world's models, and rows of one image, two and none, in an order that gives processes other ones."""
    sizes = {"n_questions": 12, "n_policy_questions": 10, "n_text_questions": 6}
    sizes |= {"n_prompts": 24, "n_test": 10, "n_test_prompts": 11}
    arguments = [argument for key, value in sizes.items() for argument in (f"--{key}", str(value))]
    subprocess.run([sys.executable, "-m", "vl_reward.tiny", *arguments], cwd=folder, env=ENVIRONMENT, check=True)
    pairs = load_from_disk(folder / "outputs/tiny/preferences")
    counts = list(map(len, pairs["train"]["images"][:]))
    none, one, two = ([i for i, count in enumerate(counts) if count == wanted][:4] for wanted in (0, 1, 2))
    # Of each four rows, which are a step, two go to each process.
    order = [none[0], none[1], one[0], two[0], one[1], two[1], none[2], none[3], two[2], none[1], one[2], one[3]]
    columns = ["id", "prompt", "chosen", "rejected", "images"]
    mixed = pairs["train"].select(order).select_columns(columns)
    uneven = pairs["test"].select(range(13)).select_columns(columns)
    DatasetDict({"train": mixed, "test": uneven}).save_to_disk(folder / "mixed")
    prompts = load_from_disk(folder / "outputs/tiny/prompts")["test"].select_columns(["id", "prompt", "images"])
    text = pairs["train"].select(none[:3]).select_columns(["id", "prompt", "images"]).cast(prompts.features)
    both = concatenate_datasets([text, prompts]).select([0, 3, 4, 1, 5, 2, 6, 7, 8, 9, 10])
    DatasetDict({"train": both}).save_to_disk(folder / "mixed_prompts")


def arguments_of(cell: Cell, folder: Path, out: Path) -> list[str]:
    tiny, rows = folder / "outputs/tiny", "2" if cell.launch != ALONE else "4"
    given = ["--output_dir", str(out)]
    if cell.recipe != "sample_responses" and cell.recipe != "grpo":
        given += ["--share_prefixes", str(cell.shared).lower()]
    if cell.recipe == "reward_stage2":
        given += ["--model_name_or_path", str(folder / "reward"), "--max_length", "512"]
    if cell.recipe in ("reward_stage2", "mpo", "mpo ahead"):
        given += ["--dataset_name", str(folder / "mixed"), *STEPS, "--train_sampling_strategy", "sequential"]
        given += ["--per_device_train_batch_size", rows]
    if cell.recipe in ("mpo", "mpo ahead"):
        given += ["--max_length", "512", "--precompute_ref_log_probs", str(cell.recipe == "mpo ahead").lower()]
    if cell.recipe == "grpo":
        given += ["--reward_model", str(folder / "reward"), "--dataset_name", str(folder / "mixed_prompts"), *STEPS]
        given += ["--per_device_train_batch_size", "8", "--shuffle_dataset", "false"]
    if cell.recipe == "evaluate_reward":
        given += ["--model_name_or_path", str(folder / "reward"), "--dataset_name", str(folder / "mixed")]
    if cell.recipe == "sample_responses":
        given += ["--model_name_or_path", str(tiny / "policy"), "--dataset_name", str(folder / "mixed_prompts")]
        given += ["--shard_size", "3", "--num_generations", "4"]
    if cell.recipe == "label_preferences":
        given += ["--model_name_or_path", str(folder / "reward"), "--min_score_margin", "0"]
        given += ["--dataset_name", str(folder / "candidates")]
    if cell.recipe in TRAINED:
        given += ["--use_cpu", "true"]
    return given + (WEIGHTS[cell.weights] if cell.recipe in TRAINED else [])


def measured(cell: Cell, out: Path) -> list[float]:
    """Numbers that a run wrote, in an order that does not depend on the launch."""
    if cell.recipe in TRAINED:
        history = json.loads((out / "checkpoint-3/trainer_state.json").read_text())["log_history"]
        keys = LOGGED[cell.recipe.split()[0]]
        numbers = [entry[key] for key in keys for entry in history if key in entry]
        if (results := out / "eval_results.json").exists():
            final = json.loads(results.read_text())
            numbers += [final[key] for key in keys if key in final]
        return numbers
    if cell.recipe == "sample_responses":
        return [hash_of(row) for row in load_from_disk(out / "candidates")["responses"]]
    lines = [json.loads(line) for line in (out / "scores.jsonl").read_text().splitlines()]
    return [score for line in lines for score in line["scores"]]


def hash_of(texts: list[str]) -> float:
    return float(int.from_bytes("\0".join(texts).encode(), "big") % 1_000_003)


def run(cell: Cell, folder: Path, resume: bool) -> dict:
    """What a cell measured, once more after a resume, or the last line of its error."""
    recipe, out = cell.recipe.split()[0], folder / "runs" / "_".join(map(str, asdict(cell).values())).replace(" ", "_")
    command = [sys.executable] if cell.launch == ALONE else launcher(CONFIGS[cell.launch], folder)
    command += [str(ROOT / f"recipes/{recipe}.py"), *arguments_of(cell, folder, out)]
    start = time.monotonic()
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
    seconds = round(time.monotonic() - start, 1)
    if not result.returncode and cell.recipe in TRAINED and resume:
        numbers = measured(cell, out)
        again = [*command, "--resume_from_checkpoint", str(out / "checkpoint-2")]
        result = subprocess.run(again, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=600)
        if not result.returncode:
            return {"seconds": seconds, "numbers": numbers, "resumed": measured(cell, out)}
    if result.returncode:
        (out.parent / f"{out.name}.log").write_text(result.stdout + result.stderr)
        return {"seconds": seconds, "error": told_error(result.stderr)}
    return {"seconds": seconds, "numbers": measured(cell, out)}


def told_error(told: str) -> str:
    """The last line of an error, as the process that raised it told it."""
    lines = [line for line in told.splitlines() if "Error: " in line and "ChildFailed" not in line]
    return (lines or told.splitlines()[-3:] or ["no message"])[-1].strip()


def verdict(cell: Cell, result: dict, expected: dict) -> str:
    if "error" in result:
        message = result["error"].split("Error: ", 1)[-1]
        return f"refused: {message}" if result["error"].find("ValueError: ") >= 0 else f"FAILED: {result['error']}"
    if "error" in expected:
        return "FAILED: there is nothing to compare with"
    numbers, wanted = result["numbers"], expected["numbers"]
    if len(numbers) != len(wanted) or not numbers:
        return f"FAILED: {len(numbers)} numbers instead of {len(wanted)}"
    gap = difference(numbers, wanted)
    if gap > TOLERANCE[cell.weights]:
        return f"FAILED: {gap:.1e} apart"
    if (gap_resumed := difference(result.get("resumed", numbers), numbers)) > TOLERANCE[cell.weights] / 10:
        return f"FAILED: {gap_resumed:.1e} apart after a resume"
    return f"{gap:.0e}"


def difference(numbers: list[float], others: list[float]) -> float:
    return max(abs(number - other) / max(1, abs(other)) for number, other in zip(numbers, others, strict=True))


def table(cells: list[dict]) -> str:
    """A row per recipe, weights and sharing; a column per launch. A number is the largest difference to one process."""
    rows = {}
    for cell in cells:
        row = Cell(*(cell[key] for key in ("recipe", "launch", "shared", "weights"))).row
        rows.setdefault(row, {})[cell["launch"]] = cell["verdict"]
    lines = ["| recipe | weights | prefixes | " + " | ".join(LAUNCHES) + " |", "|---" * (3 + len(LAUNCHES)) + "|"]
    for name, verdicts in rows.items():
        lines.append("| " + " | ".join([*name, *(verdicts.get(launch, "") for launch in LAUNCHES)]) + " |")
    return "\n".join(lines) + "\n"


def prepare(folder: Path):
    """A reward model and candidates, for the recipes that read them."""
    build_world(folder)
    common = {"cwd": folder, "env": ENVIRONMENT, "check": True, "capture_output": True}
    stage1 = ["--max_steps", "3", "--per_device_train_batch_size", "8", "--output_dir", str(folder / "reward")]
    subprocess.run([sys.executable, str(ROOT / "recipes/reward_stage1.py"), *stage1], **common)
    cell = Cell("sample_responses", ALONE, True, "full")
    given = arguments_of(cell, folder, folder / "sampled")
    subprocess.run([sys.executable, str(ROOT / "recipes/sample_responses.py"), *given], **common)
    (folder / "sampled/candidates").rename(folder / "candidates")


def main(arguments):
    wanted = [
        cell
        for cell in all_cells()
        if all(
            getattr(arguments, key) in (None, str(value))
            for key, value in (("recipe", cell.recipe), ("launch", cell.launch), ("weights", cell.weights))
        )
    ]
    if arguments.part is not None:
        wanted = part_of(wanted, arguments.part)
        print(f"Part {arguments.part}, {len(wanted)} cells. To run it again: make test-rotation PART={arguments.part}")
    results, done = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = arguments.world or Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "candidates").exists():
            prepare(folder)
        for cell in wanted:
            for needed in (cell.alone, cell):
                if needed not in done:
                    done[needed] = run(needed, folder, arguments.resume)
            told = verdict(cell, done[cell], done[cell.alone])
            results.append({**asdict(cell), "verdict": told, "seconds": done[cell]["seconds"]})
            print(*asdict(cell).values(), told, f"{done[cell]['seconds']} s", sep="  ", flush=True)
    arguments.output_dir.mkdir(parents=True, exist_ok=True)
    (arguments.output_dir / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (arguments.output_dir / "table.md").write_text(table(results))
    print(table(results))
    if failed := [cell for cell in results if cell["verdict"].startswith("FAILED")]:
        raise SystemExit(f"{len(failed)} of {len(results)} cells failed.")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", choices=[*TRAINED, *ONLY_SCORED])
    parser.add_argument("--launch", choices=LAUNCHES)
    parser.add_argument("--weights", choices=WEIGHTS)
    parser.add_argument("--part", help="K/N: the K-th of N parts, which together are all.")
    parser.add_argument("--resume", action="store_true", help="Each training is resumed from its second step, too.")
    parser.add_argument("--world", type=Path, help="Keep models, data and runs here.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/distributed"))
    main(parser.parse_args())
