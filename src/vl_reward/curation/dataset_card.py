"""The cards of preference sets, curated and labelled."""

import json


def dataset_card(audit: dict, splits: dict[str, int], with_images: dict[str, int]) -> str:
    """
    Args:
        audit (`dict`):
            What [`CurationAudit.as_dict`] gives.
        splits (`dict[str, int]`), with_images (`dict[str, int]`):
            Pairs of each split, and how many of them have images.

    Returns:
        `str`: Markdown with the hub's front matter.
    """
    kept = {name: counts["out"] for name, counts in audit["steps"][-1]["sources"].items()}
    lines = ["---", "license: other", "task_categories:", "- image-text-to-text", "tags:", "- preference", "- trl"]
    lines += ["---", "", "# Preference pairs", ""]
    lines += ["Columns: `id`, `source`, `prompt`, `images`, `chosen`, `rejected`,"]
    lines += ["in TRL's vision-preference format.", ""]
    for name, n in splits.items():
        share = with_images[name] / n if n else 0
        lines.append(f"- `{name}`: {n:,} pairs, {share:.0%} with images")
    lines += ["", "| source | path | licence | rows read | pairs | kept |", "|---|---|---|---|---|---|"]
    for name, entry in audit["sources"].items():
        counts = f"{entry['rows']:,} | {entry['pairs']:,} | {kept[name]:,}"
        lines.append(f"| {name} | {entry['path']} | {entry['license']} | {counts} |")
    lines += ["", "Each source keeps its own licence. `audit.md` says what every step took out, and why.", ""]
    lines += ["Made by `recipes/prepare_preferences.py` with", "", "```json"]
    return "\n".join([*lines, json.dumps(audit["settings"], indent=2), "```", ""])


def label_card(report: dict) -> str:
    """
    Args:
        report (`dict`):
            What `recipes/label_preferences.py` writes as `labels.json`.

    Returns:
        `str`: Markdown with the hub's front matter.
    """
    lines = ["---", "task_categories:", "- image-text-to-text", "tags:", "- preference", "- trl", "---", ""]
    lines += ["# On-policy preference pairs", ""]
    lines += ["Columns: `id`, `prompt`, `images`, `chosen`, `rejected`, in TRL's vision-preference format,"]
    lines += ["`score_chosen` and `score_rejected` by the reward model, and the `rule` that made the pair.", ""]
    lines += [f"{report['pairs']:,} pairs of {report['labelled']:,} of {report['prompts']:,} prompts.", ""]
    lines += ["Made by `recipes/label_preferences.py` with", "", "```json"]
    return "\n".join([*lines, json.dumps(report, indent=2), "```", ""])
