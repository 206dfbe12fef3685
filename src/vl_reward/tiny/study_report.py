"""
Studies of several seeds as one table and three plots.

```bash
python -m vl_reward.tiny.study_report docs/on_policy/seed_*.json --output_dir docs/on_policy
```

Writes `table.md`, and, with matplotlib, `steps.png` (accuracy and reward over training), `rounds.png` and
`best_of_n.png`.
"""

import argparse
import json
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
}


def table(studies: list[dict]) -> str:
    """One row per policy: accuracy of each seed with its 95 % interval, and their mean, length and reward."""
    seeds = " | ".join(f"seed {study['seed']}" for study in studies)
    lines = [f"| | {seeds} | mean | characters | reward |", "|---|" + "---|" * (len(studies) + 3)]
    for key, name in ROWS.items():
        found = [study["policies"][key] for study in studies if key in study["policies"]]
        if len(found) < len(studies):
            continue
        cells = [f"{one['greedy_accuracy']:.3f} ± {1.96 * one['greedy_standard_error']:.3f}" for one in found]
        means = {
            measure: statistics.mean(one[f"greedy_{measure}"] for one in found)
            for measure in ("accuracy", "characters", "reward")
        }
        cells += [f"{means['accuracy']:.3f}", f"{means['characters']:.1f}", f"{means['reward']:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def over_steps(study: dict) -> list[tuple[int, float, float]]:
    """Step, accuracy and reward of the long run, from its start."""
    points = [(0, *values(study["policies"]["base"]))]
    points += [
        (int(name.removeprefix("long_")), *values(found))
        for name, found in study["policies"].items()
        if name.startswith("long_")
    ]
    return sorted(points)


def values(found: dict) -> tuple[float, float]:
    return found["greedy_accuracy"], found["greedy_reward"]


def plot(studies: list[dict], folder: Path) -> None:
    import matplotlib.pyplot as plt  # a development dependency

    def save(figure, name):
        figure.tight_layout()
        figure.savefig(folder / name, dpi=120)
        plt.close(figure)

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5))
    for study in studies:
        steps, accuracies, rewards = zip(*over_steps(study), strict=True)
        left.plot(steps, accuracies, marker="o", label=f"seed {study['seed']}")
        right.plot(steps, rewards, marker="o", label=f"seed {study['seed']}")
    left.set(xlabel="step", ylabel="greedy accuracy")
    right.set(xlabel="step", ylabel="mean reward of greedy responses")
    left.legend()
    save(figure, "steps.png")

    figure, axis = plt.subplots(figsize=(4.5, 3.5))
    for study in studies:
        rounds = [study["policies"][name]["greedy_accuracy"] for name in ("base", "mpo", "round_2", "round_3")]
        axis.plot(range(4), rounds, marker="o", label=f"seed {study['seed']}")
    axis.set(xlabel="rounds of MPO", ylabel="greedy accuracy", xticks=range(4))
    axis.legend()
    save(figure, "rounds.png")

    figure, axis = plt.subplots(figsize=(4.5, 3.5))
    for color, study in zip(("C0", "C1", "C2"), studies, strict=False):
        ns = [point["n"] for point in study["best_of_n"]]
        for key, style in (("pass_at_n", "--"), ("best_of_n", "-")):
            label = f"{key.replace('_', ' ')}, seed {study['seed']}"
            axis.plot(ns, [point[key] for point in study["best_of_n"]], style, color=color, label=label)
    axis.set(xlabel="N", ylabel="accuracy", xscale="log")
    axis.legend(fontsize=7)
    save(figure, "best_of_n.png")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path, help="study.json files, in the order of their seeds.")
    parser.add_argument("--output_dir", type=Path, default=Path("docs/on_policy"))
    args = parser.parse_args()
    studies = [json.loads(path.read_text()) for path in args.studies]
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "table.md").write_text(table(studies))
    plot(studies, args.output_dir)
    print(table(studies))


if __name__ == "__main__":
    main()
