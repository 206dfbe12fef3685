"""
Scoring K responses to a prompt with an image: this project's scorer and vLLM's `classify` with prefix caching, on the
same weights and the same texts, in turns within one run.

```bash
make .venv-vllm/installed
.venv-vllm/bin/python bench/serving.py --output_dir docs/serving
```

The model is random, in the proportions of Qwen2.5-VL-7B. vLLM is asked about the first response to each prompt, and
then about the others, so that they find the prompt in its cache; each round has images of its own, and an empty cache.
The ratio is the median, over the rounds, of vLLM's CPU time over this project's. Writes `results.json` and
`results.png`.
"""

import argparse
import ctypes
import functools
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path


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


def build_model(folder: Path) -> None:
    """A random reward model with its processor."""
    processor = build_processor()
    processor.image_processor.size["longest_edge"] = 1280 * 28 * 28  # the embedded world's images are smaller
    config = build_config(processor.tokenizer)
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


def measure(scorer: RewardScorer, llm: LLM, k: int, args) -> dict:
    """Both, in turns; the first round warms up."""
    rng, seconds, largest = random.Random(k), {"ours": [], "vllm": []}, 0.0
    for number in range(args.rounds + 1):
        rows = draw_rows(rng, args.prompts, k, args.side, args.words)
        llm.reset_prefix_cache()
        ways = {
            "ours": functools.partial(scorer.score_candidates, rows),
            "vllm": functools.partial(classify, llm, scorer.processor, rows),
        }
        scores = {}
        for name in sorted(ways, reverse=number % 2 == 1):
            started = time.process_time(), time.perf_counter()
            scores[name] = ways[name]()
            if number:
                seconds[name].append([time.process_time() - started[0], time.perf_counter() - started[1]])
        pairs = zip(*(sum(scores[name], []) for name in ways), strict=True)
        largest = max(largest, *(abs(a - b) for a, b in pairs))
    ratios = [
        [b / a for a, b in zip(*pair, strict=True)] for pair in zip(seconds["ours"], seconds["vllm"], strict=True)
    ]
    cpu, wall = (statistics.median(ratio[i] for ratio in ratios) for i in range(2))
    tokens = count_visual_tokens(scorer.processor, "row", rows[0]["images"])
    return {
        "k": k,
        "visual_tokens": tokens,
        "ratio_cpu": cpu,
        "ratio_wall": wall,
        "largest_difference": largest,
        "seconds": seconds,
    }


def plot(cells: list[dict], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(5, 3.2), layout="constrained")
    axes.plot([cell["k"] for cell in cells], [cell["ratio_cpu"] for cell in cells], marker="o")
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
    args = parser.parse_args()
    args.output_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        build_model(Path(folder) / "native")
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
    (args.output_dir / "results.json").write_text(json.dumps({"sizes": sizes, "cells": cells}, indent=2))
    plot(cells, args.output_dir / "results.png")
    print("| responses | vLLM / ours, CPU time | vLLM / ours, time | largest difference of scores |")
    print("|---|---|---|---|")
    for cell in cells:
        ratios = f"{cell['ratio_cpu']:.2f} | {cell['ratio_wall']:.2f}"
        print(f"| {cell['k']} | {ratios} | {cell['largest_difference']:.1e} |")


if __name__ == "__main__":
    main()
