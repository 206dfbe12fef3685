"""
What prefix sharing saves: a training step of a reward pair, a training step of MPO, scoring K responses, and what it
costs where a batch has nothing to share, by

- `rows`: every row computed separately, as TRL does;
- `value_head`: a full causal LM with a value head on every position, as value-head reward models are scored;
- `cache`: the prompt's keys and values computed once, then expanded to K rows (the other way of sharing; scoring only);
- `shared`: this project's `share_prefixes`.

```bash
python bench/prefix_sharing.py --output_dir docs/prefix_sharing
python bench/prefix_sharing.py --output_dir docs/prefix_sharing/families --families qwen2_5_vl qwen3_vl \
    --visual_tokens 256 --response_tokens 64 --k 2 8 --rounds 5 --cpu_seconds
```

The models are random, with decoder, vocabulary and vision tower in the proportions of Qwen2.5-VL-7B, or of
Qwen3-VL-8B, whose vision tower has three more projectors and no windows. The ways take turns
within one run, and the ratio is the median, over the rounds, of the time by `rows` over the time by the way. Writes
`results.json` and `results.png` (needs matplotlib).
"""

import argparse
import ctypes
import functools
import itertools
import json
import os
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import log_softmax, logsigmoid
from transformers import (
    AutoModelForImageTextToText,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    Qwen2_5_VLConfig,
    Qwen3VLConfig,
)

from vl_reward import share_prefixes, unshare_prefixes
from vl_reward.models.families import family_of


VOCAB, LAYERS, WIDTH, HEADS, KV_HEADS = 6144, 8, 512, 8, 2
VISION = {"depth": 4, "hidden_size": 320, "num_heads": 5, "out_hidden_size": WIDTH}
ROPE = {"rope_type": "default", "rope_theta": 1e6}
# Config, what is the family's own in decoder and vision tower.
FAMILIES = {
    "qwen2_5_vl": (
        Qwen2_5_VLConfig,
        {"intermediate_size": 2688, "rope_parameters": ROPE | {"mrope_section": [8, 12, 12]}},
        {"intermediate_size": 864, "fullatt_block_indexes": [3]},
    ),
    "qwen3_vl": (
        Qwen3VLConfig,
        {
            "intermediate_size": 1536,
            "head_dim": WIDTH // HEADS,
            "rope_parameters": ROPE | {"mrope_section": [12, 10, 10], "mrope_interleaved": True},
        },
        {"intermediate_size": 1196, "deepstack_visual_indexes": [0, 1, 2]},
    ),
}
IMAGE, PROMPT_TEXT = 1, 32  # the image token's id, and tokens of text in a prompt


def build_config(family: str) -> PreTrainedConfig:
    config_class, text, vision = FAMILIES[family]
    return config_class(
        text_config={
            "vocab_size": VOCAB,
            "hidden_size": WIDTH,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": KV_HEADS,
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
            **text,
        },
        vision_config=VISION | vision,
        image_token_id=IMAGE,
        video_token_id=3,
        vision_start_token_id=4,
        vision_end_token_id=5,
    )


def patch_numbers(config: PreTrainedConfig) -> int:
    vision = config.vision_config
    return vision.in_channels * vision.temporal_patch_size * vision.patch_size**2


def build_batch(config: PreTrainedConfig, workload: str, k: int, visual: int, response: int) -> dict:
    """`k` responses of equal length to one prompt with one square image, or to as many different ones."""
    side = 2 * round(visual**0.5)
    prompts = k if workload == "nothing shared" else 1
    text = torch.randint(10, VOCAB, (prompts, PROMPT_TEXT))
    prompt = torch.cat([text[:, :4], torch.full((prompts, visual), IMAGE), text[:, 4:]], dim=1)
    input_ids = torch.cat([prompt.expand(k, -1), torch.randint(10, VOCAB, (k, response))], dim=1)
    return {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "mm_token_type_ids": (input_ids == IMAGE).int(),
        "pixel_values": torch.randn(prompts, side * side, patch_numbers(config)).expand(k, -1, -1).flatten(0, 1),
        "image_grid_thw": torch.tensor([[1, side, side]] * k),
    }


def operations(config: PreTrainedConfig, k: int, visual: int, response: int, shared: bool) -> dict[str, float]:
    """Multiplications and additions of one forward pass: of the decoder over k rows, and of the vision tower."""
    prompt, rows, images = PROMPT_TEXT + visual, k, 1 if shared else k
    prompts = 1 if shared else k
    tokens = prompts * prompt + rows * response
    pairs = prompts * prompt**2 / 2 + rows * response * (prompt + response / 2)  # of a query and a key before it
    head_dim = WIDTH // HEADS
    linear = 2 * WIDTH * (2 * WIDTH + 2 * KV_HEADS * head_dim + 3 * config.text_config.intermediate_size)
    width, depth, patches, given = VISION["hidden_size"], VISION["depth"], 4 * visual, config.vision_config.to_dict()
    gates, whole = (3, 1) if "fullatt_block_indexes" in given else (2, depth)  # whole: blocks without windows
    vision = patches * depth * 2 * (4 * width**2 + gates * width * given["intermediate_size"])
    vision += patches * 2 * patch_numbers(config) * width
    vision += 4 * width * (whole * patches**2 + (depth - whole) * patches * 64)
    projectors = 1 + len(given.get("deepstack_visual_indexes", ()))
    vision += projectors * visual * 2 * (4 * width) * (4 * width + WIDTH)
    return {"decoder": LAYERS * (tokens * linear + 4 * WIDTH * pairs), "vision": images * vision}


def ideal_ratio(config: PreTrainedConfig, workload: str, k: int, visual: int, response: int) -> float:
    """The ratio if time went with operations. A frozen vision tower has no backward pass, a decoder's costs twice."""
    if workload == "nothing shared":
        return 1.0
    passes = {"reward": (3, 1), "mpo": (4, 2), "score": (1, 1)}[workload]  # of the decoder, of the tower

    def total(shared):
        count = operations(config, k, visual, response, shared)
        logits = 2 * VOCAB * WIDTH * k * response if workload == "mpo" else 0  # nothing to share: each token its own
        return passes[0] * (count["decoder"] + logits) + passes[1] * count["vision"]

    return total(shared=False) / total(shared=True)


def reward_step(model, batch, response, share):
    chosen, rejected = (share_prefixes if share else unshare_prefixes)(model)(**batch).logits.chunk(2)
    (-logsigmoid(chosen - rejected).mean()).backward()


def value_head_step(models, batch):
    policy, value_head = models
    outputs = unshare_prefixes(policy)(**batch, output_hidden_states=True, use_cache=False)
    chosen, rejected = value_head(outputs.hidden_states[-1])[:, -1].chunk(2)
    (-logsigmoid(chosen - rejected).mean()).backward()


def completion_log_probs(model, batch, response, share):
    outputs = (share_prefixes if share else unshare_prefixes)(model)(
        **batch, use_cache=False, logits_to_keep=response + 1
    )
    labels = batch["input_ids"][:, -response:]
    return log_softmax(outputs.logits[:, :-1], dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1).sum(1)


def mpo_step(models, batch, response, share):
    policy, reference = models
    with torch.no_grad():
        ref_chosen, ref_rejected = completion_log_probs(reference, batch, response, share).chunk(2)
    chosen, rejected = completion_log_probs(policy, batch, response, share).chunk(2)
    chosen_reward, rejected_reward = 0.1 * (chosen - ref_chosen), 0.1 * (rejected - ref_rejected)
    dpo = -logsigmoid(chosen_reward - rejected_reward).mean()
    bco = -(logsigmoid(chosen_reward) + logsigmoid(-rejected_reward)).mean()
    (0.8 * dpo + 0.2 * bco - (chosen / response).mean()).backward()


@torch.no_grad()
def score(model, batch, response, share):
    return (share_prefixes if share else unshare_prefixes)(model)(**batch, use_cache=False).logits


@torch.no_grad()
def score_value_head(models, batch):
    policy, value_head = models
    return value_head(unshare_prefixes(policy)(**batch, output_hidden_states=True, use_cache=False).hidden_states[-1])


@torch.no_grad()
def score_cache(model, batch, response):
    """The prompt's cache, expanded. Positions are given: the model's own `rope_deltas` belong to its last prompt."""
    backbone, k = unshare_prefixes(model).model, len(batch["input_ids"])
    first = {key: batch[key][:1] for key in ("input_ids", "attention_mask", "mm_token_type_ids", "image_grid_thw")}
    positions, _ = backbone.get_rope_index(**first)
    patches = len(batch["pixel_values"]) // k
    prompt = {key: first[key][:, :-response] for key in ("input_ids", "attention_mask", "mm_token_type_ids")}
    cache = backbone(
        **prompt,
        pixel_values=batch["pixel_values"][:patches],
        image_grid_thw=first["image_grid_thw"],
        use_cache=True,
    ).past_key_values
    cache.batch_repeat_interleave(k)
    outputs = backbone(
        input_ids=batch["input_ids"][:, -response:],
        attention_mask=batch["attention_mask"],
        position_ids=positions[:, :, -response:].expand(-1, k, -1),
        past_key_values=cache,
        use_cache=True,
    )
    return model.score(outputs.last_hidden_state[:, -1])


def peak_memory(function) -> float:
    """MiB that a call takes at its peak, above what was there before it (Linux)."""
    status = Path("/proc/self/status")

    def read(field):
        return int(next(line for line in status.read_text().splitlines() if line.startswith(field)).split()[1]) / 1024

    ctypes.CDLL("libc.so.6").malloc_trim(0)  # else memory that was freed and kept would be used again unseen
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = read("VmRSS")
    function()
    return read("VmHWM") - before


def measure(ways: dict, parameters, rounds: int, seconds: float, clock) -> dict[str, dict]:
    """
    Let the ways take turns, for some rounds or until `seconds` are over. The first turn measures memory and warms up.
    Where it took more than `seconds` it is the only one: no warm-up would change what takes so long.
    """
    memory, turns, spent = {}, [], 0.0
    while not turns or (len(turns) <= rounds and spent < seconds):
        turn = {}
        for name, way in ways.items():
            began = clock()
            if turns:
                way()
            else:
                memory[name] = peak_memory(way)
            turn[name] = clock() - began
            for parameter in parameters:
                parameter.grad = None
        turns.append(turn)
        spent = sum(sum(turn.values()) for turn in turns)
    turns = turns[1:] or turns
    return {
        name: {
            "seconds": statistics.median(turn[name] for turn in turns),
            "ratio": statistics.median(turn["rows"] / turn[name] for turn in turns),
            "peak_mib": memory[name],
            "rounds": len(turns),
        }
        for name in ways
    }


def plot(cells: list[dict], path: Path) -> None:
    """Time to score K responses, one panel for each number of visual tokens, responses of the shortest length."""
    shortest = min(cell["response_tokens"] for cell in cells)
    scoring = [c for c in cells if c["workload"] == "score" and c["response_tokens"] == shortest]
    sizes = sorted({cell["visual_tokens"] for cell in scoring})
    figure, axes = plt.subplots(1, len(sizes), figsize=(4 * len(sizes), 3.5), squeeze=False)
    for axis, visual in zip(axes[0], sizes, strict=True):
        for way in ("rows", "value_head", "cache", "shared"):
            points = sorted((c["k"], c["ways"][way]["seconds"]) for c in scoring if c["visual_tokens"] == visual)
            axis.plot(*zip(*points, strict=True), marker="o", label=way)
        axis.set(title=f"{visual} visual tokens", xlabel=f"K responses of {shortest} tokens", ylabel="seconds")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def ways_of(workload: str, batch: dict, response: int, reward_model, policy, reference, value_head) -> dict:
    """The ways to do one thing, as functions without arguments."""
    step, models = {
        "reward": (reward_step, reward_model),
        "nothing shared": (reward_step, reward_model),
        "mpo": (mpo_step, (policy, reference)),
        "score": (score, reward_model),
    }[workload]
    ways = {
        "rows": functools.partial(step, models, batch, response, share=False),
        "shared": functools.partial(step, models, batch, response, share=True),
    }
    if workload == "reward":
        ways["value_head"] = functools.partial(value_head_step, (policy, value_head), batch)
    if workload == "score":
        ways["value_head"] = functools.partial(score_value_head, (policy, value_head), batch)
        ways["cache"] = functools.partial(score_cache, reward_model, batch, response)
        if len(batch["input_ids"]) <= 8:  # beyond, the check would take a third of the grid's time
            expected = ways["rows"]()
            for name in ("shared", "cache"):
                assert torch.allclose(ways[name](), expected, atol=1e-4), f"{name} gives other scores"
    return ways


def line(cell: dict) -> str:
    rows, shared = cell["ways"]["rows"], cell["ways"]["shared"]
    others = [f"{name} {way['ratio']:.2f}" for name, way in cell["ways"].items() if name not in ("rows", "shared")]
    return (
        f"{cell['family']:10} {cell['workload']:14} K={cell['k']:<2} visual={cell['visual_tokens']:<4} "
        f"response={cell['response_tokens']:<4} tokens {cell['tokens']['rows']:>6} -> {cell['tokens']['shared']:<6} "
        f"{rows['seconds']:7.2f} s -> {shared['seconds']:6.2f} s, ratio {shared['ratio']:5.2f} "
        f"of {cell['ideal_ratio']:5.2f} ({shared['ratio'] / cell['ideal_ratio']:4.0%}); "
        f"{rows['peak_mib']:.0f} -> {shared['peak_mib']:.0f} MiB; " + ", ".join(others)
    )


def measure_family(family: str, args: argparse.Namespace) -> Iterator[dict]:
    """A family's cells, one after the other."""
    clock = time.process_time if args.cpu_seconds else time.perf_counter
    torch.manual_seed(0)
    config = build_config(family)
    reward_model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    policy, reference = (AutoModelForImageTextToText.from_config(config, dtype=torch.float32) for _ in range(2))
    reference.requires_grad_(False)
    value_head = torch.nn.Linear(WIDTH, 1)
    for model in (reward_model, policy):
        family_of(config).vision_tower_of(model).requires_grad_(False)
        for projector in family_of(config).projectors_of(model).values():
            projector.requires_grad_(True)
    parameters = [*reward_model.parameters(), *policy.parameters(), *value_head.parameters()]
    workloads = [("reward", 2), ("mpo", 2), ("nothing shared", 2), *(("score", k) for k in args.k)]
    for visual, response, (workload, k) in itertools.product(args.visual_tokens, args.response_tokens, workloads):
        batch = build_batch(config, workload, k, visual, response)
        ways = ways_of(workload, batch, response, reward_model, policy, reference, value_head)
        tokens = batch["input_ids"].numel()
        shared = tokens if workload == "nothing shared" else PROMPT_TEXT + visual + k * response
        yield {
            "family": family,
            "workload": workload,
            "k": k,
            "visual_tokens": visual,
            "response_tokens": response,
            "tokens": {"rows": tokens, "shared": shared},
            "ideal_ratio": ideal_ratio(config, workload, k, visual, response),
            "ways": measure(ways, parameters, args.rounds, args.seconds, clock),
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("docs/prefix_sharing"))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=["qwen2_5_vl"])
    parser.add_argument("--visual_tokens", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--response_tokens", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--k", type=int, nargs="+", default=[2, 4, 8, 16, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=15.0, help="Start no new round of a cell after this.")
    parser.add_argument("--cpu_seconds", action="store_true", help="For a machine that does other things, too.")
    args = parser.parse_args()

    args.output_dir.mkdir(parents=True, exist_ok=True)
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "cpus": os.cpu_count()}
    cells = []
    for family in args.families:
        for cell in measure_family(family, args):
            cells.append(cell)
            print(line(cell), flush=True)
            (args.output_dir / "results.json").write_text(json.dumps({**machine, "cells": cells}, indent=1) + "\n")
    plot([cell for cell in cells if cell["family"] == args.families[0]], args.output_dir / "results.png")


if __name__ == "__main__":
    main()
