"""What the page shows of one run, part by part."""

from . import figures
from .measures import best_of_n, calibration, changes
from .pipeline import pipeline
from .run_files import TRAININGS, RunFiles


CURVES = ("loss", "accuracy", "margin", "mean_reward", "reward", "greedy_accuracy")
CURVES += tuple(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins"))
EXAMPLES = 50


def section_data(run: RunFiles) -> dict:
    """All parts of one run; those whose files are missing are empty."""
    return {
        "name": run.name,
        "pipeline": pipeline(run),
        "training": training(run),
        "reward": reward(run),
        "policy": policy(run),
        "changes": changes(run),
        "labels": run.json("label_preferences/labels.json"),
        "refused": refused(run),
        "audits": audits(run),
        "provenance": provenance(run),
    }


def curves(runs: list[RunFiles]) -> list[tuple]:
    """A plot of each logged number of each training, with a line for every run, and one for what was evaluated."""
    plots = []
    for step in TRAININGS:
        for name in CURVES:
            lines = {}
            for run in runs:
                for key in (name, f"eval_{name}"):
                    if points := points_of(run.histories.get(step, []), key):
                        label = key if len(runs) == 1 else run.name + (", eval" if key != name else "")
                        lines[label] = ([*points], [*points.values()])
            if lines:
                plots.append((f"{step}: {name}", figures.curve(lines, "step", name)))
    return plots


def points_of(history: list[dict], key: str) -> dict[int, float]:
    """The values of a logged number by their steps."""
    return {log["step"]: log[key] for log in history if isinstance(log.get(key), int | float)}


def training(run: RunFiles) -> dict:
    """The numbers of the curves, and those at the end."""
    tables = {}
    for step, history in run.histories.items():
        columns = {key: points_of(history, key) for name in CURVES for key in (name, f"eval_{name}")}
        columns = {key: points for key, points in columns.items() if points}
        steps = sorted({number for points in columns.values() for number in points})
        rows = [[number, *(points.get(number) for points in columns.values())] for number in steps]
        if rows:
            tables[step] = {"columns": [*columns], "rows": rows}
    measured = [step for step in ("reward_stage1", "reward_stage2") if (run.folder / step).is_dir()]
    ends = {step: run.json(f"{step}/all_results.json") for step in measured}
    return {"tables": tables, "ends": {step: end for step, end in ends.items() if end}}


def reward(run: RunFiles) -> dict:
    """What the reward model was measured by: accuracies, calibration, and reward against length."""
    run.is_there("evaluate_reward/results.json")
    names = sorted(path.parent.name for path in run.folder.glob("evaluate_reward*/results.json"))  # and benchmarks
    results = {name: run.json(f"{name}/results.json") for name in names}
    lines = run.pair_scores
    bins = calibration(lines)
    with_lengths = [line for line in lines if line.get("lengths")]
    return {
        "results": results,
        "bins": bins,
        "calibration": figures.calibration_plot(bins) if bins else None,
        "by_length": figures.reward_by_length(with_lengths) if with_lengths else None,
    }


def policy(run: RunFiles) -> dict:
    """What the policy was measured by, before MPO and after it, and best of n."""
    results = {step: run.json(f"{step}/results.json") for step in ("evaluate_policy", "evaluate_mpo")}
    points = best_of_n(run.lines("evaluate_policy/responses.jsonl"))
    lines = {
        name: ([point["n"] for point in points], [point[key] for point in points])
        for key, name in (("pass", "pass@n"), ("best", "best of n"), ("mean", "mean of n"))
    }
    plot = figures.curve(lines, "n", "accuracy", marker="o") if points else None
    return {"results": {step: found for step, found in results.items() if found}, "points": points, "plot": plot}


def refused(run: RunFiles) -> list[dict]:
    """Rows that a recipe could not use, each with its reason."""
    paths = sorted(run.folder.glob("*/refused.jsonl"))
    if not paths:
        run.missing.add("*/refused.jsonl")
    rows = {path.parent.name: run.lines(f"{path.parent.name}/refused.jsonl") for path in paths}
    return [{"step": step, "rows": len(found), "first": found[:EXAMPLES]} for step, found in rows.items()]


def audits(run: RunFiles) -> list[dict]:
    """The funnel of each data set that `prepare_preferences` made."""
    paths = [*run.folder.glob("audit.json"), *sorted(run.folder.glob("*/audit.json"))]
    if not paths:
        run.missing.add("*/audit.json")
    found = []
    for path in paths:
        audit = run.json(str(path.relative_to(run.folder)))
        steps = [{"step": "sources", "pairs": sum(source["pairs"] for source in audit["sources"].values()), "why": {}}]
        for step in audit["steps"]:
            why: dict[str, int] = {}
            for source in step["sources"].values():
                for reason, count in source["dropped"].items():
                    why[reason] = why.get(reason, 0) + count
            steps.append({"step": step["step"], "pairs": step["out"], "why": why})
        plot = figures.bars([step["step"] for step in steps], [step["pairs"] for step in steps], "pairs that stay")
        found.append({"folder": path.parent.name, "steps": steps, "plot": plot})
    return found


def provenance(run: RunFiles) -> dict:
    """Versions, seeds and fingerprints, each with the file that says so."""
    found = {f"results.json: {name}": value for name, value in run.json("results.json").get("versions", {}).items()}
    wanted = {
        "demo.json": ("seed", "family"),
        "sample_responses/sampling.json": ("seed", "engine", "model", "fingerprint", "temperature", "num_generations"),
        "label_preferences/labels.json": ("reward_model", "reward_fingerprint"),
    }
    for file, keys in wanted.items():
        found |= {f"{file}: {key}": value for key, value in run.json(file).items() if key in keys}
    settings = run.json("label_preferences/labels.json").get("settings", {})
    return found | {f"label_preferences/labels.json: {key}": settings[key] for key in ("seed",) if key in settings}
