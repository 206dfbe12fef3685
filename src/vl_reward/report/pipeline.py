"""The pipeline as a graph: its steps, what each reads and writes, and the lanes between them."""

import json
import shlex
from dataclasses import dataclass, field
from pathlib import PurePath

from .run_files import RunFiles


# The steps in the order of the loop, and what each reads in the demo: where a run recorded no command, this is shown.
STEPS = {
    "world": {},
    "prepare_preferences": {},
    "prepare_prompts": {},
    "reward_stage1": {"base": "model", "preferences": "data"},
    "reward_stage2": {"reward_stage1": "model", "preferences": "data"},
    "evaluate_reward": {"reward_stage2": "model", "preferences": "data"},
    "sample_responses": {"policy": "model", "prompts": "data"},
    "label_preferences": {"reward_stage2": "model", "sample_responses/candidates": "data"},
    "mpo": {"policy": "model", "label_preferences/preferences": "data"},
    "grpo": {"policy": "model", "prompts": "data", "reward_stage2": "model"},
    "evaluate_policy": {"policy": "model", "prompts": "data", "reward_stage2": "model"},
    "evaluate_mpo": {"mpo": "model", "prompts": "data", "reward_stage2": "model"},
}
INPUTS = {"model_name_or_path": "model", "reward_model": "model", "dataset_name": "data", "data_files": "data"}
RESULTS = ("audit.json", "labels.json", "results.json", "sampling.json", "scores.jsonl", "responses.jsonl")
OUTSIDE = "from outside this run"
# Pixels: a box begins with a line of its name, and each thing that it reads or writes has a line below.
HEAD, LINE = 34, 22


@dataclass
class Thing:
    """
    A model or a data set that a step reads.

    Args:
        name (`str`), kind (`str`):
            What it is called, and what it is, such as `"model"` or `"data"`.
        writer (`str`):
            The step that wrote it.
        facts (`str`, *optional*, defaults to `""`):
            What is said of it.
        readers (`list[str]`, *optional*, defaults to `[]`):
            The steps that read it.
        lane (`int`, *optional*, defaults to `0`):
            The number of its line beside the boxes.
    """

    name: str
    kind: str
    writer: str
    facts: str = ""
    readers: list[str] = field(default_factory=list)
    lane: int = 0


def pipeline(run: RunFiles) -> dict:
    """
    The steps of a run, and what they read of each other.

    Args:
        run ([`RunFiles`]):
            The run.

    Returns:
        `dict`: `steps`, one box each, with the `numbers` of their rows, and `lanes`, the lines between them.
    """
    record = run.json("demo.json")
    seconds, commands = record.get("seconds", {}), record.get("commands", {})
    names = [step for step in STEPS if step in seconds or (run.folder / step).is_dir()]
    names += [step for step in seconds if step not in STEPS]
    reads = {step: inputs_of(step, commands.get(step)) for step in names}
    things = things_of(run, reads)
    rows = ([OUTSIDE] if any(thing.writer == OUTSIDE for thing in things.values()) else []) + names
    give_lanes(things, rows)
    longest = max((value for value in seconds.values()), default=None)
    steps = [
        {
            "step": step,
            "seconds": seconds.get(step),
            "share": seconds[step] / longest if longest and step in seconds else 0,
            "command": commands.get(step),
            "reads": [things[name] for name in reads.get(step, {})],
            "writes": [thing for thing in things.values() if thing.writer == step],
            "files": files_of(run, step),
            "results": ", ".join(name for name in files_of(run, step) if name in RESULTS),
        }
        for step in rows
    ]
    lanes = [lane for row, step in enumerate(steps) for lane in lines_of(row, step, things, rows)]
    numbers = {step: number for number, step in enumerate(rows, 1)}
    n_lanes = 1 + max((thing.lane for thing in things.values()), default=-1)
    return {"steps": steps, "numbers": numbers, "lanes": lanes, "n_lanes": n_lanes}


def inputs_of(step: str, command: str | None) -> dict[str, str]:
    """The models and data sets that a command names, relative to the run's folder where they lie in it."""
    if command is None:
        return STEPS.get(step, {})
    try:
        words = shlex.split(command)
    except ValueError:  # an unclosed quotation mark: it was not written by this project
        return {}
    options = dict(zip(words, words[1:], strict=False))
    out = PurePath(options.get("--output_dir", step))
    root = out.parent if out.name == step else out
    found = {}
    for name, kind in INPUTS.items():
        if path := options.get(f"--{name}"):
            below = PurePath(path).is_relative_to(root) and PurePath(path) != root
            found[str(PurePath(path).relative_to(root)) if below else path] = kind
    return found


def things_of(run: RunFiles, reads: dict[str, dict[str, str]]) -> dict[str, Thing]:
    """All that is read, each with the step that wrote it: that of its folder, else the embedded world's."""
    things: dict[str, Thing] = {}
    for step, inputs in reads.items():
        for name, kind in inputs.items():
            folder = name.split("/")[0]
            is_here = is_inside(run, name)
            writer = folder if folder in reads else "world" if "world" in reads and is_here else OUTSIDE
            thing = things.setdefault(name, Thing(name, kind, writer, facts_of(run, name) if is_here else ""))
            thing.readers.append(step)
    return things


def is_inside(run: RunFiles, name: str) -> bool:
    """Whether a name is of something on disk in the run's folder: a command may name any path."""
    path = (run.folder / name).resolve()
    return path.exists() and path.is_relative_to(run.folder.resolve())


def facts_of(run: RunFiles, name: str) -> str:
    """The size of a model, or the rows of a data set, where it is on disk."""
    folder = run.folder / name
    weights = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    if weights:
        return f"{weights / 1e6:,.1f} MB" if weights < 1e9 else f"{weights / 1e9:,.1f} GB"
    if (folder / "dataset_dict.json").exists():
        splits = json.loads((folder / "dataset_dict.json").read_text(encoding="utf-8"))["splits"]
        return ", ".join(f"{len(run.dataset(name, split)):,} {split}" for split in splits)
    return f"{len(run.dataset(name)):,} rows" if (folder / "dataset_info.json").exists() else ""


def files_of(run: RunFiles, step: str) -> list[str]:
    """The names in a step's own folder."""
    folder = run.folder / step
    return (
        sorted(f"{path.name}/" if path.is_dir() else path.name for path in folder.iterdir()) if folder.is_dir() else []
    )


def give_lanes(things: dict[str, Thing], rows: list[str]) -> None:
    """Things that are read over many steps have the outer lanes; two in one lane share no row."""
    spans: dict[str, tuple[int, int]] = {}
    for name, thing in things.items():
        at = [rows.index(step) for step in (thing.writer, *thing.readers)]
        spans[name] = (min(at), max(at))
    taken: list[list[tuple[int, int]]] = []
    for name in sorted(spans, key=lambda name: spans[name][0] - spans[name][1]):
        first, last = spans[name]
        free = [lane for lane, held in enumerate(taken) if all(last < start or end < first for start, end in held)]
        things[name].lane = free[0] if free else len(taken)
        if not free:
            taken.append([])
        taken[things[name].lane].append((first, last))


def lines_of(row: int, step: dict, things: dict[str, Thing], rows: list[str]) -> list[dict]:
    """Lines in the row of one step: down a lane, into the box for what it reads, out of it for what it writes."""
    found = []
    in_box = [thing.name for thing in (*step["reads"], *step["writes"])]
    for thing in things.values():
        at = [rows.index(name) for name in (thing.writer, *thing.readers)]
        if not min(at) <= row <= max(at):
            continue
        common = {"row": row, "lane": thing.lane, "kind": thing.kind}
        level = None
        if thing.name in in_box:
            level = HEAD + LINE * in_box.index(thing.name) + LINE // 2
            found.append(common | {"shape": "out" if thing.writer == step["step"] else "in", "top": level})
        top = level if row == min(at) else 0
        found.append(common | {"shape": "down", "top": top, "height": level - top if row == max(at) else None})
    return found
