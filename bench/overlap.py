"""
How long a model waits for its next batch: batches made while it computes, beside batches made in its turn.

```bash
python bench/overlap.py --output_dir docs/training
```

Scoring, sampling and reference log-probabilities of the embedded world's models read JPEG files of 1,600 x 1,200 pixels
by their own code. For the second measure `computed_ahead` is replaced by `map`. The two take turns, and the model has
one core. A share is of the time of the whole call. All numbers are medians.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification, AutoProcessor

from vl_reward import ResponseSampler, RewardScorer, SamplingParameters
from vl_reward.data.collators import DataCollatorForMPO
from vl_reward.inference import ahead, scorer, transformers_sampler
from vl_reward.models.repeated_visuals import repeated
from vl_reward.tiny.__main__ import CHECKPOINTS
from vl_reward.training import reference_log_probs


class Waiting:
    """Takes the place of [`computed_ahead`], and adds up how long its user waits for the next item."""

    def __init__(self, make):
        self.make, self.seconds = make, 0.0

    def __call__(self, function, items):
        made = iter(self.make(function, items))
        while True:
            start = time.perf_counter()
            item = next(made, None)
            self.seconds += time.perf_counter() - start
            if item is None:
                return
            yield item


def photographs(folder: Path, n: int) -> list[str]:
    """Files of smooth colours with noise, as a camera writes them."""
    rng, paths = np.random.default_rng(0), []
    for number in range(n):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        pixels = np.asarray(coarse.resize((1600, 1200), Image.Resampling.BICUBIC), dtype=np.int16)
        noisy = np.clip(pixels + rng.integers(-8, 9, pixels.shape), 0, 255).astype(np.uint8)
        paths.append(str(folder / f"{number}.jpg"))
        Image.fromarray(noisy).save(paths[-1], quality=92)
    return paths


def steps(folder: Path, n: int) -> dict:
    """Of each step that reads images: the module that has batches made ahead, and a call that does the work."""
    processor = AutoProcessor.from_pretrained(CHECKPOINTS / "policy", max_pixels=448 * 448)
    policy = AutoModelForImageTextToText.from_pretrained(CHECKPOINTS / "policy", dtype="float32")
    torch.manual_seed(0)
    reward = AutoModelForSequenceClassification.from_pretrained(CHECKPOINTS / "base", dtype="float32")
    paths = photographs(folder, n)
    twice, answers = [path for path in paths for _ in range(2)], ["I see 4. Answer: 4", "I see 5. Answer: 5"]
    scored = ["Which?"] * 2 * n, answers * n, [[path] for path in twice]
    pairs = [{"id": path, "prompt": "Which?", "images": [path], "chosen": "4", "rejected": "5"} for path in paths]
    scoring = RewardScorer(reward, processor, max_batch_tokens=1200)
    sampling = ResponseSampler(policy, processor, SamplingParameters(max_new_tokens=8, batch_size=2))

    def log_probs(batch: dict) -> tuple[torch.Tensor, ...]:
        """What a forward pass takes, in the place of the trainer's own."""
        inputs = {key: value for key, value in batch.items() if key not in ("id", "completion_mask")}
        with torch.inference_mode():
            return policy(**repeated(inputs), logits_to_keep=1).logits.logsumexp(-1)[:, 0].chunk(2)

    def reference() -> None:
        store = tempfile.mkdtemp(dir=folder)  # a new one: nothing is taken from the turn before
        computed = reference_log_probs.ReferenceLogProbs(store, "reference", Accelerator(cpu=True))
        computed(Dataset.from_list(pairs), DataCollatorForMPO(processor), log_probs, 2)

    return {
        "scoring": (scorer, lambda: scoring(*scored)),
        "sampling": (transformers_sampler, lambda: sampling(["Which?"] * n, [[path] for path in paths])),
        "reference": (reference_log_probs, reference),
    }


def measure(module, work) -> dict[str, list[tuple[float, float]]]:
    """Seconds of the call and of waiting, of each way to make batches."""
    found = {}
    for name, make in (("ahead", ahead.computed_ahead), ("in turn", map)):
        waiting = Waiting(make)
        with patch.object(module, "computed_ahead", waiting):
            start = time.perf_counter()
            work()
            found[name] = time.perf_counter() - start, waiting.seconds
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/overlap"))
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--turns", type=int, default=5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for step, (module, work) in steps(Path(folder), args.images).items():
            measure(module, work)  # what is loaded once does not count
            turns = [measure(module, work) for _ in range(args.turns)]
            for name in turns[0]:
                seconds = [turn[name][0] for turn in turns]
                shares = [turn[name][1] / turn[name][0] for turn in turns]
                row = {"seconds": statistics.median(seconds), "waits": statistics.median(shares)}
                results.setdefault(step, {})[name] = {key: round(value, 3) for key, value in row.items()}
            print(step, results[step], flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    report = {"cores": os.cpu_count(), "images": args.images, "turns": args.turns, "steps": results}
    (args.output_dir / "overlap.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
