"""
Build small preference sets about drawn digits in the schemas of the public ones, and a benchmark, for
`recipes/prepare_preferences.py` in the embedded world. They hold what real sets hold: ties, doubles, a contradiction,
rows of the benchmark, images that cannot be read.

```bash
python -m vl_reward.tiny.public_sets --output_dir outputs/tiny/public_sets
```
"""

import argparse
import io
import itertools
import json
from pathlib import Path

from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PILImage

from .digits import compose, compose_text
from .preferences import corrupted_pairs


TURNS = List({"from": Value("string"), "value": Value("string")})
MESSAGES = List({"content": Value("string"), "role": Value("string")})
PARTS = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
RATING = {"Rating": Value("string"), "Rationale": Value("string")}
ASPECTS = ("Helpfulness", "Ethical Considerations", "Visual Faithfulness")
FEATURES = {
    "llava_critic": Features(
        {"id": Value("string"), "source": Value("string"), "conversations": TURNS, "image": Image()}
    ),
    "rlaif_v": Features(
        {key: Value("string") for key in ("ds_name", "question", "chosen", "rejected", "origin_dataset")}
        | {key: Value("string") for key in ("origin_split", "idx", "image_path")}
        | {"image": Image()}
    ),
    "trl_format": Features({"images": List(Image()), "prompt": PARTS, "chosen": PARTS, "rejected": PARTS}),
    "skywork_preference": Features({"chosen": MESSAGES, "rejected": MESSAGES, "source": Value("string")}),
    "vlfeedback": Features(
        {
            "id": Value("string"),
            "prompt": Value("string"),
            "models": List(Value("string")),
            "completions": List(
                {
                    "annotations": dict.fromkeys(ASPECTS, RATING),
                    "model": Value("string"),
                    "response": Value("string"),
                }
            ),
            "image": Image(),
        }
    ),
}


def as_bytes(image: PILImage.Image, format: str = "PNG", **options) -> bytes:
    """An image as a file's bytes. `options` are those of PIL for the format."""
    image.save(buffer := io.BytesIO(), format, **options)
    return buffer.getvalue()


def texts_of(pair: dict) -> tuple[str, str, str]:
    """Question, chosen and rejected response."""
    return tuple(pair[key][0]["content"] for key in ("prompt", "chosen", "rejected"))


def llava_critic_row(i: int, pair: dict) -> dict:
    """In turn: the three label wordings with either side better, and a tie."""
    question, chosen, rejected = texts_of(pair)
    one, two, names = [
        ("The first response", "The second response", ("first", "second")),
        ("Response 1", "Response 2", ("1", "2")),
        ("Response A", "Response B", ("A", "B")),
    ][i % 3]
    swap = i % 2
    first, second = (rejected, chosen) if swap else (chosen, rejected)
    verdict = "The two responses are equally good." if i % 7 == 6 else f"The better response: [{names[swap]}]"
    human = f"<image>\nJudge the answers.\nQuestion: [{question}]\n{one}: [{first}]\n{two}: [{second}]"
    turns = [{"from": "human", "value": human}, {"from": "gpt", "value": f"One reads the digits right. {verdict}"}]
    return {"id": f"digits_{i}", "source": "digits", "conversations": turns, "image": pair["images"][0]}


def rlaif_v_row(i: int, pair: dict) -> dict:
    """A pair as a row of RLAIF-V."""
    question, chosen, rejected = texts_of(pair)
    row = {"ds_name": "digits", "question": question, "chosen": chosen, "rejected": rejected, "idx": str(i)}
    row |= {"origin_dataset": "digits", "origin_split": '{"model": "tiny", "type": "question"}'}
    return row | {"image_path": f"{i}.png", "image": pair["images"][0]}


def trl_row(i: int, pair: dict) -> dict:
    """A pair in TRL's vision-preference format, with parts that hold keys of other parts as null."""
    question, chosen, rejected = texts_of(pair)
    user = [{"type": "image", "text": None}] * len(pair["images"]) + [{"type": "text", "text": question}]
    answers = {
        side: [{"role": "assistant", "content": [{"type": "text", "text": text}]}]
        for side, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"images": pair["images"], "prompt": [{"role": "user", "content": user}], **answers}


def skywork_row(i: int, pair: dict) -> dict:
    """A pair as a row of Skywork-Reward-Preference, which is text. Every second one has two turns ahead."""
    question, chosen, rejected = texts_of(pair)
    turns = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello! What is it?"}] * (i % 2)
    turns += [{"role": "user", "content": question}]
    answers = [{"role": "assistant", "content": text} for text in (chosen, rejected)]
    return {"chosen": [*turns, answers[0]], "rejected": [*turns, answers[1]], "source": "digits"}


def vlfeedback_row(i: int, pair: dict) -> dict:
    """Four responses: correct, incorrect, incorrect in the same degree, and one with a rating that is no number."""
    question, chosen, rejected = texts_of(pair)
    rated = [(chosen, "5"), (rejected, "2"), (f"{rejected} I think.", "2"), ("I cannot see it.", "N/A")]
    completions = [
        {
            "annotations": {aspect: {"Rating": rating, "Rationale": "By the digits."} for aspect in ASPECTS},
            "model": f"model_{number}",
            "response": text,
        }
        for number, (text, rating) in enumerate(rated)
    ]
    models = [completion["model"] for completion in completions]
    return {"id": f"vlfeedback_{i}", "prompt": question, "models": models, "completions": completions} | {
        "image": pair["images"][0]
    }


def write_files(folder: Path, pairs: list[dict], rlaif_v: list[dict]):
    """The sets that are JSON files with images beside them."""
    for name in ("mmpr/annotations", "mmpr/images", "mm_rlhf/video/clip", "povid/images"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    lines = []
    for i, pair in enumerate(pairs):
        question, chosen, rejected = texts_of(pair)
        names = [f"{i}_{number}.png" for number in range(len(pair["images"]))]
        for name, image in zip(names, pair["images"], strict=True):
            (folder / "mmpr/images" / name).write_bytes(as_bytes(image))
        image = {"image": names if len(names) > 1 else names[0]} if names else {}
        lines.append({**image, "question": question, "chosen": chosen, "rejected": rejected, "answer_gt": chosen[-1]})
    # A row of RLAIF-V once more, as a JPEG and with other blanks; one whose file is cut; one that leaves its folder.
    question, chosen, rejected = texts_of(rlaif_v[0])
    (folder / "mmpr/images/again.jpg").write_bytes(as_bytes(rlaif_v[0]["images"][0], "JPEG", quality=90))
    lines.append({"image": "again.jpg", "question": f"{question} ", "chosen": chosen, "rejected": rejected.upper()})
    (folder / "mmpr/images/cut.png").write_bytes(as_bytes(pairs[0]["images"][0])[:150])
    lines.append({"image": "cut.png", "question": question, "chosen": chosen, "rejected": rejected})
    lines.append({"image": "../../secret.png", "question": question, "chosen": chosen, "rejected": rejected})
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "mmpr/annotations/digits.jsonl").write_text(text)
    entry = {"root": "images", "annotation": "annotations/digits.jsonl", "data_augment": False, "repeat_time": 1}
    # With the comma that the public samples end in.
    (folder / "mmpr/meta.json").write_text(f'{{"digits": {json.dumps(entry | {"length": len(lines)})},\n}}')

    one = [pair for pair in pairs if len(pair["images"]) == 1]
    lines, rows = [], []
    for i, pair in enumerate(one):
        question, chosen, rejected = texts_of(pair)
        turned = [pair["images"][0].rotate(angle, expand=True) for angle in (180, 90)]
        (folder / f"mm_rlhf/{i}.png").write_bytes(as_bytes(turned[0]))
        line = {"id": f"mm_{i}", "prompt": f"Upside down: {question}", "chosen": chosen, "rejected": rejected}
        lines.append(line | ({"image": f"{i}.png"} if i else {"video": "video/clip"}))
        (folder / f"mm_rlhf/video/clip/{i}.png").write_bytes(as_bytes(pair["images"][0]))
        (folder / f"povid/images/{i}.png").write_bytes(as_bytes(turned[1]))
        answers = [{"from": "llava", "value": text} for text in (chosen, rejected)]
        row = {"id": f"povid_{i}", "image": f"images/{i}.png", "preference": 1 + i % 2}
        row |= {"conversations": [{"from": "human", "value": f"<image>\nOn its side: {question}"}]}
        rows.append(row | {"output_1": answers[i % 2], "output_2": answers[1 - i % 2]})
    # One row preferred the other way round.
    rows.append({**rows[0], "id": "povid_reverse", "preference": 2})
    (folder / "mm_rlhf/dpo_pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "povid/preference.json").write_text(json.dumps(rows))


def write_benchmark(folder: Path, pair: dict):
    """A benchmark in VL-RewardBench's schema: row 3 of RLAIF-V by its id, and the image of another of its rows."""
    (folder / "benchmark/images").mkdir(parents=True, exist_ok=True)
    question, chosen, rejected = texts_of(pair)
    pair["images"][0].save(folder / "benchmark/images/RLAIF-V-9000.png")
    rows = [
        {"id": "RLAIF-V-3", "query": "Is it there?", "response": ["Yes.", "No."], "image": "images/none.png"},
        {"id": "RLAIF-V-9000", "query": question, "response": [chosen, rejected]}
        | {"image": "images/RLAIF-V-9000.png"},
    ]
    text = "".join(json.dumps(row | {"human_ranking": [0, 1]}) + "\n" for row in rows)
    (folder / "benchmark/vl_rewardbench.jsonl").write_text(text)


def build_public_sets(folder: Path, seed: int = 0, n: int = 40):
    """Write all sets, of about `n` rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    pairs = corrupted_pairs(compose("preference", seed), 12 * n, seed)
    one = [pair for pair in pairs if len(pair["images"]) == 1]
    two = [pair for pair in pairs if len(pair["images"]) == 2]
    text = corrupted_pairs(compose_text(seed), 2 * n, seed)
    parts = iter(one)
    take = lambda: list(itertools.islice(parts, n))  # noqa: E731
    rlaif_v = take()
    sets = {
        "rlaif_v": [rlaif_v_row(i, pair) for i, pair in enumerate([*rlaif_v, rlaif_v[1]])],  # one of them twice
        "llava_critic": [llava_critic_row(i, pair) for i, pair in enumerate(take())],
        "trl_format": [trl_row(i, pair) for i, pair in enumerate([*take()[: n // 2], *two[: n // 2]])],
        "vlfeedback": [vlfeedback_row(i, pair) for i, pair in enumerate(take()[: n // 2])],
        "skywork_preference": [skywork_row(i, pair) for i, pair in enumerate(text[:n])],
    }
    for name, rows in sets.items():
        Dataset.from_list(rows, FEATURES[name]).to_parquet(str(folder / f"{name}.parquet"))
    write_files(folder, [*take()[: n // 2], *two[n // 2 : n], *text[n : n + n // 4]], rlaif_v)
    write_benchmark(folder, rlaif_v[5])


def main():
    """Write the sets that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/tiny/public_sets"), help="The sets are written here."
    )
    parser.add_argument("--seed", type=int, default=0, help="It decides which questions are composed.")
    args = parser.parse_args()
    build_public_sets(args.output_dir, args.seed)
    print(f"{args.output_dir}: preference sets in public schemas, and a benchmark")


if __name__ == "__main__":
    main()
