"""
What a batch weighs on its way from a worker process to the model, with each image once, and as often as rows show it:
8 pairs for a reward model, 8 for MPO, and 32 responses to one prompt, with images of 1,280 visual tokens.

```bash
python bench/pixels.py --output_dir docs/prefix_sharing
```

`sent` are the bytes that the worker pickles. `peak` is the memory of the process that receives them and computes, above
what it had before; `seconds` are its CPU seconds, the lowest of the rounds. The model is the embedded world's, with
`share_prefixes`. It computes a forward and a backward pass with a frozen vision tower, or scores. Losses and scores of
both ways are compared: they are equal to the last bit. Writes `pixels.json`.
"""

import argparse
import json
import os
import pickle
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from peers import QUESTION, Peers, draw, preference_rows
from prefix_sharing import peak_memory

from vl_reward import DataCollatorForVisionReward
from vl_reward.data.encoding import encode_conversations
from vl_reward.models.repeated_visuals import repeated
from vl_reward.tiny.preferences import PREFERENCE_FEATURES


RESPONSE = 64


def workloads(peers: Peers, pairs: int, k: int, visual: int) -> dict:
    """By name, a batch and what computes its loss or its scores."""
    rows = Dataset.from_list(preference_rows(pairs, visual, RESPONSE), PREFERENCE_FEATURES)
    image, texts = draw(visual, RESPONSE, 0, k)
    turns = [[{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text}] for text in texts]
    model, trainer = peers.reward_model, peers.ours

    def reward(batch):
        chosen, rejected = model(**batch, use_cache=False).logits.chunk(2)
        loss = -torch.nn.functional.logsigmoid(chosen - rejected).mean()
        loss.backward()
        return loss.detach()

    def mpo(batch):
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
        return loss.detach()

    def score(batch):
        with torch.no_grad():
            return model(**batch, use_cache=False).logits

    return {
        f"reward, {pairs} pairs": (DataCollatorForVisionReward(peers.processor)([*rows]), reward),
        f"MPO, {pairs} pairs": (trainer.data_collator([*rows]), mpo),
        f"scoring, K = {k}": (encode_conversations(peers.processor, turns, [[image]] * k, texts), score),
    }


def measure(batch: dict, compute, models: list, rounds: int) -> dict[str, dict]:
    sent = {"copied": pickle.dumps(repeated(batch)), "once": pickle.dumps(dict(batch))}
    measured, returned = {name: {"sent_mib": len(data) / 2**20, "seconds": []} for name, data in sent.items()}, {}
    for turn in range(rounds):
        for name, data in sent.items():
            began = time.process_time()
            if turn:
                compute(pickle.loads(data))
            else:
                call = lambda: returned.update({name: compute(pickle.loads(data))})  # noqa: B023, E731
                measured[name]["peak_mib"] = peak_memory(call)
            measured[name]["seconds"].append(time.process_time() - began)
            for model in models:
                model.zero_grad()
    assert torch.equal(returned["copied"], returned["once"])
    return {name: way | {"seconds": min(way["seconds"])} for name, way in measured.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--visual_tokens", type=int, choices=(256, 1280), default=1280)
    parser.add_argument("--vocab_size", type=int, default=151_936)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    cells = {}
    with tempfile.TemporaryDirectory() as folder:
        peers = Peers(args.vocab_size, Path(folder))
        models = [peers.reward_model, peers.ours.model, peers.ours.ref_model]
        for model in models[:2]:
            model.requires_grad_(True).model.visual.requires_grad_(False)
        for name, (batch, compute) in workloads(peers, args.pairs, args.k, args.visual_tokens).items():
            cells[name] = measure(batch, compute, models, args.rounds)
            print(name, json.dumps(cells[name]), flush=True)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    args.output_dir.mkdir(parents=True, exist_ok=True)
    found = {**machine, "visual_tokens": args.visual_tokens, "response_tokens": RESPONSE, "cells": cells}
    (args.output_dir / "pixels.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
