"""
How fast Chromium draws the report of a run with 5,000 pairs: seconds to the first view, and frames a second while the
gallery scrolls. Prints a table and writes `chromium.json`.

```bash
python bench/report_page.py --output_dir docs/report
```

Every pair has its own picture of noise, the largest that a thumbnail can be, and texts of some 100 to 1,500 characters.
"""

import argparse
import json
import random
import subprocess
import tempfile
from pathlib import Path
from statistics import median

import numpy
from chromium import Chromium
from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

from vl_reward.report import write_report


# Scrolls the whole gallery once, a step in each frame, and says when each frame was.
SCROLL = """new Promise(done => {
    const list = document.getElementById("rows"), times = [], frames = 240;
    list.scrollIntoView();
    list.scrollTop = 0;
    const frame = now => {
        times.push(now);
        list.scrollTop = (list.scrollHeight - list.clientHeight) * times.length / frames;
        if (times.length <= frames) requestAnimationFrame(frame); else done(times);
    };
    requestAnimationFrame(frame);
})"""
FIRST_VIEW = """(() => {
    const paints = performance.getEntriesByType("paint").map(paint => paint.startTime);
    return Math.max(...paints, performance.getEntriesByType("navigation")[0].loadEventEnd) / 1000;
})()"""


def make_large_run(folder: Path, pairs: int) -> Path:
    """Held-out pairs with scores, as `evaluate_reward` and `prepare_preferences` leave them."""
    noise, chance = numpy.random.default_rng(0), random.Random(0)

    def text():
        return " ".join(
            chance.choices(("the", "larger", "digit", "is", "four", "image", "answer:"), k=chance.randint(20, 250))
        )

    def rows():
        for number in range(pairs):
            picture = PILImage.fromarray(noise.integers(0, 256, (96, 96, 3), dtype=numpy.uint8))
            row = {"id": str(number), "prompt": [{"role": "user", "content": text()}], "images": [picture]}
            yield row | {side: [{"role": "assistant", "content": text()}] for side in ("chosen", "rejected")}

    message = List({"role": Value("string"), "content": Value("string")})
    features = {"id": Value("string"), "images": List(Image())}
    features = Features(features | dict.fromkeys(("prompt", "chosen", "rejected"), message))
    found = Dataset.from_generator(rows, features=features, cache_dir=str(folder / "cache"))
    DatasetDict({"test": found}).save_to_disk(folder / "preferences")
    (folder / "evaluate_reward").mkdir(parents=True)
    with open(folder / "evaluate_reward/scores.jsonl", "w") as file:
        for number in range(pairs):
            scores, lengths = [chance.gauss(1, 2), chance.gauss(-1, 2)], [chance.randint(20, 250) for _ in range(2)]
            line = {"id": str(number), "source": f"source {number % 7}", "scores": scores, "lengths": lengths}
            file.write(json.dumps(line) + "\n")
    return folder


def frames_a_second(browser: Chromium) -> dict[str, float]:
    """Of one way through the gallery: the mean, and the frame that one in twenty takes longer than."""
    times = browser.js(SCROLL)
    took = sorted(after - before for before, after in zip(times, times[1:], strict=False))
    return {"fps": 1000 * len(took) / sum(took), "slow_frame_ms": took[len(took) * 95 // 100]}


def measure(page: Path, rounds: int) -> dict:
    """Each round is a new browser, in a profile of its own."""
    measured = []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Chromium(Path(profile)) as browser:
            browser.open(page)
            view = {"first_view_s": browser.js(FIRST_VIEW), **frames_a_second(browser)}
            view["rows_in_the_page"] = browser.js("document.querySelectorAll('.row').length")
            measured.append(view)
    return {name: [round(view[name], 3) for view in measured] for name in measured[0]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="`chromium.json` is written here.")
    parser.add_argument("--pairs", type=int, default=5000, help="The gallery holds so many pairs.")
    parser.add_argument("--rounds", type=int, default=5, help="A browser is started so many times.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_large_run(Path(folder), args.pairs)
        page = write_report([run], run / "report.html", max_pairs=args.pairs)
        found = {"pairs": args.pairs, "page_mb": round(page.stat().st_size / 1e6, 1), **measure(page, args.rounds)}
    found["chromium"] = subprocess.run(["chromium", "--version"], capture_output=True, text=True).stdout.strip()
    for name, values in found.items():
        print(f"{name:<20}{median(values) if isinstance(values, list) else values}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "chromium.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
