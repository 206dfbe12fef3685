"""
Time and memory of inspection, duplicates, near-duplicates and decontamination on synthetic pairs, by their number.

```bash
python bench/curation.py --output_dir docs/curation
```

Of the pairs, 70 % have an image of 96 x 96 pixels, half of them one that another pair has, too; a fifth are short
questions in few wordings, which thousands of pairs share; 2 % are copies, 3 % copies with a word changed, 1 % copies
with chosen and rejected exchanged. The benchmark has 1,250 rows. Each size runs in a process of its own. Making the
pairs is not timed: a million of them take ten minutes, and 11 GB of disk. Memory is that of all processes together,
sampled on Linux: what they allocated, and with the dataset's files, which are mapped and can be given back at any time.
Writes `scale.json`.
"""

import argparse
import io
import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image

from vl_reward.curation import BenchmarkContent, CurationAudit, PairCuration, PairInspection, PreferenceSource
from vl_reward.curation.pair import PAIR_FEATURES, build_pair


SIZES = [50_000, 200_000, 1_000_000]
N_BENCHMARK = 1250
SYLLABLES = [a + b for a in "bcdfgklmnprst" for b in ("a", "e", "i", "o", "u", "ai")]
WORDS = [syllable + end for syllable in SYLLABLES for end in ("", "n", "rel", "sto", "k")]
OBJECTS = WORDS[:200]


def sentence(rng: random.Random, low: int, high: int) -> str:
    """Words as unevenly frequent as in language."""
    n = rng.randint(low, high)
    return " ".join(WORDS[int(len(WORDS) * rng.random() ** 2)] for _ in range(n))


def png(rng: np.random.Generator) -> bytes:
    image = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((96, 96), Image.Resampling.BICUBIC)
    image.save(buffer := io.BytesIO(), "PNG", compress_level=1)
    return buffer.getvalue()


def fresh_pair(rng: random.Random, images: np.random.Generator, last_image: bytes) -> dict:
    """A pair unlike others, or a short question that others ask as well."""
    image = [] if rng.random() < 0.3 else [last_image if rng.random() < 0.5 else png(images)]
    if image and rng.random() < 0.3:
        one, two = rng.sample(OBJECTS, 2)
        return build_pair(f"What is to the left of the {rng.choice(OBJECTS)}?", f"A {one}.", f"A {two}.", image)
    return build_pair(sentence(rng, 8, 30), sentence(rng, 30, 120), sentence(rng, 30, 120), image)


def synthetic_pairs(n: int, seed: int = 0):
    rng, images, recent = random.Random(seed), np.random.default_rng(seed), []
    last_image = png(images)
    for index in range(n):
        kind = rng.random()
        if recent and kind < 0.06:
            pair = dict(rng.choice(recent))
            if kind < 0.03:
                words = pair["chosen"][0]["content"].split()
                words[rng.randrange(len(words))] = "changed"
                pair["chosen"] = [{"role": "assistant", "content": " ".join(words)}]
            elif kind < 0.04:
                pair["chosen"], pair["rejected"] = pair["rejected"], pair["chosen"]
        else:
            pair = fresh_pair(rng, images, last_image)
            recent = [*recent[-999:], pair] if len(recent) < 1000 or rng.random() < 0.1 else recent
        last_image = pair["images"][0]["bytes"] if pair["images"] else last_image
        yield dict.fromkeys(PAIR_FEATURES) | pair | {"source": "synthetic", "index": index}


def write_benchmark(folder: Path, pairs: Dataset) -> Path:
    """A benchmark, a tenth of which is in the pairs."""
    (folder / "images").mkdir()
    rng, images, lines = random.Random(1), np.random.default_rng(1), []
    for i in range(N_BENCHMARK):
        row = pairs[rng.randrange(len(pairs))] if i % 10 == 0 else None
        data = row["images"][0]["bytes"] if row and row["images"] else png(images)
        (folder / f"images/{i}.png").write_bytes(data)
        query = row["prompt"][0]["content"][-1]["text"] if row else sentence(rng, 8, 30)
        responses = [sentence(rng, 30, 120), row["rejected"][0]["content"] if row else sentence(rng, 30, 120)]
        lines.append({"id": f"row-{i}", "query": query, "response": responses, "image": f"images/{i}.png"})
    (folder / "benchmark.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "benchmark.jsonl"


def process_tree(process: int) -> list[int]:
    """Ids of a process and of all that it started."""
    lists = [file.read_text().split() for file in Path(f"/proc/{process}/task").glob("*/children")]
    return [process, *(id for children in lists for child in children for id in process_tree(int(child)))]


class PeakMemory(threading.Thread):
    """
    The most memory that this process and its children hold together, in GB, looked up every half second. Pages that
    several of them share count once.

    Attributes:
        allocated (`float`): Without mapped files.
        mapped (`float`): With them.
    """

    def __init__(self):
        super().__init__(daemon=True)
        self.allocated = self.mapped = 0.0
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(0.5):
            sums = {"Pss": 0, "Pss_Anon": 0, "Pss_Shmem": 0}
            for process in process_tree(os.getpid()):
                try:
                    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
                except OSError:  # it has ended since
                    continue
                sizes = {line.split(":")[0]: int(line.split()[1]) for line in lines}
                sums = {key: value + sizes[key] for key, value in sums.items()}
            self.allocated = max(self.allocated, (sums["Pss_Anon"] + sums["Pss_Shmem"]) / 2**20)
            self.mapped = max(self.mapped, sums["Pss"] / 2**20)


def measure(n: int, num_proc: int) -> dict:
    """Seconds of each step, peak memory, and what each step dropped."""
    memory = PeakMemory()
    memory.start()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        pairs = Dataset.from_generator(
            synthetic_pairs, PAIR_FEATURES, cache_dir=str(folder / "cache"), gen_kwargs={"n": n}
        )
        benchmark_file = write_benchmark(folder, pairs)
        audit, seconds, start = CurationAudit({}), {}, time.perf_counter()
        audit.record_source("synthetic", n, n, [], path="", license="")

        def lap(name: str):
            nonlocal start
            seconds[name], start = time.perf_counter() - start, time.perf_counter()

        inspected = PairInspection(num_proc=num_proc)(pairs, folder)
        lap("inspection")
        curation = PairCuration(pairs, inspected, audit)
        lap("reading")
        curation.drop_contradictions()
        curation.drop_duplicates()
        lap("duplicates")
        curation.drop_near_duplicates(0.8, 6)
        lap("near-duplicates")
        source = PreferenceSource("synthetic", "trl_format", "none/none")
        curation.drop_contaminated(BenchmarkContent("benchmark", str(benchmark_file)), [source], 6)
        lap("decontamination")
    memory.ended.set()
    memory.join()
    return {
        "pairs": n,
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
        "total_seconds": round(sum(seconds.values()), 1),
        "peak_gb": round(memory.allocated, 2),
        "peak_gb_with_files": round(memory.mapped, 2),
        "kept": len(curation.kept),
        "dropped": {step["step"]: step["in"] - step["out"] for step in audit.steps},
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/curation"))
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--num_proc", type=int, default=2)
    parser.add_argument("--single", type=int, help="Measure one size, and print it as JSON: what the others run.")
    args = parser.parse_args()
    if args.single:
        print(json.dumps(measure(args.single, args.num_proc)))
        return
    results = []
    print(f"{'pairs':>9} {'seconds':>9} {'per 1,000':>10} {'peak GB':>8} {'with files':>11}  steps")
    for size in args.sizes:
        command = [sys.executable, __file__, "--single", str(size), "--num_proc", str(args.num_proc)]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        results.append(json.loads(output.splitlines()[-1]))
        result = results[-1]
        per_thousand = 1000 * result["total_seconds"] / size
        steps = ", ".join(f"{name} {value}" for name, value in result["seconds"].items())
        total, peaks = result["total_seconds"], f"{result['peak_gb']:8.2f} {result['peak_gb_with_files']:11.2f}"
        print(f"{size:9,} {total:9.1f} {per_thousand:10.2f} {peaks}  {steps}", flush=True)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    report = {"num_proc": args.num_proc, "cores": os.cpu_count(), "sizes": results}
    (args.output_dir / "scale.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
