"""
Several runs of the demo as one Markdown table.

```bash
python bench/table.py results/tiny/seed_*.json
```
"""

import argparse
import json
from pathlib import Path


ROWS = {
    "Reward model: held-out pair accuracy": ("reward", "heldout_pair_accuracy"),
    "... on misread digits, images blanked": ("reward", "blank_image_pair_accuracy"),
    "... preferring the shorter response": ("reward", "shorter_is_better_accuracy"),
    "Policy: greedy accuracy": ("policy", "base_accuracy"),
    "... images blanked": ("policy", "blind_accuracy"),
    "... mean at 8": ("policy", "random_of_n_accuracy"),
    "... best of 8 by the reward model": ("policy", "best_of_n_accuracy"),
    "... pass at 8": ("policy", "pass_at_n"),
    "Policy after MPO: greedy accuracy": ("policy", "mpo_accuracy"),
}


def table(runs: list[dict]) -> str:
    """One column per run, one row per measure, and the minutes the run took."""
    lines = ["| |" + "".join(f" seed {seed} |" for seed in range(len(runs))), "|---|" + "---|" * len(runs)]
    for name, (group, key) in ROWS.items():
        lines.append(f"| {name} |" + "".join(f" {run[group][key]:.3f} |" for run in runs))
    minutes = [sum(run["seconds"].values()) / 60 for run in runs]
    lines.append("| Minutes on 2 cores |" + "".join(f" {value:.1f} |" for value in minutes))
    return "\n".join(lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="The results.json files, in the order of their seeds.")
    print(table([json.loads(path.read_text()) for path in parser.parse_args().results]))
