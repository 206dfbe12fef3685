"""What training would refuse, refused before its first step."""

import logging
import multiprocessing
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Literal

from accelerate import PartialState
from datasets import Dataset

from .row_checks import PromptCheck
from .usable_rows import shown, verdicts_on, write_refused, write_videos


logger = logging.getLogger(__name__)


class TrainingPreflight:
    """
    Looks at whole sets before the first step, every process and its workers at their share. What it finds is in
    `refused.jsonl`: `split`, `id` and `reason`.

    A row that cannot be used stops the run: data that is trained on should be mended. What is longer than `max_length`
    stops it, too, or is left out.

    Args:
        folder (`str` or `Path`):
            The trainer's `output_dir`.
        too_long (`str`, *optional*, defaults to `"stop"`):
            What becomes of rows over `max_length`: `"stop"` or `"drop"`.
        num_proc (`int`, *optional*):
            Workers of each process. Without it, the process does its share itself.

    Example:
    ```python
    >>> preflight = TrainingPreflight(args.output_dir, "drop", args.dataset_num_proc)
    >>> train, test = preflight(PairCheck(processor, args.max_length), train=train, test=test)
    ```
    """

    def __init__(self, folder: str | Path, too_long: Literal["stop", "drop"] = "stop", num_proc: int | None = None):
        self.folder, self.too_long, self.num_proc = Path(folder), too_long, num_proc
        self.refused: list[dict] = []

    def __call__(self, check: PromptCheck, **splits: Dataset) -> list[Dataset]:
        """
        Args:
            check ([`PromptCheck`]):
                Says why a row cannot be trained on.
            **splits (`Dataset`):
                The sets, by their names in messages.

        Returns:
            `list[Dataset]`: the sets, without what is too long if it is to be dropped.

        Raises:
            ValueError: If a row is refused, or a set is empty.
        """
        fatal, kept = [], []
        # The children do not touch a GPU, and a fork has the processor already, as in `datasets`.
        workers = nullcontext()
        if self.num_proc:
            # A pool ends its children by SIGTERM, and waits: they must not do with it what this process would.
            at_sigterm = signal.SIGTERM, signal.SIG_DFL
            workers = multiprocessing.get_context("fork").Pool(self.num_proc, signal.signal, at_sigterm)
        with workers as pool:
            for name, rows in splits.items():
                verdicts = verdicts_on(rows, check, self.folder, pool)
                write_videos(self.folder, rows, verdicts, split=name)
                bad = [i for i, verdict in enumerate(verdicts) if verdict["refused"]]
                found = [{"split": name, "id": rows[i]["id"], "reason": verdicts[i]["refused"]} for i in bad]
                self.refused += found
                fatal += [
                    row
                    for i, row in zip(bad, found, strict=True)
                    if self.too_long == "stop" or not verdicts[i]["too_long"]
                ]
                kept.append(rows.select([i for i, verdict in enumerate(verdicts) if not verdict["refused"]]))
        write_refused(self.folder, self.refused)
        self._report(fatal, splits, kept)
        return [rows.remove_columns("unreadable") if "unreadable" in rows.column_names else rows for rows in kept]

    def _report(self, fatal: list[dict], splits: dict[str, Dataset], kept: list[Dataset]) -> None:
        file = self.folder / "refused.jsonl"
        if fatal:
            raise ValueError(
                f"{len(fatal):,} of {sum(map(len, splits.values())):,} rows cannot be trained on: {shown(fatal)}. "
                f"{file} has all of them. Mend them or take them out; `too_long: drop` leaves out those that are over "
                "`max_length`, and no others. Nothing was trained."
            )
        for (name, rows), left in zip(splits.items(), kept, strict=True):
            if not len(rows):
                raise ValueError(
                    f"`{name}` has no rows, and at least one is needed. Name a split or a file that has some."
                )
            if not len(left):
                raise ValueError(f"None of {len(rows):,} rows of {name} is left. Raise `max_length`: see {file}.")
            if len(left) < len(rows) and PartialState().is_main_process:
                logger.warning(
                    f"{name}: {len(rows) - len(left):,} of {len(rows):,} rows are over `max_length` and left out: see "
                    f"{file}."
                )
            if PartialState().is_main_process and (equal := equal_pairs(left)):
                logger.warning(
                    f"{name}: {len(equal):,} of {len(left):,} pairs have two responses that are the same: nothing is "
                    f"preferred in {', '.join(equal[:3])}{', ...' if len(equal) > 3 else ''}. Leave them out."
                )


def equal_pairs(rows: Dataset) -> list[str]:
    """The ids of pairs whose chosen and rejected responses are the same."""
    if not {"chosen", "rejected"} <= {*rows.column_names}:
        return []
    columns = (rows[name] for name in ("id", "chosen", "rejected"))
    return [id for id, chosen, rejected in zip(*columns, strict=True) if chosen == rejected]
