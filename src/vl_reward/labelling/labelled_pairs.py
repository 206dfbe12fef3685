"""Pairs that rules made of scored samples, on their way to a dataset."""

import json
import shutil
from collections import Counter
from pathlib import Path

from datasets import Dataset, Image, List, concatenate_datasets

from ..curation.dataset_card import label_card
from ..curation.steps.mixture import over_share
from .pair_rules import Candidate, Pairs, unusable


def as_line(rule: str, chosen: Candidate, rejected: Candidate) -> str:
    """A pair in TRL's preference format, as a line of JSON."""
    sides = {"chosen": chosen, "rejected": rejected}
    row = {side: [{"role": "assistant", "content": candidate.text}] for side, candidate in sides.items()}
    row |= {f"score_{side}": candidate.score for side, candidate in sides.items()}
    return json.dumps(row | {"rule": rule}) + "\n"


class LabelledPairs:
    """
    Collects pairs in a file, so that memory holds no responses, and writes the dataset.

    Args:
        folder (`str` or `Path`):
            Where to write.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.path = self.folder / "pairs.jsonl"
        self.path.write_text("")
        self.prompts: list[int] = []  # of each pair: the number of its prompt
        self.rules: list[str] = []
        self.names: list[str] = []
        self.shorter: list[bool] = []  # whether the chosen response is the shorter one
        self.refused: Counter = Counter()
        self.without_pairs: Counter = Counter()

    def add(self, prompt: int, id: str, candidates: list[Candidate], made: dict[str, Pairs]) -> None:
        """Add what each rule of `pair_rules` made of a prompt's candidates, and count what was not paired."""
        self.refused.update(unusable(candidates))
        reasons = []
        with open(self.path, "a", encoding="utf-8") as file:
            for rule, (pairs, refused) in made.items():
                for number, (chosen, rejected) in enumerate(pairs):
                    file.write(as_line(rule, chosen, rejected))
                    self.names.append(f"{id} {rule} {number}")
                    self.shorter.append(len(chosen.text) < len(rejected.text))
                self.prompts += [prompt] * len(pairs)
                self.rules += [rule] * len(pairs)
                reasons += [f"{rule}: {reason}" for reason, n in refused.items() if n]
                self.refused.update({f"{rule}: {reason}": n for reason, n in refused.items()})
        if not any(pairs for pairs, _ in made.values()):
            self.without_pairs[reasons[0]] += 1

    def save(self, candidates: Dataset, max_chosen_shorter_fraction: float, seed: int, settings: dict) -> dict:
        """
        Write the dataset `preferences`, its card and `labels.json`.

        Args:
            candidates (`Dataset`):
                The prompts, with `id`, `prompt` and `images`.
            max_chosen_shorter_fraction (`float`):
                Pairs are left out, drawn by `seed`, until the chosen response is the shorter one in no more than this
                fraction of them: a policy would learn to be brief.
            seed (`int`):
                The seed decides which pairs.
            settings (`dict`):
                What else the card and the report record.

        Returns:
            `dict`: the report, as `labels.json` has it.

        Raises:
            ValueError: If there is no pair.
        """
        gone = over_share(self.names, self.shorter, max_chosen_shorter_fraction, seed)
        kept = [number for number in range(len(self.names)) if number not in gone]
        prompts = [self.prompts[number] for number in kept]
        report = {"pairs": len(kept), "prompts": len(candidates), "labelled": len(set(prompts))}
        report |= {"pairs_by_rule": Counter(self.rules[number] for number in kept)}
        report["prompts_without_pairs"] = dict(self.without_pairs)
        if lost := len(set(self.prompts)) - len(set(prompts)):
            report["prompts_without_pairs"]["over max_chosen_shorter_fraction"] = lost
        report |= {"refused": {**+self.refused, "over max_chosen_shorter_fraction": len(gone)}, **settings}
        (self.folder / "labels.json").write_text(json.dumps(report, indent=2))
        # Those of an earlier rule must not be trained on as if they were these.
        shutil.rmtree(self.folder / "preferences", ignore_errors=True)
        (self.folder / "README.md").unlink(missing_ok=True)
        if not kept:
            raise ValueError(
                f"No prompt gave a pair: {report['refused']}. Lower `min_score_margin`, or sample more diverse "
                "responses."
            )
        rows = candidates.select(prompts).select_columns(["id", "prompt", "images"])
        pairs = Dataset.from_json(str(self.path), cache_dir=str(self.folder / "cache")).select(kept)
        columns = [rows.cast_column("images", List(Image())), pairs]
        concatenate_datasets(columns, axis=1).save_to_disk(self.folder / "preferences")
        (self.folder / "README.md").write_text(label_card(report))
        return report
