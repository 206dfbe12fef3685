"""A folder that appears whole or not at all."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

from datasets import Dataset, DatasetDict, Image, List

from .audit import CurationAudit
from .dataset_card import dataset_card


WRITTEN = {"preferences", "README.md", "audit.json", "audit.md", "dropped.jsonl", "repair.jsonl", "quarantine.jsonl"}


class OutputFolder:
    """
    Collects what a preparation writes in `<path>.partial` and puts it in place at the end, so that a run that was
    stopped leaves the former result, and the next run starts from nothing.

    Args:
        path (`str`):
            Where the result will be.

    Attributes:
        work (`Path`): A folder for intermediate files, which does not become part of the result.

    Raises:
        ValueError: If `path` holds files that a preparation does not write: they would be lost.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.work = self.partial / "work"
        if self.path.exists() and (others := sorted({item.name for item in self.path.iterdir()} - WRITTEN)):
            raise ValueError(f"`output_dir: {path}` holds {others}, which the result would replace. Move them.")
        shutil.rmtree(self.partial, ignore_errors=True)
        self.work.mkdir(parents=True)

    def save(self, datasets: DatasetDict, audit: CurationAudit, dropped: list[dict], to_repair: list[dict]):
        """
        Write the result, and put it in place.

        Args:
            datasets (`DatasetDict`):
                The pairs by split, for `preferences`. Their card is `README.md`.
            audit ([`CurationAudit`]):
                What each step took out, for `audit.json` and `audit.md`.
            dropped (`list[dict]`):
                Every pair that went, for `dropped.jsonl`. Those of the step `images` are in `quarantine.jsonl`, too.
            to_repair (`list[dict]`):
                Those that a better response would repair, for `repair.jsonl`.

        Raises:
            ValueError: If no pair is left. The audit and the lists are written all the same, beside a former result.
        """
        audit.save(self.partial)
        quarantined = [row for row in dropped if row["step"] == "images"]
        for name, rows in (("dropped", dropped), ("quarantine", quarantined), ("repair", to_repair)):
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (self.partial / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        if datasets:
            splits = {name: len(dataset) for name, dataset in datasets.items()}
            datasets.save_to_disk(str(self.partial / "preferences"))
            with_images = {name: count_with_images(dataset) for name, dataset in datasets.items()}
            card = dataset_card(audit.as_dict(), splits, with_images)
            (self.partial / "README.md").write_text(card, encoding="utf-8")
        shutil.rmtree(self.work)
        if not datasets and (self.path / "preferences").exists():
            raise ValueError(self.nothing_left(self.partial, dropped))
        former = self.path.with_name(f"{self.path.name}.former")
        shutil.rmtree(former, ignore_errors=True)
        if self.path.exists():
            os.replace(self.path, former)
        os.replace(self.partial, self.path)
        shutil.rmtree(former, ignore_errors=True)
        if not datasets:
            raise ValueError(self.nothing_left(self.path, dropped))

    @staticmethod
    def nothing_left(folder: Path, dropped: list[dict]) -> str:
        """What is said where all pairs are among `dropped`; the audit is in `folder`."""
        steps = ", ".join(f"{step} took {n:,}" for step, n in Counter(row["step"] for row in dropped).items())
        return f"No pair is left: {steps}. {folder / 'audit.md'} says why; relax a step."


def count_with_images(dataset: Dataset) -> int:
    """How many rows of `dataset` have at least one image."""
    images = dataset.select_columns("images").cast_column("images", List(Image(decode=False)))
    return sum(len(row) > 0 for row in images["images"])
