"""
Precision and recall of near-duplicate and contamination detection, on pairs that were changed in known ways.

```bash
python bench/curation_accuracy.py --output_dir docs/curation
```

The images are 96 tiles of the two photographs that scikit-learn ships, 48 drawn charts, 48 pages of text and 48
handwritten questions: tiles of sky, charts on the same axes, white pages and digits on white are what perceptual hashes
take for each other. Every image has a question and two answers of its own. A change is either one that must be found
(an image compressed anew, resized or cropped; blanks, case, a word) or one that must stay (another image; a chart with
one other bar, a page with one other line in three; another number, one other word in the question, a paraphrase). Two
planted changes cannot both be right: a word that does not matter ("quite" to "very", to be found) and one that does
("quite" to "never", to stay) look the same to any measure of similarity. Writes `accuracy.json`.
"""

import argparse
import io
import itertools
import json
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image, ImageDraw
from sklearn.datasets import load_sample_images

from vl_reward.curation import BenchmarkContent, CurationAudit, PairCuration, PairInspection, PreferenceSource
from vl_reward.curation.pair import PAIR_FEATURES, build_pair
from vl_reward.tiny.digits import compose


BITS, BIT_DEFAULT = [0, 2, 4, 6, 8, 10, 12], 6
SIMILARITIES, SIMILARITY_DEFAULT = [0.6, 0.7, 0.8, 0.9], 0.8
SUBJECTS = ["tower", "river", "garden", "street", "harbour", "meadow", "temple", "market"]
DETAILS = ["a red roof", "two boats", "three lamps", "an old gate", "tall grass", "a stone wall", "yellow petals"]
PLACES = ["on the left side", "near the middle", "behind the trees", "in the far distance", "close to the viewer"]


def encoded(image: Image.Image, form: str = "PNG", **settings) -> bytes:
    settings = {"compress_level": 1} | settings if form == "PNG" else settings  # quick, and as lossless
    image.save(buffer := io.BytesIO(), form, **settings)
    return buffer.getvalue()


def scaled(image: Image.Image, factor: float) -> Image.Image:
    size = tuple(round(side * factor) for side in image.size)
    return image.resize(size, Image.Resampling.LANCZOS)


def cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


IMAGE_CHANGES = {
    "png again": lambda image: encoded(image, compress_level=6),
    "jpeg 90": lambda image: encoded(image, "JPEG", quality=90),
    "jpeg 50": lambda image: encoded(image, "JPEG", quality=50),
    "webp 70": lambda image: encoded(image, "WEBP", quality=70),
    "half size": lambda image: encoded(scaled(image, 0.5)),
    "size x 1.5": lambda image: encoded(scaled(image, 1.5)),
    "half size, jpeg 70": lambda image: encoded(scaled(image, 0.5), "JPEG", quality=70),
    "crop 2 %": lambda image: encoded(cropped(image, 0.02)),
    "crop 5 %": lambda image: encoded(cropped(image, 0.05)),
    "crop 10 %": lambda image: encoded(cropped(image, 0.10)),
}


def chart(heights: list[int]) -> Image.Image:
    """Bars on axes, in black and blue on white."""
    image = Image.new("RGB", (240, 160), "white")
    draw = ImageDraw.Draw(image)
    draw.line([(20, 10), (20, 140), (230, 140)], fill="black", width=2)
    for x, height in zip(range(30, 230, 25), heights, strict=True):
        draw.rectangle([x, 140 - height, x + 15, 139], fill="steelblue")
    return image


def page(lines: list[str]) -> Image.Image:
    """Lines of words, in black on white."""
    image = Image.new("RGB", (240, 320), "white")
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((15, 15 + 12 * number), line, fill="black")
    return image


def charts_and_pages(rng: random.Random) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """Kind, image, and another image that is nearly the same: one bar or every third line is another."""
    words = " ".join(SUBJECTS + DETAILS + PLACES).split()
    for _ in range(48):
        heights = [rng.randint(5, 125) for _ in range(8)]
        changed = list(heights)
        changed[rng.randrange(8)] = rng.randint(5, 125)
        yield "chart", chart(heights), chart(changed)
    for _ in range(48):
        lines, others = ([" ".join(rng.sample(words, rng.randint(2, 6))) for _ in range(24)] for _ in range(2))
        yield "page", page(lines), page([others[i] if i % 3 == 0 else line for i, line in enumerate(lines)])


def originals() -> list[tuple[str, Image.Image, Image.Image | None]]:
    """Kind and image of each original, and another image nearly the same, where one can be drawn."""
    tiles = []
    for photograph in load_sample_images().images:
        height, width = photograph.shape[0] // 6, photograph.shape[1] // 8
        for row, column in itertools.product(range(6), range(8)):
            tile = photograph[row * height : (row + 1) * height, column * width : (column + 1) * width]
            tiles.append(("photo", scaled(Image.fromarray(tile), 3), None))
    digits = [("digits", row["images"][0], None) for row in itertools.islice(compose("sft", 0), 48)]
    return [*tiles, *charts_and_pages(random.Random(0)), *digits]


def texts(i: int) -> tuple[str, str, str]:
    """A question and two answers, different for each number."""
    rng = random.Random(i)
    subject, place = rng.choice(SUBJECTS), rng.choice(PLACES)
    one, two = rng.sample(DETAILS, 2)
    question = f"Picture {i} was taken by a visitor. What is beside the {subject} {place}, and how sure are you?"
    answer = "Beside the {} there is {} {}, which can be made out clearly, and I am quite sure since nothing hides it."
    return question, answer.format(subject, one, place), answer.format(subject, two, place)


def paraphrase(question: str, chosen: str, rejected: str) -> tuple[str, str, str]:
    details = [text.split("there is ")[1].split(", which")[0] for text in (chosen, rejected)]
    answers = [f"I see {detail}. It stands out well, so I have no doubt about that." for detail in details]
    return question, answers[0], answers[1]


def another_subject(question: str, chosen: str, rejected: str) -> tuple[str, str, str]:
    """One word of the question, with the same answers but for that word."""
    subject = next(subject for subject in SUBJECTS if subject in question)
    other = SUBJECTS[SUBJECTS.index(subject) - 1]
    return tuple(text.replace(subject, other) for text in (question, chosen, rejected))


TEXT_CHANGES = {
    "blanks": lambda q, c, r: (f" {q.replace(' ', '  ')}\n", c.replace(". ", ".\n"), r),
    "case": lambda q, c, r: (q.upper(), c.lower(), r),
    "full stops": lambda q, c, r: (q.replace("?", " ?"), c.rstrip("."), r.replace(",", " ,")),
    "a word that does not matter": lambda q, c, r: (q, c.replace("quite", "very"), r),
    "the other way round": lambda q, c, r: (q, r, c),
}
TEXTS_THAT_STAY = {
    "another number": lambda q, c, r: (q.replace("Picture ", "Picture 9"), c, r),
    "another subject": another_subject,
    "another answer": lambda q, c, r: (q, c.replace("there is", "I can make out, though it is far away,"), r),
    "a word that matters": lambda q, c, r: (q, c.replace("quite", "never"), r),
    "paraphrase": paraphrase,
    "another question": lambda q, c, r: ("Describe this image.", c, r),
}


def inspect_pairs(pairs: list[tuple], folder: Path) -> tuple[Dataset, Dataset]:
    """Pairs of source, texts and image, and their inspection."""
    rows = [
        dict.fromkeys(PAIR_FEATURES) | build_pair(*words, [data]) | {"source": source, "index": i}
        for i, (source, words, data) in enumerate(pairs)
    ]
    dataset = Dataset.from_list(rows, PAIR_FEATURES)
    return dataset, PairInspection()(dataset, folder)


def curation_of(pairs: Dataset, inspected: Dataset) -> PairCuration:
    audit = CurationAudit({})
    for name, n in sorted(Counter(pairs["source"]).items()):
        audit.record_source(name, n, n, [], path="", license="")
    return PairCuration(pairs, inspected, audit)


def table(planted: dict[int, tuple[str, str, bool]], dropped: set[int]) -> dict:
    """Share found by change and kind of image; precision and recall over all."""
    shares = defaultdict(list)
    for i, (change, kind, _) in planted.items():
        shares[change, kind].append(i in dropped)
    right = sum(planted[i][2] for i in dropped if i in planted)
    return {
        "precision": round(right / len(dropped), 4) if dropped else None,
        "recall": round(right / sum(wanted for _, _, wanted in planted.values()), 4),
        "found": {f"{change}, {kind}": round(sum(hits) / len(hits), 3) for (change, kind), hits in shares.items()},
    }


def plant_near_duplicates(images: list[tuple]) -> tuple[list[tuple], dict[int, tuple[str, str, bool]]]:
    """Originals in one source, changed pairs in another; and change, kind and whether to find each of these."""
    pairs = [("a", texts(i), encoded(image)) for i, (_, image, _) in enumerate(images)]
    planted = {}
    for i, (kind, image, variant) in enumerate(images):
        words, same = texts(i), partial(encoded, image)
        other = next(image for k, image, _ in images[i + 1 :] + images if k == kind)
        changed = [(change, True, words, partial(alter, image)) for change, alter in IMAGE_CHANGES.items()]
        changed += [(change, True, alter(*words), same) for change, alter in TEXT_CHANGES.items()]
        changed += [(change, False, alter(*words), same) for change, alter in TEXTS_THAT_STAY.items()]
        changed += [("another image", False, words, partial(encoded, other))]
        changed += [("nearly the same image", False, words, partial(encoded, variant))] if variant else []
        # Half of them on each image: a pair is compared with those before it that stay, too.
        for change, wanted, changed_words, draw in changed[i % 2 :: 2]:
            planted[len(pairs)] = change, kind, wanted
            pairs.append(("b", changed_words, draw()))
    return pairs, planted


def near_duplicates(folder: Path, images: list[tuple]) -> dict:
    pairs, planted = plant_near_duplicates(images)
    dataset, inspected = inspect_pairs(pairs, folder)
    settings = [(bits, SIMILARITY_DEFAULT) for bits in BITS]
    settings += [(BIT_DEFAULT, similarity) for similarity in SIMILARITIES if similarity != SIMILARITY_DEFAULT]
    results = {}
    for bits, similarity in settings:
        curation = curation_of(dataset, inspected)
        curation.drop_near_duplicates(similarity, bits)
        # The original of a pair that is there the other way round goes, too, and rightly.
        dropped = {row["index"] for row in curation.dropped if row["source"] == "b"}
        results[f"max_hamming_distance {bits}, min_text_similarity {similarity}"] = table(planted, dropped)
    return results


def contamination(folder: Path, images: list[tuple]) -> dict:
    """Half of the images are in a benchmark; training pairs show them changed, or show the others."""
    half, lines, planted, pairs = images[::2], [], {}, []

    def plant(change: str, kind: str, wanted: bool, words: tuple, data: bytes):
        planted[len(pairs)] = change, kind, wanted
        pairs.append(("a", words, data))

    for i, (kind, image, variant) in enumerate(half):
        (folder / f"{i}.png").write_bytes(encoded(image))
        question, chosen, rejected = texts(i)
        lines.append({"id": str(i), "query": question, "response": [chosen, rejected], "image": f"{i}.png"})
        for change, alter in IMAGE_CHANGES.items():
            plant(change, kind, True, texts(1000 + len(pairs)), alter(image))
        if variant:
            plant("nearly the same image", kind, False, texts(1000 + len(pairs)), encoded(variant))
    (folder / "benchmark.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    rng = np.random.default_rng(0)
    for i, (kind, image, _) in enumerate(images[1::2]):
        noise = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((96, 96))
        question, chosen, rejected = texts(i)
        plant("another image", kind, False, texts(9000 + i), encoded(image))
        plant("the same question", kind, False, paraphrase(question, chosen, rejected), encoded(image))
        upper = f" {question.upper()}"
        plant("the same question and answer, blanks and case", kind, True, (upper, chosen, rejected), encoded(noise))
    dataset, inspected = inspect_pairs(pairs, folder)
    benchmark, results = BenchmarkContent("benchmark", str(folder / "benchmark.jsonl")), {}
    for bits in BITS:
        curation = curation_of(dataset, inspected)
        curation.drop_contaminated(benchmark, [PreferenceSource("a", "trl_format", "none/none")], bits)
        results[f"max_hamming_distance {bits}"] = table(planted, {row["index"] for row in curation.dropped})
    return results


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/curation"))
    args = parser.parse_args()
    results, images = {}, originals()
    for name, task in (("near-duplicates", near_duplicates), ("contamination", contamination)):
        with tempfile.TemporaryDirectory() as folder:
            results[name] = task(Path(folder), images)
        print(f"\n{name:50} precision  recall")
        for settings, figures in results[name].items():
            precision = "-" if figures["precision"] is None else f"{figures['precision']:.3f}"
            print(f"{settings:50} {precision:>9} {figures['recall']:7.3f}")
        settings = next(key for key in results[name] if f"max_hamming_distance {BIT_DEFAULT}" in key)
        print(f"\nfound, {settings}:")
        for change, share in results[name][settings]["found"].items():
            print(f"  {change:60} {share:.3f}")
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "accuracy.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
