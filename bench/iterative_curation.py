"""
Iterative curation on labels that are partly wrong: a surrogate reward model is trained on a set of which 15 % of the
pairs are flipped, scores it, and what it doubts is left out; a second model is trained on the rest, for as many steps.

python bench/iterative_curation.py --output_dir docs/curation      # 3 seeds, fifteen minutes each

Writes iterative.json, seed by seed: the accuracy of both on held-out pairs with right labels, and which pairs went.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from datasets import load_from_disk
from launches import ENVIRONMENT, ROOT


FLIPPED = 0.15
SIZES = {"n_questions": 8000, "n_policy_questions": 300, "n_text_questions": 10, "n_test": 600}
SIZES |= {"n_prompts": 10, "n_test_prompts": 10}


def run(folder: Path, recipe: str, *arguments: str):
    command = [sys.executable, str(ROOT / f"recipes/{recipe}.py"), *arguments]
    result = subprocess.run(command, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    if result.returncode:
        raise SystemExit(result.stderr[-4000:])


def flip(folder: Path, seed: int) -> list[bool]:
    """Writes the pairs with images, some of them flipped. Returns whether each is."""
    pairs = load_from_disk(folder / "outputs/tiny/preferences")["train"]
    pairs = pairs.filter(lambda images: len(images) > 0, input_columns="images")
    rng = random.Random(seed)
    flipped = [rng.random() < FLIPPED for _ in range(len(pairs))]

    def turn(row: dict, i: int) -> dict:
        return {"chosen": row["rejected"], "rejected": row["chosen"]} if flipped[i] else {}

    pairs.map(turn, with_indices=True).to_parquet(folder / "outputs/tiny/own_pairs.parquet")
    return flipped


def measure(folder: Path, seed: int, steps: int) -> dict:
    tiny = folder / "outputs/tiny"
    sizes = [argument for key, value in SIZES.items() for argument in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "vl_reward.tiny", "--seed", str(seed), *sizes]
    subprocess.run(command, cwd=folder, env=ENVIRONMENT, check=True, capture_output=True)
    flipped = flip(folder, seed)
    accuracy, configs = {}, ROOT / "recipes/configs/tiny"
    for number, name in ((1, "surrogate"), (2, "curated")):
        run(folder, "prepare_preferences", "--config", str(configs / f"prepare_preferences_round_{number}.yaml"))
        data = f"outputs/tiny/round_{number}/preferences"
        settings = ["--max_steps", str(steps), "--seed", str(seed), "--output_dir", f"outputs/tiny/{name}"]
        run(folder, "reward_stage1", "--dataset_name", data, *settings)
        model = ["--model_name_or_path", f"outputs/tiny/{name}"]
        run(folder, "evaluate_reward", *model, "--output_dir", f"outputs/tiny/{name}_accuracy")
        accuracy[name] = json.loads((tiny / f"{name}_accuracy/results.json").read_text())["overall"]
        if number == 1:
            scores = ["--output_dir", "outputs/tiny/surrogate_scores", "--dataset_test_split", "train"]
            run(folder, "evaluate_reward", *model, "--dataset_name", data, *scores)
    return accuracy | what_went(tiny / "round_2/dropped.jsonl", flipped)


def what_went(file: Path, flipped: list[bool]) -> dict[str, float]:
    """The fractions of the pairs with wrong labels, and of those with right ones, that the surrogate doubts."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    gone = Counter(flipped[line["index"]] for line in lines if line["step"] == "surrogate")
    there = Counter(flipped)
    return {"pairs": len(flipped), "flipped_gone": gone[True] / there[True], "right_gone": gone[False] / there[False]}


def table(results: dict) -> str:
    """Markdown of what is in iterative.json."""
    rows = {
        "Pairs": lambda run: f"{run['pairs']:,}",
        "Of the flipped pairs, left out": lambda run: f"{run['flipped_gone']:.0%}",
        "Of the right pairs, left out": lambda run: f"{run['right_gone']:.0%}",
        "Accuracy of the surrogate": lambda run: f"{run['surrogate']:.3f}",
        "Accuracy of the model of round 2": lambda run: f"{run['curated']:.3f}",
    }
    runs = results["runs"]
    lines = ["| |" + "".join(f" seed {run['seed']} |" for run in runs), "|---" * (len(runs) + 1) + "|"]
    return "\n".join(
        lines + [f"| {name} |" + "".join(f" {value(run)} |" for run in runs) for name, value in rows.items()]
    )


def main(seeds: list[int], steps: int, output_dir: Path):
    output_dir.mkdir(parents=True, exist_ok=True)
    file, settings = output_dir / "iterative.json", {"flipped": FLIPPED, "steps": steps, "sizes": SIZES}
    for seed in seeds:
        with tempfile.TemporaryDirectory() as name:
            result = {"seed": seed, **measure(Path(name), seed, steps)}
        print(json.dumps(result), flush=True)
        kept = json.loads(file.read_text()) if file.exists() else {}
        others = kept["runs"] if settings.items() <= kept.items() else []  # of other settings none is kept
        runs = sorted([result, *(run for run in others if run["seed"] != seed)], key=lambda run: run["seed"])
        file.write_text(json.dumps({**settings, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1100, help="The steps of each of the two trainings.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/iterative_curation"))
    main(**vars(parser.parse_args()))
