"""Pairs that rules made of scored samples, on their way to a dataset."""

import json
import math
from collections import Counter
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from ..curation.dataset_card import label_card
from ..curation.steps.mixture import over_share
from ..data.splits import with_images
from .label_folder import LabelFolder
from .pair_rules import Candidate, Pairs, unusable


EXAMPLES = 5  # of responses that cannot be read


def as_line(rule: str, chosen: Candidate, rejected: Candidate) -> str:
    """The pair of `chosen` and `rejected` that `rule` made, in TRL's preference format, as a line of JSON."""
    sides = {"chosen": chosen, "rejected": rejected}
    row = {side: [{"role": "assistant", "content": candidate.text}] for side, candidate in sides.items()}
    row |= {f"score_{side}": candidate.score for side, candidate in sides.items()}
    return json.dumps(row | {"rule": rule}) + "\n"


class LabelledPairs:
    """
    Collects pairs in a file, so that memory holds no responses, and writes the dataset.

    Args:
        folder (`str` or `Path`):
            Where to write, see [`LabelFolder`].

    Raises:
        ValueError: If the folder holds what the result would replace.
    """

    def __init__(self, folder: str | Path):
        self.folder = LabelFolder(folder)
        self.path = self.folder.partial / "pairs.jsonl"
        self.begun = False  # a process that does not write makes no files
        self.prompts: list[int] = []  # of each pair: the number of its prompt
        self.rules: list[str] = []
        self.names: list[str] = []
        self.shorter: list[bool] = []  # whether the chosen response is the shorter one
        self.refused: Counter = Counter()
        self.without_pairs: Counter = Counter()
        self.unreadable: list[dict] = []  # the first few responses
        self.n_unreadable = 0

    def add(self, prompt: int, id: str, candidates: list[Candidate], made: dict[str, Pairs]) -> None:
        """
        Add what each rule of `pair_rules` made of a prompt's candidates, and count what was not paired.

        Args:
            prompt (`int`), id (`str`):
                The prompt's place among all, and its id.
            candidates (`list[Candidate]`):
                Its responses.
            made (`dict[str, Pairs]`):
                By the name of each rule, its pairs and what it left out, by reason.

        Raises:
            ValueError: With the row's id, for a score that is not finite.
        """
        scores = [candidate.score for candidate in candidates]
        if not all(score is None or math.isfinite(score) for score in scores):
            raise ValueError(
                f"row {id}: its scores are {scores}, and numbers are needed to compare them. The reward model is "
                "broken."
            )
        self._begin()
        with open(self.folder.partial / "scores.jsonl", "a") as file:
            file.write(json.dumps({"index": prompt, "id": id, "scores": scores}) + "\n")
        unreadable = [candidate for candidate in candidates if candidate.unreadable]
        self.n_unreadable += len(unreadable)
        room = EXAMPLES - len(self.unreadable)
        self.unreadable += [{"id": id, "answer": one.answer, "response": one.text[-500:]} for one in unreadable[:room]]
        self.refused.update(unusable(candidates))
        self._add_pairs(prompt, id, made)

    def _begin(self) -> None:
        if not self.begun:
            self.folder.begin()
            self.path.touch()
            self.begun = True

    def _add_pairs(self, prompt: int, id: str, made: dict[str, Pairs]) -> None:
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
        report |= {"refused": {**+self.refused, "over max_chosen_shorter_fraction": len(gone)}}
        report |= {"unreadable_answers": {"responses": self.n_unreadable, "examples": self.unreadable}, **settings}
        self._begin()
        partial = self.folder.partial
        (partial / "labels.json").write_text(json.dumps(report, indent=2))
        if kept:
            asked = [name for name in ("id", "prompt", "images", "videos") if name in candidates.column_names]
            rows = candidates.select(prompts).select_columns(asked)
            pairs = Dataset.from_json(str(self.path), cache_dir=str(partial / "cache")).select(kept)
            columns = [with_images(rows, decode=True), pairs]
            concatenate_datasets(columns, axis=1).save_to_disk(partial / "preferences")
            (partial / "README.md").write_text(label_card(report))
        # Pairs of an earlier rule go, too, where there are none now: they must not be trained on as if they were these.
        self.folder.finish()
        if not kept:
            raise ValueError(
                f"No prompt gave a pair: {report['refused']}. Lower `min_score_margin`, or sample more diverse "
                "responses."
            )
        return report
