"""Log-probabilities of pairs under a reference model, computed once and kept, so that training holds no reference."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, send_to_device
from datasets import Dataset

from ..data.splits import with_numbers
from ..inference.ahead import computed_ahead
from ..inference.resumable_store import ResumableStore


BATCHES_PER_SHARD = 16


class ReferenceLogProbs:
    """
    Adds the columns `ref_chosen_logps` and `ref_rejected_logps` to a preference dataset. They are kept in a
    [`ResumableStore`], so that a stopped run goes on where it was, and a run with another reference or edited pairs
    does not take the old values.

    TRL's own precomputation refuses images, keeps nothing if it is stopped, and names its cache by a hash that does
    not see the weights under ZeRO-3.

    Args:
        folder (`str` or `Path`):
            Where to write. All processes have to see it.
        fingerprint (`str`):
            The reference's [`model_fingerprint`], with the batch size.
        accelerator ([`~accelerate.Accelerator`]):
            Says whether the reference is sharded, and where batches go.
    """

    def __init__(self, folder: str | Path, fingerprint: str, accelerator: Accelerator):
        self.folder, self.fingerprint, self.accelerator = folder, fingerprint, accelerator

    def __call__(self, dataset: Dataset, collator: Callable, compute: Callable, batch_size: int) -> Dataset:
        """
        Args:
            dataset (`Dataset`):
                Rows with `prompt`, `chosen`, `rejected`, `images` and optionally `videos` and `id`.
            collator (`Callable`):
                From rows to a batch.
            compute (`Callable`):
                From a batch to the log-probabilities of its chosen and of its rejected responses, two tensors of shape
                `(batch_size,)`.
            batch_size (`int`):
                Pairs at a time, per process.

        Returns:
            `Dataset`: the same rows with the two columns.
        """
        names = ("id", "prompt", "chosen", "rejected", "images", "videos", "video")
        pairs = dataset.select_columns([name for name in names if name in dataset.column_names])
        sharded = self.accelerator.distributed_type in (DistributedType.DEEPSPEED, DistributedType.FSDP)
        shard_size = BATCHES_PER_SHARD * batch_size
        store = ResumableStore(self.folder, self.fingerprint, pairs, shard_size, in_step=sharded)
        for number, rows in store.pending():
            batches = [rows[start : start + batch_size] for start in range(0, len(rows), batch_size)]
            # Each forward pass of a sharded model wants all processes: a shorter shard repeats its last batch.
            repeats = BATCHES_PER_SHARD - len(batches) if sharded else 0
            sides = [
                compute(send_to_device(batch, self.accelerator.device))
                for batch in computed_ahead(collator, [*batches, *[batches[-1]] * repeats])
            ]
            chosen, rejected = (torch.cat(part[: len(batches)]).tolist() for part in zip(*sides, strict=True))
            store.write(number, ref_chosen_logps=chosen, ref_rejected_logps=rejected)
        rows = list(store.read())
        columns = {key: [row[key] for row in rows] for key in ("ref_chosen_logps", "ref_rejected_logps")}
        return with_numbers(dataset, **columns)
