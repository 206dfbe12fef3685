"""
Scoring K responses to a prompt with an image: this project's scorer and vLLM's `classify` with prefix caching, on the
same weights and the same texts, in turns within one run.

```bash
make .venv-vllm/installed
.venv-vllm/bin/python bench/serving.py --output_dir docs/serving
.venv-vllm/bin/python bench/serving.py --output_dir docs/serving/small --small
```

The model is random, in the proportions of Qwen2.5-VL-7B, or the embedded world's with `--small`. vLLM is asked about
the first response to each prompt, and then about the others, so that they find the prompt in its cache; each round has
images of its own, and an empty cache. vLLM's linear layers are computed by oneDNN, and PyTorch's by MKL, which takes
twice the time on some CPUs. So this project's scorer takes another turn with its linear layers by oneDNN. A ratio is
the median, over the rounds, of vLLM's time over this project's. Writes `results.json` and `results.png`, and prints the
table of `docs/vllm.md`.
"""

import argparse
import contextlib
import ctypes
import functools
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock


# Memory that is freed stays with the process: else most of the time goes into pages that are asked for again.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, MOST = -1, -3, 2**31 - 1
libc = ctypes.CDLL("libc.so.6")
assert libc.mallopt(M_TRIM_THRESHOLD, MOST) and libc.mallopt(M_MMAP_THRESHOLD, MOST)
os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "2", "HF_HUB_OFFLINE": "1"}

import matplotlib.pyplot as plt  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from vllm import LLM  # noqa: E402

from vl_reward import Qwen2_5_VLForSequenceClassification, RewardScorer  # noqa: E402
from vl_reward.data.encoding import count_visual_tokens, render  # noqa: E402
from vl_reward.data.messages import as_messages  # noqa: E402
from vl_reward.models.exported_checkpoint import ExportedCheckpoint  # noqa: E402
from vl_reward.tiny.base import build_config  # noqa: E402
from vl_reward.tiny.processor import build_processor  # noqa: E402


RESPONSES = (2, 4, 8, 16, 32)
TEXT = {"hidden_size": 512, "intermediate_size": 2688, "num_hidden_layers": 8}
TEXT |= {"num_attention_heads": 8, "num_key_value_heads": 2}
VISION = {"depth": 4, "hidden_size": 320, "intermediate_size": 864, "num_heads": 5, "fullatt_block_indexes": [3]}
WORDS = "the digit on the left is larger than the one on the right so the answer must be".split()


def build_model(folder: Path, small: bool) -> None:
    """A random reward model with its processor."""
    processor = build_processor()
    processor.image_processor.size["longest_edge"] = 1280 * 28 * 28  # the embedded world's images are smaller
    config = build_config(processor.tokenizer)
    if not small:
        for part, values in ((config.text_config, TEXT), (config.vision_config, {**VISION, "out_hidden_size": 512})):
            for name, value in values.items():
                setattr(part, name, value)
        config.text_config.layer_types = ["full_attention"] * TEXT["num_hidden_layers"]
        config.text_config.rope_parameters["mrope_section"] = [8, 12, 12]
    config.text_config.max_position_embeddings = 8192
    torch.manual_seed(0)
    Qwen2_5_VLForSequenceClassification(config).save_pretrained(folder)
    processor.save_pretrained(folder)


def draw_rows(rng: random.Random, prompts: int, k: int, side: int, words: int) -> list[dict]:
    """Prompts with an image of their own and `k` responses each."""
    rows = []
    for number in range(prompts):
        image = Image.frombytes("RGB", (16, 16), rng.randbytes(768)).resize((side, side))
        responses = [" ".join(rng.choices(WORDS, k=words)) + f" {i}" for i in range(k)]
        rows.append({"id": number, "prompt": "What does the image show?", "images": [image], "responses": responses})
    return rows


def classify(llm: LLM, processor, rows: list[dict]) -> list[list[float]]:
    """vLLM's scores: of each prompt's first response, then of the others."""
    requests = [
        [
            {
                "prompt": render(processor, "row", as_messages(row["prompt"], text), row["images"]),
                "multi_modal_data": {"image": row["images"]},
            }
            for text in row["responses"]
        ]
        for row in rows
    ]
    first = llm.classify([row[0] for row in requests], use_tqdm=False)
    others = iter(llm.classify([one for row in requests for one in row[1:]], use_tqdm=False))
    scores = [[head.outputs.probs[0]] for head in first]
    for row, given in zip(scores, requests, strict=True):
        row += [next(others).outputs.probs[0] for _ in given[1:]]
    return scores


def linear_by_onednn(self, states: torch.Tensor) -> torch.Tensor:
    """What `torch.nn.Linear.forward` computes, by the operation that TorchInductor has for it on a CPU."""
    rows = states.reshape(-1, states.shape[-1])
    output = torch.ops.mkldnn._linear_pointwise(rows, self.weight, self.bias, "none", [], "")
    return output.view(*states.shape[:-1], -1)


def onednn():
    return mock.patch.object(torch.nn.Linear, "forward", linear_by_onednn)


def measure_products() -> dict[str, float]:
    """Milliseconds of CPU time of a product as the model's largest, by MKL and by oneDNN."""
    layer = torch.nn.Linear(TEXT["hidden_size"], TEXT["intermediate_size"], bias=False).requires_grad_(False)
    states, taken = torch.randn(2048, TEXT["hidden_size"]), {}
    for name, context in (("mkl", contextlib.nullcontext), ("onednn", onednn)):
        with context():
            times = []
            for _ in range(20):
                started = time.process_time()
                layer(states)
                times.append(time.process_time() - started)
        taken[name] = 1000 * min(times)
    return taken


def measure(scorer: RewardScorer, llm: LLM, k: int, args) -> dict:
    """All ways, in turns; the first round warms up."""
    contexts = {"ours": contextlib.nullcontext, "ours, oneDNN": onednn, "vllm": contextlib.nullcontext}
    rng, seconds, largest = random.Random(k), {name: [] for name in contexts}, 0.0
    for number in range(args.rounds + 1):
        rows = draw_rows(rng, args.prompts, k, args.side, args.words)
        llm.reset_prefix_cache()
        ways = dict.fromkeys(contexts, functools.partial(scorer.score_candidates, rows))
        ways["vllm"] = functools.partial(classify, llm, scorer.processor, rows)
        scores = {}
        for name in sorted(ways, reverse=number % 2 == 1):
            with contexts[name]():
                started = time.process_time(), time.perf_counter()
                scores[name] = sum(ways[name](), [])
                taken = [time.process_time() - started[0], time.perf_counter() - started[1]]
            if number:
                seconds[name].append(taken)
        largest = max(largest, *(max(three) - min(three) for three in zip(*scores.values(), strict=True)))
    tokens = count_visual_tokens(scorer.processor, "row", rows[0]["images"])
    return {
        "k": k,
        "visual_tokens": tokens,
        "ratio_cpu": {name: ratio(seconds, name, 0) for name in ("ours", "ours, oneDNN")},
        "ratio_wall": {name: ratio(seconds, name, 1) for name in ("ours", "ours, oneDNN")},
        "largest_difference": largest,
        "seconds": seconds,
    }


def ratio(seconds: dict[str, list], name: str, clock: int) -> float:
    """The median, over the rounds, of vLLM's time over this way's, by the CPU's clock (0) or the wall's (1)."""
    return statistics.median(
        theirs[clock] / ours[clock] for ours, theirs in zip(seconds[name], seconds["vllm"], strict=True)
    )


def table(cells: list[dict]) -> str:
    heads = [
        "responses",
        "vLLM / ours, CPU time",
        "time",
        "vLLM / ours by oneDNN, CPU time",
        "time",
        "largest difference",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for cell in cells:
        ratios = [
            f"{cell[clock][name]:.2f}" for name in ("ours", "ours, oneDNN") for clock in ("ratio_cpu", "ratio_wall")
        ]
        lines.append(f"| {cell['k']} | {' | '.join(ratios)} | {cell['largest_difference']:.1e} |")
    return "\n".join(lines)


def plot(cells: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    for name in ("ours", "ours, oneDNN"):
        axes.plot([cell["k"] for cell in cells], [cell["ratio_cpu"][name] for cell in cells], marker="o", label=name)
    axes.legend()
    axes.axhline(1, color="gray", linewidth=0.8)
    axes.set(xscale="log", xlabel="responses to a prompt", ylabel="vLLM's CPU time / ours", title="Scoring on a CPU")
    axes.set_xticks(RESPONSES, map(str, RESPONSES))
    figure.savefig(path, dpi=150)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="Results are written here.")
    parser.add_argument("--rounds", type=int, default=5, help="Each K is measured this often.")
    parser.add_argument("--prompts", type=int, default=4, help="A round has this many prompts.")
    parser.add_argument("--side", type=int, default=448, help="An image has this many pixels on each side.")
    parser.add_argument("--words", type=int, default=40, help="A response has this many words.")
    parser.add_argument("--small", action="store_true", help="Take the embedded world's model.")
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder) / "native", args.small)
        ExportedCheckpoint(f"{folder}/native", "vllm").write(f"{folder}/vllm")
        scorer = RewardScorer.from_pretrained(f"{folder}/native")
        llm = LLM(
            model=f"{folder}/vllm",
            runner="pooling",
            dtype="float32",
            max_model_len=4096,
            max_num_batched_tokens=16384,
            enable_prefix_caching=True,
            enforce_eager=True,
            gpu_memory_utilization=0.3,
        )
    torch.set_num_threads(2)
    cells = [measure(scorer, llm, k, args) for k in RESPONSES]
    sizes = {name: getattr(args, name) for name in ("rounds", "prompts", "side", "words")}
    results = {"sizes": sizes, "product_ms": measure_products(), "cells": cells}
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2))
    plot(cells, args.output_dir / "results.png")
    print(table(cells))


if __name__ == "__main__":
    main()
