"""The files that one run left on disk, and the names of those that are not there."""

import json
from functools import cached_property
from pathlib import Path

from datasets import Dataset, DatasetDict, load_from_disk

from ..labelling.verifiers import VERIFIERS


# `training` is that of the embedded world's own two models.
TRAININGS = ("training", "reward_stage1", "reward_stage2", "mpo", "grpo")


class RunFiles:
    """
    Args:
        folder (`Path`):
            Of a run: one folder per recipe is in it.
        name (`str`):
            The run is called this on the page.
    """

    def __init__(self, folder: Path, name: str):
        if not folder.is_dir():
            raise ValueError(f"{folder} is no folder. Give the one that holds a run: outputs/tiny after `make demo`.")
        self.folder, self.name = folder, name
        self.missing: set[str] = set()

    def json(self, name: str) -> dict:
        """What a JSON file holds, and `{}` where it is missing."""
        return json.loads((self.folder / name).read_text(encoding="utf-8")) if self.is_there(name) else {}

    def lines(self, name: str) -> list[dict]:
        """The rows of a JSONL file, and none where it is missing."""
        if not self.is_there(name):
            return []
        with open(self.folder / name, encoding="utf-8") as file:  # only \n ends a row: texts hold other separators
            return [json.loads(line) for line in file if line.strip()]

    def dataset(self, name: str, split: str | None = None) -> Dataset | None:
        """The dataset in the folder `name`, or one split of it, and `None` where it is missing."""
        if not self.is_there(name):
            return None
        dataset = load_from_disk(str(self.folder / name))
        return dataset[split] if isinstance(dataset, DatasetDict) else dataset

    def is_there(self, name: str) -> bool:
        """Whether a file or folder of the run exists. One that does not is noted as missing."""
        if not (self.folder / name).exists():
            self.missing.add(name)
        return name not in self.missing

    @cached_property
    def pair_scores(self) -> list[dict]:
        """Lines of `evaluate_reward/scores.jsonl` that hold both scores of a pair."""
        lines = self.lines("evaluate_reward/scores.jsonl")
        both = [line for line in lines if len(line["scores"] or []) == 2 and None not in line["scores"]]
        if len(both) < len(lines):
            self.missing.add(f"evaluate_reward/scores.jsonl: both scores of {len(lines) - len(both):,} rows")
        return both

    @cached_property
    def verify(self):
        """The verifier that labelled the pairs."""
        settings = self.json("label_preferences/labels.json").get("settings", {})
        return VERIFIERS[settings.get("verifier", "exact")]

    @cached_property
    def histories(self) -> dict[str, list[dict]]:
        """The longest `log_history` that each recipe left, of the run or of a checkpoint."""
        found: dict[str, list[dict]] = {}
        for step in TRAININGS:
            names = (f"{step}/trainer_state.json", f"{step}/checkpoint-*/trainer_state.json")
            states = [path.read_text(encoding="utf-8") for name in names for path in self.folder.glob(name)]
            logs = [json.loads(state)["log_history"] for state in states]
            if logs:
                found[step] = max(logs, key=len)
            elif (self.folder / step).is_dir():
                self.missing.add(f"{step}/trainer_state.json")
        return found
