"""What went in and out of each step, and why: `audit.json` for programs, `audit.md` for people."""

import json
from collections import Counter, defaultdict
from pathlib import Path


N_EXAMPLES = 3


class CurationAudit:
    """
    Counts of every source and step.

    Args:
        settings (`dict`):
            Seed, thresholds, versions: whatever the result depends on.
    """

    def __init__(self, settings: dict):
        self.settings = settings
        self.sources: dict[str, dict] = {}
        self.steps: list[dict] = []

    def record_source(self, name: str, n_rows: int, n_pairs: int, skipped: list[tuple[str, str]], **details):
        """
        Args:
            name (`str`):
                The source.
            n_rows (`int`), n_pairs (`int`):
                Public rows read, and the pairs that they hold.
            skipped (`list[tuple[str, str]]`):
                The reason and an excerpt of each row, or pair of a row, that gave none.
            **details:
                Path, licence and the like.

        Raises:
            ValueError: If a source of that name was recorded before.
        """
        if name in self.sources:
            raise ValueError(f"sources: two are called {name}. Give each a name of its own.")
        examples = defaultdict(list)
        for reason, excerpt in skipped:
            examples[reason].append(excerpt)
        self.sources[name] = details | {
            "rows": n_rows,
            "pairs": n_pairs,
            "skipped": dict(sorted(Counter(reason for reason, _ in skipped).items())),
            "examples_skipped": {reason: excerpts[:N_EXAMPLES] for reason, excerpts in sorted(examples.items())},
        }

    def record_step(self, name: str, kept: dict[str, int], dropped: list[dict], **details):
        """
        Args:
            name (`str`):
                The step.
            kept (`dict[str, int]`):
                Pairs of each source that stay.
            dropped (`list[dict]`):
                `source`, `index`, `reason` and `excerpt` of each pair that goes.
            **details:
                What else to write beside the step's counts.
        """
        reasons: dict[str, Counter] = defaultdict(Counter)
        examples = defaultdict(list)
        for row in dropped:
            reasons[row["source"]][row["reason"]] += 1
            if len(examples[row["reason"]]) < N_EXAMPLES:
                examples[row["reason"]].append(row)
        out = {name: sum(counter.values()) for name, counter in reasons.items()}
        self.steps.append(
            {
                "step": name,
                **details,
                "in": sum(kept.values()) + len(dropped),
                "out": sum(kept.values()),
                "sources": {
                    source: {
                        "in": kept.get(source, 0) + out.get(source, 0),
                        "out": kept.get(source, 0),
                        "dropped": dict(sorted(reasons[source].items())),
                    }
                    for source in self.sources
                },
                "examples": dict(sorted(examples.items())),
            }
        )

    def check(self):
        """Every pair that went into a step is counted at its end, and the steps follow on each other."""
        flow = {source: entry["pairs"] for source, entry in self.sources.items()}
        for step in self.steps:
            for source, counts in step["sources"].items():
                assert counts["in"] == flow[source], f"{step['step']}: {source} had {flow[source]} pairs"
                assert counts["in"] == counts["out"] + sum(counts["dropped"].values())
                flow[source] = counts["out"]

    def as_dict(self) -> dict:
        """`settings`, `sources` and `steps`, as `audit.json` holds them."""
        return {"settings": self.settings, "sources": self.sources, "steps": self.steps}

    def save(self, folder: Path):
        """Write `audit.json` and `audit.md` into `folder`, after [`check`]."""
        self.check()
        text = json.dumps(self.as_dict(), indent=2, ensure_ascii=False)
        (folder / "audit.json").write_text(text + "\n", encoding="utf-8")
        (folder / "audit.md").write_text("\n".join(self.lines()) + "\n", encoding="utf-8")

    def lines(self) -> list[str]:
        """The report for people, in Markdown."""
        lines = ["# Audit", "", "## Sources", "", "| source | rows read | pairs | held no pair |", "|---|---|---|---|"]
        for name, entry in self.sources.items():
            skipped = "; ".join(f"{n:,} {reason}" for reason, n in entry["skipped"].items()) or "none"
            lines.append(f"| {name} | {entry['rows']:,} | {entry['pairs']:,} | {cell(skipped)} |")
        lines += ["", "## Steps", "", "| step | source | in | out | why |", "|---|---|---|---|---|"]
        for step in self.steps:
            for name, counts in step["sources"].items():
                why = "; ".join(f"{n:,} {reason}" for reason, n in counts["dropped"].items())
                if counts["in"]:
                    lines.append(f"| {step['step']} | {name} | {counts['in']:,} | {counts['out']:,} | {cell(why)} |")
        lines += ["", "## Examples"]
        for name, entry in self.sources.items():
            for reason, excerpts in entry["examples_skipped"].items():
                lines += ["", f"{name}, {reason}:", ""]
                lines += [f"- `{code(excerpt)}`" for excerpt in excerpts]
        for step in self.steps:
            for reason, rows in step["examples"].items():
                lines += ["", f"{step['step']}, {reason}:", ""]
                lines += [f"- {row['source']} row {row['index']}: `{code(row['excerpt'])}`" for row in rows]
        return [*lines, "", "## Settings", "", "```json", json.dumps(self.settings, indent=2), "```"]


def cell(text: str) -> str:
    """A text that stays in one cell of a Markdown table."""
    return text.replace("|", "\\|").replace("\n", " ")


def code(text: str) -> str:
    """The first 200 characters of a text, to stand between backticks."""
    return " ".join(text.replace("`", "'").split())[:200]
