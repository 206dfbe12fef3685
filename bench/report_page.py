"""
How fast Chromium draws the report of a run with 5,000 pairs: seconds to the first view, and frames a second while the
gallery scrolls. Prints a table and writes `chromium.json`. With `--run`, pictures of that run's report besides.

```bash
python bench/report_page.py --output_dir docs/report --run outputs/tiny
```

Every pair has its own picture of noise, the largest that a thumbnail can be, and texts of some 100 to 1,500 characters.
"""

import argparse
import io
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
GALLERY = "document.getElementById('gallery').scrollIntoView()"
VIEWS = {  # width, height, dark, and what is done before the picture is taken
    "results_1440_light": (1440, 1500, False, ""),
    "pipeline_390_dark": (390, 1000, True, "document.getElementById('pipeline').scrollIntoView()"),
    "reward_1440_dark": (1440, 1000, True, "document.getElementById('reward').scrollIntoView()"),
    "gallery_1440_light": (1440, 900, False, GALLERY),
    "full_text_1440_dark": (1440, 900, True, f"{GALLERY}; document.querySelector('.row').click()"),
    "training_390_dark": (390, 844, True, "document.getElementById('training').scrollIntoView()"),
    "gallery_390_light": (390, 844, False, GALLERY),
}


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


def table(found: dict) -> str:
    """The table of docs/report.md."""
    names = {
        "first_view_s": ("seconds to the first view", ".2f", max),
        "fps": ("frames a second while it scrolls", ".0f", min),
        "slow_frame_ms": ("milliseconds that one frame in twenty is longer than", ".0f", max),
    }
    rows = ["| | median | worst |", "|---|---|---|"]
    for name, (what, digits, worst) in names.items():
        rows.append(f"| {what} | {median(found[name]):{digits}} | {worst(found[name]):{digits}} |")
    return "\n".join(rows)


def take_pictures(page: Path, folder: Path) -> None:
    """The main views on a laptop and a telephone, light and dark, in 256 colours."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, Chromium(Path(profile)) as browser:
        for name, (width, height, dark, script) in VIEWS.items():
            browser.open(page, width, height, dark)
            browser.js(script)
            picture = PILImage.open(io.BytesIO(browser.screenshot())).convert("RGB")
            picture.quantize(256, dither=PILImage.Dither.NONE).save(folder / f"{name}.png", optimize=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, required=True, help="`chromium.json` is written here.")
    parser.add_argument("--pairs", type=int, default=5000, help="The gallery holds so many pairs.")
    parser.add_argument("--rounds", type=int, default=5, help="A browser is started so many times.")
    parser.add_argument("--run", type=Path, help="Pictures are taken of this run's report, too.")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_large_run(Path(folder), args.pairs)
        page = write_report([run], run / "report.html", max_pairs=args.pairs)
        found = {"pairs": args.pairs, "page_mb": round(page.stat().st_size / 1e6, 1), **measure(page, args.rounds)}
    found["chromium"] = subprocess.run(["chromium", "--version"], capture_output=True, text=True).stdout.strip()
    print(table(found))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    if args.run is not None:
        with tempfile.TemporaryDirectory() as folder:
            take_pictures(write_report([args.run], Path(folder) / "report.html"), args.output_dir)
    (args.output_dir / "chromium.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
