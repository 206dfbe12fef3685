"""
Prefix sharing on a GPU, with the whole of Qwen2.5-VL-7B or 3B in bfloat16: a training step of a reward pair, one of MPO
with its reference, and scoring K responses, by

- `rows`: every row computed separately, as TRL does, with TRL's own log-probabilities;
- `shared`: this project's `share_prefixes` and its head.

```bash
python bench/gpu.py --output docs/gpu/speed.json                  # 80 GB; two minutes on an H100
python bench/gpu.py --sizes 3b --attention sdpa                   # 40 GB, without flash_attn
```

The weights are random, so the numbers are of speed and memory, and of how far scores move: `moved` is the largest
difference of a score from the one that its row has alone, by `rows` and by `shared`, beside the scores' deviation.
A training step is forward and backward with gradient checkpointing, a frozen vision tower, and gradients of all else.
An optimizer's step is the same either way and not in it. The ways take turns; a ratio is the median of the turns'.
"""

import argparse
import functools
import gc
import itertools
import json
import statistics
import time
from pathlib import Path

import torch
from memory import DOCS, GIB
from prefix_sharing import IMAGE, PROMPT_TEXT, build_batch, reward_step, score
from torch.nn.functional import logsigmoid
from transformers import AutoModelForImageTextToText, AutoModelForSequenceClassification, Qwen2_5_VLConfig
from trl.trainer.utils import add_fused_lm_head

from vl_reward import share_prefixes, unshare_prefixes
from vl_reward.prefix_sharing.token_log_probs import add_token_log_probs


def build_config(size: str, layers: int | None) -> Qwen2_5_VLConfig:
    """The hub's config, with the special tokens of `build_batch`."""
    given = json.loads((DOCS / f"qwen2_5_vl_{size}.json").read_text())
    given |= {"image_token_id": IMAGE, "video_token_id": 3, "vision_start_token_id": 4, "vision_end_token_id": 5}
    given |= {"bos_token_id": None, "pad_token_id": 0} | ({} if layers is None else {"num_hidden_layers": layers})
    return Qwen2_5_VLConfig.from_dict(given)


def build(auto_class, config, attention: str):
    """A random model on the GPU, trained but for its vision tower."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        model = auto_class.from_config(config, dtype=torch.bfloat16, attn_implementation=attention)
    model.model.visual.requires_grad_(False)
    model.model.visual.merger.requires_grad_(True)
    model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def log_probs(model, forward, batch, response):
    labels = batch["input_ids"].clone()
    labels[:, :-response] = -100
    outputs = forward(**batch, labels=labels, use_cache=False, fused_lm_head=True)
    return outputs.log_probs.sum(1)


def mpo_step(models, forwards, batch, response, share):
    """As `MPOTrainer` weighs its losses."""
    policy, reference = ((share_prefixes if share else unshare_prefixes)(model) for model in models)
    with torch.no_grad():
        ref_chosen, ref_rejected = log_probs(reference, forwards[1][share], batch, response).chunk(2)
    chosen, rejected = log_probs(policy, forwards[0][share], batch, response).chunk(2)
    chosen_reward, rejected_reward = 0.1 * (chosen - ref_chosen), 0.1 * (rejected - ref_rejected)
    dpo = -logsigmoid(chosen_reward - rejected_reward).mean()
    bco = -(logsigmoid(chosen_reward) + logsigmoid(-rejected_reward)).mean()
    (0.8 * dpo + 0.2 * bco - (chosen / response).mean()).backward()


def measure(ways: dict, models: list, rounds: int) -> dict[str, dict]:
    """Seconds and GiB above the weights, of the first turn for the memory, and of the others for the time."""
    memory, turns = {}, []
    for _ in range(1 + rounds):
        turns.append({})
        for name, way in ways.items():
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            held, began = torch.cuda.memory_allocated(), time.perf_counter()
            way()
            torch.cuda.synchronize()
            turns[-1][name] = time.perf_counter() - began
            memory[name] = (torch.cuda.max_memory_allocated() - held) / GIB
            for model in models:
                model.zero_grad()
    return {
        name: {
            "seconds": statistics.median(turn[name] for turn in turns[1:]),
            "ratio": statistics.median(turn["rows"] / turn[name] for turn in turns[1:]),
            "peak_gib": memory[name],
        }
        for name in ways
    }


def moved(model, batch: dict, response: int) -> dict[str, float]:
    """How far from the score that a row has alone its score among others is."""
    patches = len(batch["pixel_values"]) // len(batch["input_ids"])
    alone = [
        score(
            model,
            {key: v[i * patches :][:patches] if key == "pixel_values" else v[[i]] for key, v in batch.items()},
            response,
            False,
        )
        for i in range(len(batch["input_ids"]))
    ]
    alone = torch.cat(alone)
    far = {
        name: (score(model, batch, response, name == "shared") - alone).abs().max().item()
        for name in ("rows", "shared")
    }
    return far | {"deviation": alone.std().item()}


def cells(args, size: str, attention: str):
    """What is measured of a model under an attention, one after the other."""
    config = build_config(size, args.layers)
    sizes = list(itertools.product(args.visual_tokens, args.response_tokens))

    def cell(workload, k, visual, response, batch, **found):
        tokens = {"rows": batch["input_ids"].numel(), "shared": PROMPT_TEXT + visual + k * response}
        case = {"size": size, "attention": attention, "workload": workload, "k": k}
        return case | {"visual_tokens": visual, "response_tokens": response, "tokens": tokens, **found}

    def on_gpu(workload, k, visual, response):
        return {key: value.cuda() for key, value in build_batch(config, workload, k, visual, response).items()}

    def ways(step, *arguments):
        return {name: functools.partial(step, *arguments, share=name == "shared") for name in ("rows", "shared")}

    model = build(AutoModelForSequenceClassification, config, attention)
    for (visual, response), k in itertools.product(sizes, (2, *args.k)):
        workload = "reward" if k == 2 else "score"
        batch = on_gpu(workload, k, visual, response)
        model.train(k == 2)
        found = {} if k != 8 else {"moved": moved(model, batch, response)}
        step = reward_step if k == 2 else score
        found["ways"] = measure(ways(step, model, batch, response), [model], args.rounds)
        yield cell(workload, k, visual, response, batch, **found)
    del model, step
    gc.collect()
    torch.cuda.empty_cache()

    models, forwards = [build(AutoModelForImageTextToText, config, attention) for _ in range(2)], []
    models[1].requires_grad_(False)
    for policy in models:
        add_fused_lm_head(policy)
        trl_forward = policy.forward
        add_token_log_probs(policy)
        forwards.append((trl_forward, policy.forward))
        policy.train()
    for visual, response in sizes:
        batch = on_gpu("mpo", 2, visual, response)
        found = measure(ways(mpo_step, models, forwards, batch, response), models, args.rounds)
        yield cell("mpo", 2, visual, response, batch, ways=found)


def line(cell: dict) -> str:
    rows, shared = cell["ways"]["rows"], cell["ways"]["shared"]
    rate = cell["tokens"]["rows"] / shared["seconds"]
    return (
        f"{cell['size']} {cell['attention']:17} {cell['workload']:6} K={cell['k']:<2} "
        f"visual={cell['visual_tokens']:<4} "
        f"response={cell['response_tokens']:<4} {rows['seconds']:6.3f} s -> {shared['seconds']:6.3f} s, "
        f"ratio {shared['ratio']:5.2f}, {rate:8.0f} tokens/s; {rows['peak_gib']:.2f} -> {shared['peak_gib']:.2f} GiB "
        f"{cell.get('moved', '')}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="The cells are written here, as JSON.")
    parser.add_argument("--sizes", nargs="+", choices=["3b", "7b"], default=["7b"])
    parser.add_argument("--layers", type=int, help="Cut the decoder to so many layers, to try the code.")
    parser.add_argument("--attention", nargs="+", default=["sdpa", "flash_attention_2"])
    parser.add_argument("--visual_tokens", type=int, nargs="+", default=[256, 1296], help="Squares.")
    parser.add_argument("--response_tokens", type=int, nargs="+", default=[256])
    parser.add_argument("--k", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    machine, found = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}, []
    for size, attention in itertools.product(args.sizes, args.attention):
        for cell in cells(args, size, attention):
            found.append(cell)
            print(line(cell), flush=True)
            if args.output is not None:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps({**machine, "cells": found}, indent=1) + "\n")
        gc.collect()
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
