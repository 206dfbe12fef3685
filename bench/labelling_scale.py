"""
What on-policy data costs at scale: 300,000 prompts with 32 samples each on 8 and on 64 GPUs, on paper; and labelling's
own part, all but the model, run on 100,000 candidates on this machine, to see that its memory stays bounded.

```bash
python bench/labelling_scale.py --output_dir docs/on_policy
```

The simulation is arithmetic on the numbers below, each of which can be set. The two rates are assumptions, not
measurements: vLLM prints its own in its log. The run scores 100,000 candidates by their
length into a [`ResumableStore`], reads them from disk as the recipe does, and measures time, files and memory.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value, load_from_disk

from vl_reward.inference.resumable_store import ResumableStore
from vl_reward.tiny.digits import compose
from vl_reward.tiny.preferences import as_png


GIB = 2**30


def plan(prompts: int, samples: int, gpus: int, tokens: int, prompt_tokens: int, sampled: float, scored: float) -> dict:
    """Work and hours on a number of GPUs that sample and score with vLLM, each prompt taken in once."""
    to_sample, to_score = prompts * samples * tokens, prompts * (prompt_tokens + samples * tokens)
    return {
        "gpus": gpus,
        "prompts_per_gpu": prompts / gpus,
        "sampled_tokens_per_gpu": to_sample / gpus,
        "scored_tokens_per_gpu": to_score / gpus,
        "hours_of_sampling": to_sample / gpus / sampled / 3600,
        "hours_of_scoring": to_score / gpus / scored / 3600,
    }


def simulate(prompts: int, samples: int, tokens: int, image_bytes: int, shard_size: int, pairs_per_prompt: int) -> dict:
    """Storage, shards and memory, of sampling and labelling, in GiB and counts."""
    characters = 4 * tokens  # of English text
    row_of_scores = 14 + samples * 20  # 20 digits a score
    return {
        "responses": prompts * samples,
        "storage_gib": {
            "prompts_with_images": prompts * image_bytes / GIB,
            "samples": prompts * samples * characters / GIB,
            "candidates": prompts * (image_bytes + samples * characters) / GIB,
            "scores": prompts * row_of_scores / GIB,
        },
        "shards_of_samples": -(-prompts // shard_size),
        "lost_by_a_kill": {"prompts_sampled_per_gpu": shard_size, "prompts_scored_per_gpu": 16},
        "held_in_memory_gib_per_process": {
            "pairs_without_their_texts": prompts * pairs_per_prompt * 160 / GIB,  # a name, a rule, a number each
        },
        "streamed": [
            "prompts, images and responses, mapped from disk",
            "samples and scores, shard by shard",
            "pairs, line by line",
        ],
    }


def write_candidates(folder: Path, n_prompts: int, samples: int) -> None:
    """Candidates with drawn images, in parts, so that making them takes no memory either."""
    features = Features(
        {"prompt": List({"role": Value("string"), "content": Value("string")}), "images": List(Image())}
    )
    features["responses"] = List(Value("string"))

    def rows():
        for number, row in zip(range(n_prompts), compose("preference", 0), strict=False):
            images = as_png([{"images": row["images"]}])[0]["images"]
            responses = [f"I see {number} and {i}. " + "Because. " * 100 for i in range(samples)]
            yield {"prompt": [{"role": "user", "content": f"{row['question']} {number}"}], "images": images} | {
                "responses": responses
            }

    Dataset.from_generator(rows, features=features, cache_dir=str(folder / "cache")).save_to_disk(folder / "candidates")


def memory_mib(field: str) -> float:
    """What the process takes now (`VmRSS`; without mapped files, `RssAnon`), or took at most (`VmHWM`)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) / 1024


def measure(n_candidates: int, samples: int) -> dict:
    """Time, files and peak memory of labelling all but the model's pass."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_candidates(folder, n_candidates // samples, samples)
        candidates = load_from_disk(folder / "candidates").cast_column("images", List(Image(decode=False)))
        asked = candidates.select_columns(["prompt", "images", "responses"])
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak (Linux)
        before, held, began = memory_mib("VmRSS"), memory_mib("RssAnon"), time.monotonic()
        store = ResumableStore(folder / "scores", "by length", asked)
        for number, rows in store.pending():
            store.write(number, scores=[[float(len(text)) for text in row["responses"]] for row in rows])
        assert sum(len(row["scores"]) == samples for row in store.read()) == len(candidates)
        return {
            "candidates": n_candidates,
            "seconds": round(time.monotonic() - began, 1),
            "peak_mib_above_start": memory_mib("VmHWM") - before,  # with the file's pages, which can be given back
            "held_mib_above_start": memory_mib("RssAnon") - held,
            "scores_mib": sum(path.stat().st_size for path in (folder / "scores").rglob("*.jsonl")) / 2**20,
            "candidates_mib": sum(path.stat().st_size for path in (folder / "candidates").iterdir()) / 2**20,
        }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("docs/on_policy"))
    parser.add_argument("--prompts", type=int, default=300_000)
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--tokens", type=int, default=500, help="Of a response, on average.")
    parser.add_argument("--prompt_tokens", type=int, default=1430, help="Of a prompt with its image: 1,280 and 150.")
    parser.add_argument("--sampled_per_second", type=float, default=2000, help="Tokens a GPU samples: an assumption.")
    parser.add_argument("--scored_per_second", type=float, default=10000, help="Tokens a GPU scores: an assumption.")
    parser.add_argument("--image_bytes", type=int, default=150_000, help="Of a prompt's images, on average.")
    parser.add_argument("--shard_size", type=int, default=256, help="As in sample_responses.")
    parser.add_argument("--pairs_per_prompt", type=int, default=15, help="InternVL's limit.")
    parser.add_argument("--candidates", type=int, nargs="+", default=[25_000, 50_000, 100_000], help="To run here.")
    args = parser.parse_args()
    scale = {key: value for key, value in vars(args).items() if key not in ("output_dir", "candidates")}
    stored = ("prompts", "samples", "tokens", "image_bytes", "shard_size", "pairs_per_prompt")
    results = {"scale": scale, "simulation": simulate(**{key: scale[key] for key in stored})}
    rates = args.prompt_tokens, args.sampled_per_second, args.scored_per_second
    results["plans"] = [plan(args.prompts, args.samples, gpus, args.tokens, *rates) for gpus in args.gpus]
    results["measured"] = []
    for n in args.candidates:
        results["measured"].append(measure(n, args.samples))
        print(json.dumps(results["measured"][-1]), flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "scale.json").write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({key: results[key] for key in ("simulation", "plans")}, indent=1))


if __name__ == "__main__":
    main()
