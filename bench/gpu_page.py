"""
The tables of docs/gpu.md, from what was kept of runs on a GPU.

```bash
python bench/gpu.py --output docs/gpu/speed.json
python bench/whole_model.py --output docs/gpu/whole_model.json
python bench/on_gpu.py --output_dir outputs/on_gpu && cp outputs/on_gpu/results.json docs/gpu/recipes.json
python bench/gpu_page.py
```
"""

import json
import re
from pathlib import Path

from on_gpu import table as recipes_table
from run_costs import FORWARD, PATCHES, STEP, weights


PAGE = Path(__file__).parent.parent / "docs/gpu.md"
STEPS = {"reward": "reward pair, step", "mpo": "MPO pair, step", "score": "score"}
PEAK = 989e12  # operations per second in bfloat16, by NVIDIA's data sheet of the H100 and the H200
# Operations of a weight for a token: of the decoder, the vision tower and the head.
PASSES = {"reward": (STEP, FORWARD, 0), "mpo": (STEP + FORWARD, 2 * FORWARD, STEP + FORWARD), "score": (2, 2, 0)}


def part_of_peak(cell: dict, counted: dict[str, int]) -> float:
    """Of the shared way, attention and the optimizer left out, as in run_costs.py."""
    decoder, vision, head = PASSES[cell["workload"]]
    operations = decoder * counted["decoder"] * cell["tokens"]["shared"]
    operations += vision * counted["vision"] * PATCHES * cell["visual_tokens"]
    operations += head * counted["head"] * cell["k"] * cell["response_tokens"]
    return operations / cell["ways"]["shared"]["seconds"] / PEAK


def speed_table(cells: list[dict]) -> str:
    counted = weights()
    lines = [
        "| attention | | visual tokens | rows, s | shared, s | ratio | rows, GiB | shared, GiB | tokens/s | of peak |"
    ]
    lines.append("|---" * 10 + "|")
    for cell in sorted(cells, key=lambda cell: (cell["attention"], list(STEPS).index(cell["workload"]))):
        rows, shared = cell["ways"]["rows"], cell["ways"]["shared"]
        name = STEPS[cell["workload"]] + (f" K = {cell['k']}" if cell["workload"] == "score" else "")
        tokens = cell["tokens"]["shared"] / shared["seconds"]
        lines.append(
            f"| {cell['attention']} | {name} | {cell['visual_tokens']:,} | {rows['seconds']:.3f} | "
            f"{shared['seconds']:.3f} | {shared['ratio']:.2f} | {rows['peak_gib']:.2f} | {shared['peak_gib']:.2f} | "
            f"{tokens:,.0f} | {part_of_peak(cell, counted):.2f} |"
        )
    return "\n".join(lines)


def moved_table(cells: list[dict]) -> str:
    lines = [
        "| attention | visual tokens | deviation of the scores | rows together | rows that share |",
        "|---" * 5 + "|",
    ]
    for cell in cells:
        if "moved" in cell:
            moved = cell["moved"]
            numbers = f"{moved['deviation']:.2f} | {moved['rows']:.2f} | {moved['shared']:.1g} |"
            lines.append(f"| {cell['attention']} | {cell['visual_tokens']:,} | {numbers}")
    return "\n".join(lines)


def memory_table(rows: list[dict]) -> str:
    lines = ["| config | `max_length` | estimated, GiB | measured, GiB | estimated / measured |", "|---" * 5 + "|"]
    for row in rows:
        if "measured" in row:
            numbers = f"{row['estimated']:.1f} | {row['measured']:.1f} | {row['estimated'] / row['measured']:.2f}"
        else:
            numbers = f"| | {row['error'].splitlines()[-1]}"
        lines.append(f"| `{row['case']}.yaml` | {row['max_length']:,} | {numbers} |")
    return "\n".join(lines)


def tables() -> dict[str, str]:
    speed, memory, recipes = (
        json.loads((PAGE.parent / f"gpu/{name}.json").read_text()) for name in ("speed", "whole_model", "recipes")
    )
    return {
        "speed": speed_table(speed["cells"]),
        "moved": moved_table(speed["cells"]),
        "memory": memory_table(memory["rows"]),
        "recipes": recipes_table(recipes["cells"]).strip(),
    }


def main():
    text = PAGE.read_text()
    for name, table in tables().items():
        pattern = rf"(<!-- {name} -->\n).*?(<!-- end of {name} -->)"
        text = re.sub(pattern, lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text, flags=re.DOTALL)
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
