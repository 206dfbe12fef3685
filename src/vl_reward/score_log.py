"""Scores that are written down as they are made, so that a run killed at any byte goes on where it stopped."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

from .encoding import as_messages
from .images import image_key
from .scorer import RewardScorer


def read_whole_lines(path: Path) -> tuple[list[str], int]:
    """The lines of a file that end in a newline, and the bytes they take. What follows the last newline is torn."""
    whole, newline, _ = path.read_bytes().rpartition(b"\n")
    return whole.decode().split("\n") if newline else [], len(whole) + len(newline)


def reward_fingerprint(scorer: RewardScorer) -> str:
    """
    A hash of all that decides a score but the row: weights in their dtype, head bias, attention, chat template, image
    processing, and the version of transformers, between which scores are not comparable.
    """
    digest = hashlib.sha256()
    processor = scorer.processor
    settings = {
        "bias": scorer.bias,
        "attention": scorer.model.config._attn_implementation,
        "template": processor.chat_template,
        "tokenizer": processor.tokenizer.get_vocab(),
        "images": processor.image_processor.to_dict(),
        "max_batch_tokens": scorer.max_batch_tokens,
        "transformers": transformers.__version__,
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(scorer.model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data if tensor.dim() else b"")
    return digest.hexdigest()


def row_key(fingerprint: str, prompt: str | list[dict], responses: list[str], images: list) -> str:
    """A hash of a reward model and of what it is asked to score: prompt, responses, image bytes."""
    digest = hashlib.sha256(json.dumps([fingerprint, as_messages(prompt, []), responses], sort_keys=True).encode())
    for image in images:
        key = image_key(image)
        if isinstance(key, int):  # a decoded image
            key = repr((image.mode, image.size)).encode() + image.tobytes()
        digest.update(hashlib.sha256(key if isinstance(key, bytes) else Path(key).read_bytes()).digest())
    return digest.hexdigest()


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
        """Write scores down, and hand them to the operating system before returning."""
        with open(self.path, "a", encoding="utf-8") as file:
            for key, values in scores.items():
                file.write(json.dumps({"key": key, "scores": values}) + "\n")
        self.scores |= scores


class ResumableScorer:
    """
    Scores rows of a prompt, its images and its responses, over several processes, and goes on where it was stopped.

    Rows are scored in fixed chunks, which neither the number of processes nor a stop changes, and a chunk that lacks a
    row is scored whole. So the scores are the same to the byte however often the run was killed, on the same hardware
    with the same number of threads.

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
        self.fingerprint = reward_fingerprint(scorer)
        self.log = ScoreLog(folder, process_index)
        self.process_index = process_index
        self.num_processes = num_processes
        self.chunk_size = chunk_size

    def __call__(self, prompts: list, responses: list[list[str]], images: list[list]) -> None:
        """
        Score this process's share, and write it down. Call [`ResumableScorer.merge`] once all processes are done.

        Args:
            prompts (`list`):
                One conversation (list of messages) or one user turn (string) per row.
            responses (`list[list[str]]`):
                The responses of each row.
            images (`list[list]`):
                The images of each row, possibly none.
        """
        for number, (chunk, keys) in enumerate(self._chunks(prompts, responses, images)):
            if number % self.num_processes != self.process_index or all(key in self.log.scores for key in keys):
                continue
            flat = [(i, response) for i in chunk for response in responses[i]]
            scores = iter(
                self.scorer([prompts[i] for i, _ in flat], [text for _, text in flat], [images[i] for i, _ in flat])
            )
            self.log.append({key: [next(scores) for _ in responses[i]] for i, key in zip(chunk, keys, strict=True)})

    def merge(self, prompts: list, responses: list[list[str]], images: list[list]) -> list[list[float]]:
        """
        The scores of all rows, from what all processes have written, in the order of the rows.

        Raises:
            ValueError: If a row has no score yet.
        """
        self.log.read()
        keys = [key for _, chunk_keys in self._chunks(prompts, responses, images) for key in chunk_keys]
        if missing := [i for i, key in enumerate(keys) if key not in self.log.scores]:
            raise ValueError(
                f"{len(missing)} of {len(keys)} rows have no score, the first is row {missing[0]}. A process was "
                "stopped: run the same command again, it scores what is missing."
            )
        return [self.log.scores[key] for key in keys]

    def _chunks(self, prompts: list, responses: list, images: list) -> Iterator[tuple[range, list[str]]]:
        """
        Row numbers of each chunk, and the rows' keys. A key names the chunk, too: a row that is there twice is scored
        beside other rows the second time, and may differ in the last bit.
        """
        for start in range(0, len(prompts), self.chunk_size):
            chunk = range(start, min(start + self.chunk_size, len(prompts)))
            rows = [row_key(self.fingerprint, prompts[i], responses[i], images[i]) for i in chunk]
            digest = hashlib.sha256("".join(rows).encode()).hexdigest()
            yield chunk, [f"{digest}:{position}" for position in range(len(chunk))]
