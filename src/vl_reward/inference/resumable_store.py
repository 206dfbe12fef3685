"""Work on disk as it is done: a run that is stopped goes on where it was, on however many processes."""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from tqdm import tqdm

from ..data.splits import in_shares
from .fingerprints import row_key


POLL_SECONDS = 0.5
# Shards that another process has begun are taken over when none was finished for this long, or for three times as long
# as a shard takes here. A launcher stops all processes when one dies; those that were started by hand go on.
PATIENCE_SECONDS = 1800


class ResumableStore:
    """
    Results of rows, in a file of JSON lines per shard of rows: samples, scores, log-probabilities, judgements.

    Neither a stop nor the number of processes changes a shard. Its file appears whole or not at all, and its name holds
    a hash of all that decides its content, so results of another model, setting or row are never taken for these. A
    process that is done with its own shards takes those that the others have not begun, from the end. Two that do the
    same shard write the same bytes, so nothing depends on who does it, and nobody waits at a barrier.

    Args:
        folder (`str` or `Path`):
            Where the files are, in a folder per `fingerprint`. All processes have to see it.
        fingerprint (`str`):
            A hash of all that decides a result besides its row: model, processor, settings.
        rows (`Sequence[dict]`):
            What decides each result: `prompt`, `images` and whatever else. A `Dataset` is read as it is needed; its
            images must not be decoded.
        shard_size (`int`, *optional*, defaults to `16`):
            Rows that are done, and lost by a stop, at a time.
        in_step (`bool`, *optional*, defaults to `False`):
            Whether all processes do their shards in the same rounds, as a model that is sharded among them needs: each
            of its forward passes wants all processes.
        places (`Sequence[int]`, *optional*):
            Where each row stands in a larger set, in ascending order. Shards are cut from that set, so a row that is
            left out of `rows`, or comes back once it is mended, changes its own shard alone.

    Raises:
        OSError: If the disk is full, say. The shards before are kept.

    Example:
    ```python
    >>> store = ResumableStore("outputs/samples", sampler.fingerprint(), prompts)
    >>> for number, rows in store.pending():
    ...     store.write(number, responses=[answer(row["prompt"]) for row in rows])
    >>> [row["responses"] for row in store.read()]
    ```
    """

    def __init__(
        self,
        folder: str | Path,
        fingerprint: str,
        rows: Sequence[dict],
        shard_size: int = 16,
        in_step: bool = False,
        places: Sequence[int] | None = None,
    ):
        self.state = PartialState()
        self.folder, self.fingerprint = Path(folder) / fingerprint[:16], fingerprint
        self.rows, self.in_step = rows, in_step
        self.shards: dict[int, list[int]] = {}  # row numbers by shard; one without rows does not exist
        for i, place in enumerate(range(len(rows)) if places is None else places):
            self.shards.setdefault(place // shard_size, []).append(i)
        numbers = list(self.shards)
        names = in_shares(lambda i: self._name(numbers[i]), len(numbers), f"Keys of {Path(folder).name}")
        self.paths = {number: self.folder / name for number, name in zip(numbers, names, strict=True)}
        self.run = broadcast_object_list([secrets.token_hex(8)])[0]  # what an earlier run has begun does not count
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, number: int) -> Path:
        """The file of the shard `number`."""
        return self.paths[number]

    def _name(self, number: int) -> str:
        """The file's name, for which every image of the shard is read."""
        keys = [row_key(self.fingerprint, self.rows[i]) for i in self.shards[number]]
        digest = hashlib.sha256("".join([str(number), *keys]).encode()).hexdigest()
        return f"{number:06d}-{digest[:16]}.jsonl"

    def missing(self) -> list[int]:
        """The numbers of the shards that are not on disk."""
        return [number for number in self.shards if not self.path(number).exists()]

    def pending(self) -> Iterator[tuple[int, list[dict]]]:
        """
        The number and the rows of each shard that this process has to do, to be given to [`ResumableStore.write`]. Ends
        when all shards are there, those of other processes too. The main process shows how many are.
        """
        with tqdm(total=len(self.shards), desc=self.folder.parent.name, disable=not self.state.is_main_process) as bar:
            slowest = 0.0
            for number in self._pending_in_step() if self.in_step else self._own_then_others():
                started = time.monotonic()
                yield number, [self.rows[i] for i in self.shards[number]]
                slowest = max(slowest, time.monotonic() - started)
                self._show(bar)
            missing, seen = self.missing(), time.monotonic()
            while missing:  # what others have begun
                self._show(bar)
                if not self.in_step and time.monotonic() - seen > max(PATIENCE_SECONDS, 3 * slowest):
                    yield missing[-1], [self.rows[i] for i in self.shards[missing[-1]]]
                time.sleep(POLL_SECONDS)
                left = [number for number in missing if not self.path(number).exists()]
                missing, seen = left, seen if left == missing else time.monotonic()
            self._show(bar)
        if self.state.is_main_process:
            for leftover in self.folder.glob(".*.begun"):
                shutil.rmtree(leftover, ignore_errors=True)
            for leftover in set(self.folder.glob(".*.partial")) - set(self.folder.glob(f".{self.run}*")):
                leftover.unlink()

    def _own_then_others(self) -> Iterator[int]:
        numbers, rank, world = list(self.shards), self.state.process_index, self.state.num_processes
        for number in [*numbers[rank::world], *reversed(numbers)]:
            if self.path(number).exists():
                continue
            begun = self.folder / f".{self.run}.begun"
            begun.mkdir(exist_ok=True)
            try:
                (begun / str(number)).touch(exist_ok=False)
            except FileExistsError:
                continue
            yield number

    def _pending_in_step(self) -> Iterator[int]:
        """As many shards for every process. Where they run out, the last one is done by several."""
        missing, world = broadcast_object_list([self.missing()])[0], self.state.num_processes
        for start in range(0, len(missing), world):
            yield missing[min(start + self.state.process_index, len(missing) - 1)]

    def _show(self, bar: tqdm) -> None:
        if not bar.disable:
            bar.update(len({name[:6] for name in os.listdir(self.folder) if name.endswith(".jsonl")}) - bar.n)

    def write(self, number: int, **columns: list) -> None:
        """
        Write a shard's results.

        Args:
            number (`int`):
                As [`ResumableStore.pending`] gave it.
            **columns (`list`):
                One value per row of the shard in each.
        """
        path = self.path(number)
        partial = self.folder / f".{self.run}.{number}.{self.state.process_index}.partial"
        lines = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        assert len(lines) == len(self.shards[number]), "one result per row"
        try:
            with open(partial, "w", encoding="utf-8") as file:
                file.writelines(json.dumps(line) + "\n" for line in lines)
            os.replace(partial, path)
        except OSError as error:
            message = f"{error.strerror}. The shards before are kept: mend the cause, and run the command again"
            raise OSError(error.errno, message, str(path)) from error

    def files(self) -> list[str]:
        """
        The files of all shards, in the order of the rows.

        Raises:
            ValueError: If a shard is missing.
        """
        if missing := self.missing():
            raise ValueError(
                f"{len(missing)} of {len(self.shards)} shards are not there, the first is "
                f"{self.path(missing[0]).name}. A process was stopped: run the same command again, it does what is "
                "missing."
            )
        return [str(self.path(number)) for number in self.shards]

    def read(self) -> Iterator[dict]:
        """The results of all rows, in their order, read as they are needed. Raises what [`files`] does."""
        return (json.loads(line) for file in self.files() for line in open(file, encoding="utf-8"))
