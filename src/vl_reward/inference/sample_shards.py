"""Samples on disk as they are made, so that a stopped run goes on where it was."""

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, Features, List, Value

from .fingerprints import row_key


SAMPLE_FEATURES = Features({"responses": List(Value("string")), "finish_reasons": List(Value("string"))})


class SampleShards:
    """
    Responses to prompts, in a file of JSON lines per shard of prompts. A file appears whole or not at all, and its name
    holds a hash of all that decides its content: policy, settings, prompts and images. So the samples of another policy
    or setting are never taken for these, and which process made a file makes no difference.

    Args:
        folder (`str` or `Path`):
            Where the files are. All processes have to see it.
        fingerprint (`str`):
            The policy's [`model_fingerprint`] with the sampling settings.
        prompts (`list`), images (`list`):
            A conversation and its images per row. Columns of a `Dataset` are read as they are needed.
        shard_size (`int`, *optional*, defaults to `256`):
            Prompts that are sampled, and lost by a stop, at a time.
    """

    def __init__(self, folder: str | Path, fingerprint: str, prompts: list, images: list, shard_size: int = 256):
        self.folder, self.fingerprint = Path(folder), fingerprint
        self.prompts, self.images = prompts, images
        self.shards = [
            range(start, min(start + shard_size, len(prompts))) for start in range(0, len(prompts), shard_size)
        ]
        self.paths: dict[int, Path] = {}
        self.folder.mkdir(parents=True, exist_ok=True)

    def path(self, number: int) -> Path:
        """The file of a shard."""
        if number not in self.paths:  # the hash reads every image
            keys = [row_key(self.fingerprint, self.prompts[i], [], self.images[i]) for i in self.shards[number]]
            digest = hashlib.sha256("".join([str(number), *keys]).encode()).hexdigest()
            self.paths[number] = self.folder / f"{number:06d}-{digest[:16]}.jsonl"
        return self.paths[number]

    def pending(self, process_index: int = 0, num_processes: int = 1) -> Iterator[tuple[int, list, list]]:
        """The number of each shard of this process that is not on disk, with its prompts and images."""
        for number in range(process_index, len(self.shards), num_processes):
            if not self.path(number).exists():
                shard = self.shards[number]
                yield number, [self.prompts[i] for i in shard], [self.images[i] for i in shard]

    def write(self, number: int, responses: list[list[str]], finish_reasons: list[list[str]]) -> None:
        """
        Write a shard.

        Raises:
            OSError: If the disk is full, say. The shards before are kept.
        """
        path = self.path(number)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            with open(partial, "w", encoding="utf-8") as file:
                for row in zip(responses, finish_reasons, strict=True):
                    file.write(json.dumps(dict(zip(("responses", "finish_reasons"), row, strict=True))) + "\n")
            os.replace(partial, path)
        except OSError as error:
            message = f"{error.strerror}. The shards before are kept: mend the cause, and run the command again"
            raise OSError(error.errno, message, str(path)) from error

    def read(self) -> Dataset:
        """
        `responses` and `finish_reasons` of all prompts, in their order, on disk.

        Raises:
            ValueError: If a shard is missing.
        """
        paths = [self.path(number) for number in range(len(self.shards))]
        if missing := [path.name for path in paths if not path.exists()]:
            raise ValueError(
                f"{len(missing)} of {len(paths)} shards are not there, the first is {missing[0]}. A process was "
                "stopped: run the same command again, it samples what is missing."
            )
        cache = str(self.folder.with_name(f"{self.folder.name}_cache"))
        return Dataset.from_json([str(path) for path in paths], features=SAMPLE_FEATURES, cache_dir=cache)
