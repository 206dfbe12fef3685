"""
Studies of several seeds as one table and three plots.

```bash
python bench/study_report.py docs/on_policy/seed_*.json --output_dir docs/on_policy
```

Writes `table.md`, and, with matplotlib, `steps.png` and `rounds.png` (accuracy and reward over training and over
rounds) and `best_of_n.png`.
"""

import argparse
import json
import math
import statistics
from pathlib import Path


ROWS = {
    "base": "Base",
    "sft": "SFT on chosen",
    "dpo": "DPO",
    "dpo_sft": "DPO + SFT",
    "bco_sft": "BCO + SFT",
    "mpo": "MPO",
    "mpo_without_shift": "MPO, δ = 0",
    "mpo_random_pairs": "MPO, random pairs",
    "mpo_verifier_pairs": "MPO, verifier's pairs",
    "round_2": "MPO, second round",
    "round_3": "MPO, third round",
    "round_4": "MPO, fourth round",
}


def table(studies: list[dict]) -> str:
    """
    One row per policy: accuracy for each seed with its 95 % interval, then means over seeds: gain over the base, with
    the interval of a comparison prompt by prompt, length, and reward, of which only differences mean something.
    """
    seeds = " | ".join(f"seed {study['seed']}" for study in studies)
    lines = [f"| | {seeds} | over base | characters | reward, over base |", "|---|" + "---|" * (len(studies) + 3)]
    for key, name in ROWS.items():
        runs = [study["policies"][key] for study in studies]
        cells = [f"{one['greedy_accuracy']:.3f} ± {1.96 * one['greedy_standard_error']:.3f}" for one in runs]
        gain, characters = (statistics.mean(one[measure] for one in runs) for measure in ("gain", "greedy_characters"))
        reward = statistics.mean(measures(study, key)[1] - measures(study, "base")[1] for study in studies)
        error = math.sqrt(sum(one["gain_standard_error"] ** 2 for one in runs)) / len(runs)
        over_base = [f"{gain:+.3f} ± {1.96 * error:.3f}", f"{characters:.1f}", f"{reward:+.2f}"]
        cells += over_base if key != "base" else ["", over_base[1], ""]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def over_steps(study: dict) -> list[tuple[int, float, float]]:
    """Step, accuracy and reward of the long run, from its start."""
    names = [name for name in study["policies"] if name.startswith("long_")]
    steps = [(0, "base"), *sorted((int(name.removeprefix("long_")), name) for name in names)]
    return [(step, *measures(study, name)) for step, name in steps]


def over_rounds(study: dict) -> list[tuple[int, float, float]]:
    """Round, accuracy and reward of the policy after it."""
    names = ["base", "mpo", *(name for name in ROWS if name.startswith("round_"))]
    return [(number, *measures(study, name)) for number, name in enumerate(names)]


def measures(study: dict, name: str) -> tuple[float, float]:
    return study["policies"][name]["greedy_accuracy"], study["policies"][name]["greedy_reward"]


def plot(studies: list[dict], folder: Path) -> None:
    import matplotlib.pyplot as plt  # a development dependency

    def save(figure, name):
        figure.tight_layout()
        figure.savefig(folder / name, dpi=120)
        plt.close(figure)

    for name, label, points_of in (("steps", "step", over_steps), ("rounds", "rounds of MPO", over_rounds)):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
        for study in studies:
            at, accuracies, rewards = zip(*points_of(study), strict=True)
            left.plot(at, accuracies, marker="o", label=f"seed {study['seed']}")
            right.plot(at, [reward - rewards[0] for reward in rewards], marker="o")
        left.set(xlabel=label, ylabel="greedy accuracy")
        right.set(xlabel=label, ylabel="mean reward, over the base's")
        left.legend()
        save(figure, f"{name}.png")

    figure, axis = plt.subplots(figsize=(4.5, 3.5))
    for color, study in zip(("C0", "C1", "C2"), studies, strict=False):
        ns = [point["n"] for point in study["best_of_n"]]
        for key, style in (("pass_at_n", "--"), ("best_of_n", "-")):
            label = f"{key.replace('_', ' ')}, seed {study['seed']}"
            axis.plot(ns, [point[key] for point in study["best_of_n"]], style, color=color, label=label)
    axis.set_xscale("log", base=2)
    axis.set(xlabel="N", ylabel="accuracy", xticks=(ticks := [1, 2, 4, 8, 16, 32]), xticklabels=ticks)
    axis.legend(fontsize=7)
    save(figure, "best_of_n.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="The study.json files, in the order of their seeds.")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("docs/on_policy"), help="The table and the plots are written here."
    )
    args = parser.parse_args()
    studies = [json.loads(path.read_text()) for path in args.studies]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "table.md").write_text(table(studies))
    plot(studies, args.output_dir)
    print(table(studies))


if __name__ == "__main__":
    main()
