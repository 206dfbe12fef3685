"""Log-probabilities of pairs under a reference model, computed once and kept, so that training holds no reference."""

from collections.abc import Callable
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import send_to_device
from datasets import Dataset, concatenate_datasets
from tqdm import tqdm

from ..data.messages import as_messages, text_of
from ..inference.fingerprints import row_key
from ..inference.score_log import ScoreLog


class ReferenceLogProbs:
    """
    Adds the columns `ref_chosen_logps` and `ref_rejected_logps` to a preference dataset. They are written down as they
    are computed, keyed by pair and reference, so that a stopped run goes on where it was, and a run with another
    reference or edited pairs does not take the old values.

    TRL's own precomputation refuses images, keeps nothing if it is stopped, and names its cache by a hash that does
    not see the weights under ZeRO-3.

    Args:
        folder (`str` or `Path`):
            Where to write. All processes have to see it.
        fingerprint (`str`):
            The reference's [`model_fingerprint`].
        accelerator ([`~accelerate.Accelerator`]):
            Says which process this is, and where batches go.
    """

    def __init__(self, folder: str | Path, fingerprint: str, accelerator: Accelerator):
        self.folder, self.fingerprint, self.accelerator = folder, fingerprint, accelerator

    def __call__(self, dataset: Dataset, collator: Callable, compute: Callable, batch_size: int) -> Dataset:
        """
        Args:
            dataset (`Dataset`):
                Rows with `prompt`, `chosen`, `rejected` and `images`.
            collator (`Callable`):
                From rows to a batch.
            compute (`Callable`):
                From a batch to the log-probabilities of its chosen and of its rejected responses, two tensors of shape
                `(batch_size,)`.
            batch_size (`int`):
                Pairs at a time, per process.
        """
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        responses = ([text_of(as_messages([], row[side])) for side in ("chosen", "rejected")] for row in dataset)
        keys = [
            row_key(self.fingerprint, row["prompt"], texts, row["images"])
            for row, texts in zip(dataset, responses, strict=True)
        ]
        log = ScoreLog(self.folder, rank)
        known = set(log.scores)
        self.accelerator.wait_for_everyone()  # all know the same before anyone writes
        batches = [range(start, min(start + batch_size, len(keys))) for start in range(0, len(keys), batch_size)]
        rounds = [batches[start : start + world] for start in range(0, len(batches), world)]
        pending = [batches for batches in rounds if not all(keys[i] in known for batch in batches for i in batch)]
        for batches in tqdm(pending, desc="Reference", disable=not self.accelerator.is_local_main_process):
            # Under ZeRO-3 no process can leave out a forward pass: where batches run out, the last is computed again.
            rows = batches[min(rank, len(batches) - 1)]
            batch = send_to_device(collator([dataset[i] for i in rows]), self.accelerator.device)
            chosen, rejected = (side.tolist() for side in compute(batch))
            log.append({keys[i]: [c, r] for i, c, r in zip(rows, chosen, rejected, strict=True)})
        self.accelerator.wait_for_everyone()
        log.read()
        found = [log.scores[key] for key in keys]
        columns = {"ref_chosen_logps": [c for c, _ in found], "ref_rejected_logps": [r for _, r in found]}
        return concatenate_datasets([dataset, Dataset.from_dict(columns)], axis=1)
