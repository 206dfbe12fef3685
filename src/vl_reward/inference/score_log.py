"""Scores that are written down as they are made, so that a run killed at any byte goes on where it stopped."""

import hashlib
import json
from pathlib import Path

from .fingerprints import model_fingerprint, row_key
from .scorer import RewardScorer


def read_whole_lines(path: Path) -> tuple[list[str], int]:
    """The lines of a file that end in a newline, and the bytes they take. What follows the last newline is torn."""
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    return whole.decode().split("\n") if newline else [], len(whole) + len(newline)


class ScoreLog:
    """
    Scores by key, in files of JSON lines to which every process appends its own. All files are read at the start,
    whatever the number of processes that wrote them; a torn last line is dropped.

    Args:
        folder (`str` or `Path`):
            Where the files are.
        process_index (`int`, *optional*, defaults to `0`):
            Which of them this process appends to.

    Raises:
        ValueError: If a line that is not the last is not JSON.
    """

    def __init__(self, folder: str | Path, process_index: int = 0):
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.path = self.folder / f"process_{process_index:05d}.jsonl"
        if self.path.exists():
            _, whole = read_whole_lines(self.path)
            with open(self.path, "r+b") as file:
                file.truncate(whole)
        self.scores = {}
        self.read()

    def read(self) -> None:
        """Read what all processes have written by now."""
        for path in sorted(self.folder.glob("process_*.jsonl")):
            for number, text in enumerate(read_whole_lines(path)[0], 1):
                try:
                    line = json.loads(text)
                except json.JSONDecodeError as error:
                    raise ValueError(
                        f"{path}, line {number} is not JSON. Delete the line; it is scored anew."
                    ) from error
                self.scores[line["key"]] = line["scores"]

    def append(self, scores: dict[str, list[float]]) -> None:
        """
        Write scores down, and hand them to the operating system before returning.

        Raises:
            OSError: If the disk is full, say. What was written before is kept.
        """
        try:
            with open(self.path, "a", encoding="utf-8") as file:
                for key, values in scores.items():
                    file.write(json.dumps({"key": key, "scores": values}) + "\n")
        except OSError as error:
            message = f"{error.strerror}. What was written before is kept: mend the cause, and run the command again"
            raise OSError(error.errno, message, str(self.path)) from error
        self.scores |= scores


class ResumableScorer:
    """
    Scores rows of a prompt, its images and its responses, over several processes, and goes on where it was stopped.

    Rows are scored in fixed chunks, which neither the number of processes nor a stop changes, and a chunk that lacks a
    row is scored whole. So the scores are the same to the byte however often the run was killed, on the same hardware
    with the same number of threads. On a CPU, MKL needs `MKL_CBWR=AUTO` in the environment for that: without it, the
    alignment of memory decides the last bit.

    Args:
        scorer ([`RewardScorer`]):
            The reward model.
        folder (`str` or `Path`):
            Where the [`ScoreLog`] is.
        process_index (`int`, *optional*, defaults to `0`), num_processes (`int`, *optional*, defaults to `1`):
            Which part of the work is this process's.
        chunk_size (`int`, *optional*, defaults to `16`):
            Rows that are scored, and lost by a kill, at a time.
    """

    def __init__(
        self,
        scorer: RewardScorer,
        folder: str | Path,
        process_index: int = 0,
        num_processes: int = 1,
        chunk_size: int = 16,
    ):
        self.scorer = scorer
        settings = {"bias": scorer.bias, "max_batch_tokens": scorer.max_batch_tokens}
        self.fingerprint = model_fingerprint(scorer.model, scorer.processor, **settings)
        self.log = ScoreLog(folder, process_index)
        self.process_index = process_index
        self.num_processes = num_processes
        self.chunk_size = chunk_size

    def __call__(self, prompts: list, responses: list[list[str]], images: list[list]) -> None:
        """
        Score this process's share, and write it down. Call [`ResumableScorer.merge`] once all processes are done.

        Args:
            prompts (`list`):
                One conversation (list of messages) or one user turn (string) per row. All three may be columns of a
                `Dataset`: rows are read as they are scored.
            responses (`list[list[str]]`):
                The responses of each row.
            images (`list[list]`):
                The images of each row, possibly none.
        """
        for chunk in self._chunks(len(prompts))[self.process_index :: self.num_processes]:
            rows = [(prompts[i], responses[i], images[i]) for i in chunk]
            keys = self._keys(rows)
            if all(key in self.log.scores for key in keys):
                continue
            flat = [(prompt, response, row_images) for prompt, texts, row_images in rows for response in texts]
            scores = iter(self.scorer(*map(list, zip(*flat, strict=True))) if flat else [])
            self.log.append({key: [next(scores) for _ in row[1]] for row, key in zip(rows, keys, strict=True)})

    def merge(self, prompts: list, responses: list[list[str]], images: list[list]) -> list[list[float]]:
        """
        The scores of all rows, from what all processes have written, in the order of the rows.

        Raises:
            ValueError: If a row has no score yet.
        """
        self.log.read()
        keys = []
        for chunk in self._chunks(len(prompts)):
            keys += self._keys([(prompts[i], responses[i], images[i]) for i in chunk])
        if missing := [i for i, key in enumerate(keys) if key not in self.log.scores]:
            raise ValueError(
                f"{len(missing)} of {len(keys)} rows have no score, the first is row {missing[0]}. A process was "
                "stopped: run the same command again, it scores what is missing."
            )
        return [self.log.scores[key] for key in keys]

    def _chunks(self, n: int) -> list[range]:
        return [range(start, min(start + self.chunk_size, n)) for start in range(0, n, self.chunk_size)]

    def _keys(self, rows: list[tuple]) -> list[str]:
        """
        The keys of a chunk's rows. They name the chunk, too: a row that is there twice is scored beside other rows the
        second time, and may differ in the last bit.
        """
        digest = hashlib.sha256("".join(row_key(self.fingerprint, *row) for row in rows).encode()).hexdigest()
        return [f"{digest}:{position}" for position in range(len(rows))]
