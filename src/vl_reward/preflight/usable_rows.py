"""The rows of a set that can be used, and the account of the others."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset

from ..inference.resumable_store import ResumableStore
from .row_checks import PromptCheck


logger = logging.getLogger(__name__)

CHECKED_AT_A_TIME = 256
EXAMPLES = 3


def verdicts_on(rows: Dataset | Sequence[dict], check: PromptCheck, folder: str | Path, workers=None) -> list[dict]:
    """
    What `check` says of each row. It is kept in `checks` in the folder: every process does its share, and a row is met
    again only when it has changed.

    Args:
        rows (`Dataset` or `Sequence[dict]`):
            All rows. Images must not be decoded.
        check ([`PromptCheck`]):
            From a row to its verdict.
        folder (`str` or `Path`):
            Of the run.
        workers (`multiprocessing.Pool`, *optional*):
            They do this process's share.

    Returns:
        `list[dict]`: what [`PromptCheck`] gives for each row.
    """
    if isinstance(rows, Dataset):
        rows = rows.select_columns([name for name in check.columns if name in rows.column_names])
    store = ResumableStore(Path(folder) / "checks", check.fingerprint(), rows, CHECKED_AT_A_TIME)
    for number, shard in store.pending():
        verdicts = list(map(check, shard) if workers is None else workers.imap(check, shard, chunksize=8))
        store.write(
            number, **{key: [verdict[key] for verdict in verdicts] for key in ("refused", "too_long", "videos")}
        )
    return list(store.read())


def write_videos(folder: str | Path, rows: Dataset | Sequence[dict], verdicts: list[dict], split: str = "") -> None:
    """
    Write what was sampled of each row's videos, where there are any.

    Args:
        folder (`str` or `Path`):
            Where to write `videos.jsonl`.
        rows (`Dataset` or `Sequence[dict]`):
            Rows with `id`.
        verdicts (`list[dict]`):
            What [`PromptCheck`] gives for each.
        split (`str`, *optional*, defaults to `""`):
            Makes the file `videos_<split>.jsonl`.
    """
    shown = [i for i, verdict in enumerate(verdicts) if verdict["videos"]]
    if shown and PartialState().is_main_process:
        lines = [{"id": rows[i]["id"], "videos": verdicts[i]["videos"]} for i in shown]
        write_lines(Path(folder) / (f"videos_{split}.jsonl" if split else "videos.jsonl"), lines)


def write_refused(folder: str | Path, refused: list[dict]) -> None:
    """Write `refused` to `refused.jsonl`, and wait until it is there: a process that raises now ends the run."""
    state = PartialState()
    if state.is_main_process:
        write_lines(Path(folder) / "refused.jsonl", refused)
    state.wait_for_everyone()


def write_lines(path: Path, rows: list[dict]) -> None:
    """Write rows as JSON lines. The file appears whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    os.replace(partial, path)


def shown(refused: list[dict]) -> str:
    """The first few rows that are refused, in an error message."""
    told = "; ".join(f"row {row['id']}: {row['reason'].removesuffix('.')}" for row in refused[:EXAMPLES])
    return told + (f"; and {len(refused) - EXAMPLES:,} more" if len(refused) > EXAMPLES else "")


class UsableRows:
    """
    Finds the rows that a model can be asked about, before it is asked about any. The others go to `refused.jsonl`, with
    their ids and reasons, and the run goes on without them, unless there are too many.

    Args:
        rows (`Dataset` or `AskedRows`):
            All rows.
        check ([`PromptCheck`]):
            Says why a row cannot be used.
        folder (`str` or `Path`):
            Where to write.
        max_refused (`float`):
            The fraction of the rows that may be refused.

    Attributes:
        rows (`Dataset` or `AskedRows`): Those that can be used.
        places (`list[int]`): Where each of them stands among all, as [`ResumableStore`] takes it.
        left_out (`list[int]`): Where the others stand.
        refused (`list[dict]`): Their `id` and `reason`.

    Raises:
        ValueError: If more rows are refused than `max_refused` allows, or none is left.
    """

    def __init__(self, rows: Dataset | Sequence[dict], check: PromptCheck, folder: str | Path, max_refused: float):
        if not len(rows):
            raise ValueError("The set has no rows, so there is nothing to do.")
        verdicts = verdicts_on(rows, check, folder)
        write_videos(folder, rows, verdicts)
        reasons = [verdict["refused"] for verdict in verdicts]
        self.places = [i for i, reason in enumerate(reasons) if reason is None]
        self.left_out = [i for i, reason in enumerate(reasons) if reason is not None]
        self.refused = [{"id": rows[i]["id"], "reason": reasons[i]} for i in self.left_out]
        write_refused(folder, self.refused)
        self.folder, self.max_refused, self.total = Path(folder), max_refused, len(rows)
        self._check_share()
        self.rows = rows.select(self.places)
        if isinstance(rows, Dataset) and "unreadable" in rows.column_names:
            self.rows = self.rows.remove_columns("unreadable")

    def refuse(self, reasons: dict[int, str]) -> list[int]:
        """
        Set rows aside that turned out to be unusable in the work itself. The main process calls it, at the end.

        Args:
            reasons (`dict[int, str]`):
                Why, by the row's number among those that could be used.

        Returns:
            `list[int]`: the numbers of the rows that are left.

        Raises:
            ValueError: As for the rows that are refused at the beginning.
        """
        left = [i for i in range(len(self.places)) if i not in reasons]
        self.refused += [{"id": self.rows[i]["id"], "reason": reason} for i, reason in reasons.items()]
        self.left_out = sorted([*self.left_out, *(self.places[i] for i in reasons)])
        self.rows, self.places = self.rows.select(left), [self.places[i] for i in left]
        write_lines(self.folder / "refused.jsonl", self.refused)
        self._check_share()
        return left

    def _check_share(self) -> None:
        path, n = self.folder / "refused.jsonl", len(self.refused)
        if n > self.max_refused * self.total or not self.places:
            raise ValueError(
                f"{n:,} of {self.total:,} rows cannot be used, {n / self.total:.1%}, and `max_refused` is "
                f"{self.max_refused}: {shown(self.refused)}. {path} has all of them. Mend them, take them out, or "
                "raise `max_refused`."
            )
        if self.refused and PartialState().is_main_process:
            logger.warning(f"{n:,} of {self.total:,} rows are left out: see {path}.")
