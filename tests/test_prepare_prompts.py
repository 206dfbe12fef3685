"""recipes/prepare_prompts.py: what becomes a prompt, what is left out and why, and who shares an image with whom."""

import hashlib
import json
import os
import runpy
import sys
import time

import pytest
import yaml
from datasets import Dataset, load_from_disk
from PIL import Image
from test_recipes import ROOT, run, run_recipe

from vl_reward.data.images import load_image
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.tiny.preferences import PROMPT_FEATURES, as_png


RECIPE = str(ROOT / "recipes/prepare_prompts.py")


@pytest.fixture
def prepare(tmp_path, monkeypatch):
    """Run the recipe in this process with a YAML of its own, and give the splits and the report."""

    def run_main(*sources, **settings):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "own.yaml").write_text(yaml.safe_dump({"sources": list(sources), "output_dir": "out"} | settings))
        monkeypatch.setattr(sys, "argv", [RECIPE, "--config", "own.yaml"])
        runpy.run_path(RECIPE, run_name="__main__")
        prompts = NamedDataset("out/prompts")
        return prompts.splits, json.loads((tmp_path / "out/prompts.json").read_text())

    return run_main


@pytest.fixture
def draw(tmp_path):
    def draw_one(name, *colors):
        """A picture of four squares, which no other list of colours gives."""
        image = Image.new("RGB", (64, 64), colors[0])
        for number, color in enumerate(colors[1:]):
            image.paste(color, (32 * (number % 2), 32 * (number // 2), 32 * (number % 2) + 32, 32 * (number // 2) + 32))
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(tmp_path / name)
        return name

    return draw_one


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"name": path.stem, "format": "prompts", "path": str(path)}


def rows_of(splits):
    return [row for split in splits.values() for row in split]


def text_of(row):
    return "".join(part["text"] or "" for part in row["prompt"][-1]["content"])


def lines_of(path):
    return [json.loads(line) for line in open(path, encoding="utf-8")]


def test_own_rows_keep_text_images_and_answers_of_all_types(prepare, draw, tmp_path):
    draw("a.png", "red")
    answers = [9, "nine", ["9", 9.5], True, None, 0, "", [], [None], float("nan")]
    rows = [{"n": i, "q": f"Question {i}?", "right": answer} for i, answer in enumerate(answers)]
    rows[1] |= {"picture": "a.png", "q": "Here <image> is it?"}
    rows[2] |= {"picture": ["a.png", "a.png"]}
    rows[3]["q"] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Is it?"}]
    columns = {"prompt": "q", "images": "picture", "answer": "right", "id": "n"}
    splits, report = prepare(write_lines(tmp_path / "own.jsonl", rows) | {"columns": columns}, test_fraction=0.0)
    assert list(splits) == ["train"] and splits["train"].column_names == ["id", "prompt", "images", "answer"]
    assert (report["train"], report["test"], report["rows"]) == (10, 0, {"own": 10})
    by_text = {text_of(row): row for row in splits["train"]}
    read = [by_text[text]["answer"] for text in ("Question 0?", "Here  is it?", "Question 2?", "Is it?")]
    assert read == [9, "nine", ["9", 9.5], True] and read[3] is True
    assert [by_text[f"Question {i}?"]["answer"] for i in range(4, 10)] == [None, 0, None, None, None, None]
    kinds = [
        [part["type"] for part in by_text[text]["prompt"][-1]["content"]] for text in ("Here  is it?", "Question 2?")
    ]
    assert kinds == [["text", "image", "text"], ["image", "image", "text"]]
    assert [message["role"] for message in by_text["Is it?"]["prompt"]] == ["system", "user"]
    images = by_text["Question 2?"]["images"]
    assert len(images) == 2 and load_image(images[1]).getpixel((0, 0)) == (255, 0, 0)
    os.remove(tmp_path / "a.png")  # the set holds its images
    assert load_from_disk("out/prompts")["train"].filter(lambda row: row["images"])[0]["images"][0].size == (64, 64)


def test_ids_are_of_content(prepare, draw, tmp_path):
    draw("a.png", "red")
    draw("b.png", "blue")
    rows = [{"prompt": "q", "images": [name]} for name in ("a.png", "b.png")] + [{"prompt": "q"}, {"prompt": "r"}]
    first = {row["id"] for row in rows_of(prepare(write_lines(tmp_path / "one.jsonl", rows))[0])}
    assert len(first) == 4 and all(len(id) == 16 for id in first)
    turned = [row | {"id": f"other {number}", "answer": number} for number, row in enumerate(rows[::-1])]
    assert {row["id"] for row in rows_of(prepare(write_lines(tmp_path / "two.jsonl", turned))[0])} == first
    parts = [{"type": "image"}, {"type": "text", "text": "q"}]
    other = [{"prompt": [{"role": "user", "content": parts}], "images": ["a.png"]}]
    (row,) = rows_of(prepare(write_lines(tmp_path / "three.jsonl", other), test_fraction=0.0)[0])
    assert row["id"] in first


def test_mathvista(prepare, draw, tmp_path):
    """Invented rows in its schema, as `testmini.json` and as a table with the image inside."""
    row = {"choices": None, "unit": None, "precision": None, "question_type": "free_form", "metadata": {"a": 1}}
    rows = {
        "1": row | {"question": "How long is it?", "unit": "cm", "answer": "4.5", "precision": 1},
        "2": row | {"question": "Which is it?", "choices": ["2°", "3°", "4°"], "answer": "3°"},
        "3": row | {"question": "Which point is it?", "choices": ["B", "A"], "answer": "A"},
        "4": row | {"question": "Which one?", "choices": ["x", "x"], "answer": "x"},
    }
    for pid, one in rows.items():
        one |= {"pid": pid, "image": draw(f"images/{pid}.png", f"#{pid}{pid}0000")}
    (tmp_path / "testmini.json").write_text(json.dumps(rows))
    source = {"name": "mathvista", "format": "mathvista", "path": "testmini.json"}
    splits, report = prepare(source, max_refused=0.3, test_fraction=0.0)
    expected = {
        "How long is it? (Unit: cm)": ["4.5"],
        "Which is it?\nChoices:\n(A) 2°\n(B) 3°\n(C) 4°": ["B", "3°"],
        "Which point is it?\nChoices:\n(A) B\n(B) A": ["B"],
    }
    read = {text_of(row): row["answer"] for row in splits["train"]}
    assert {text: answer if isinstance(answer, list) else [answer] for text, answer in read.items()} == expected
    assert all(len(row["images"]) == 1 for row in splits["train"])
    reason = "the answer is none of the choices, or several"
    assert lines_of(tmp_path / "out/refused.jsonl") == [
        {"source": "mathvista", "id": "4", "reason": reason, "image": None}
    ]
    assert report["steps"]["bad rows"]["left_out"] == {reason: 1}
    table = [
        one | {"decoded_image": {"bytes": (tmp_path / one["image"]).read_bytes(), "path": None}}
        for one in rows.values()
    ]
    table = Dataset.from_list(
        [{key: one[key] for key in one if key != "metadata"} | {"image": "none.jpg"} for one in table]
    )
    table.to_parquet(str(tmp_path / "testmini.parquet"))
    from_table, _ = prepare(source | {"path": "testmini.parquet"}, max_refused=0.3, test_fraction=0.0)
    assert {text_of(row): row["id"] for row in from_table["train"]} == {
        text_of(row): row["id"] for row in splits["train"]
    }


def test_mmpr_and_the_prompts_of_preferences(prepare, draw, tmp_path):
    sides = {"chosen": "good", "rejected": "bad"}
    lines = [
        {"question": "Text?", "answer_gt": "A"} | sides,
        {"question": "One?", "image": draw("images/1.png", "red"), "answer_gt": "12"} | sides,
        {"question": "Two?", "image": ["1.png", "2.png"], "answer_gt": "yes"} | sides,
        {"question": "Clip?", "video": "a.mp4", "answer_gt": "yes"} | sides,
    ]
    lines[1]["image"] = "1.png"
    draw("images/2.png", "blue")
    (tmp_path / "annotations.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "meta.json").write_text('{"a": {"root": "images", "annotation": "annotations.jsonl"},\n}')
    pairs = [{"prompt": f"Pair {i}?", "images": ["images/1.png"] * (i % 2)} | sides for i in range(4)]
    pairs += [{"prompt": "Equal?", "chosen": "a", "rejected": None}, pairs[0] | {"rejected": "worse"}]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    mmpr = {"name": "mmpr", "format": "mmpr", "path": "meta.json"}
    preferences = {"name": "pairs", "format": "trl_format", "path": "pairs.jsonl"}
    splits, report = prepare(mmpr, preferences, test_fraction=0.0)
    read = {text_of(row): (row["answer"], len(row["images"])) for row in splits["train"]}
    expected = {"Text?": ("A", 0), "One?": ("12", 1), "Two?": ("yes", 2)}
    assert read == expected | {f"Pair {i}?": (None, i % 2) for i in range(4)}
    assert report["rows"] == {"mmpr": 4, "pairs": 6} and report["steps"]["bad rows"]["left_out"] == {}
    assert report["steps"]["rows without a prompt"]["left_out"] == {
        "it is about a video": 1,
        "it holds no pair: the rejected response is missing": 1,
    }
    assert report["steps"]["duplicates"]["left_out"] == {"equal to a prompt of pairs": 1}
    splits, report = prepare(mmpr, preferences, test_fraction=0.0, answers_only=True)
    assert {text_of(row) for row in splits["train"]} == set(expected)
    assert report["steps"]["answers"] | {"examples": 0} == {
        "in": 8,
        "out": 3,
        "left_out": {"it has no answer": 5},
        "examples": 0,
    }


def test_equal_prompts_stay_once_and_none_where_their_answers_differ(prepare, draw, tmp_path):
    draw("a.png", "red")
    draw("again.bmp", "red")
    rows = [
        {"prompt": "Same?", "images": ["a.png"]},
        {"prompt": "same? ", "images": ["again.bmp"], "answer": "Yes"},
        {"prompt": "Same?", "images": ["a.png"], "answer": ["yes", "y"]},
        {"prompt": "Same?"},
        {"prompt": "Split?", "answer": 3},
        {"prompt": "Split?", "answer": "4"},
        {"prompt": "Split?"},
        *({"prompt": "Nine?", "answer": answer} for answer in ("9", 9, 9.0, ["9", "nine"])),
    ]
    splits, report = prepare(write_lines(tmp_path / "own.jsonl", rows), test_fraction=0.0)
    assert sorted((len(row["images"]), row["answer"]) for row in splits["train"] if row["images"]) == [(1, "Yes")]
    texts = {text_of(row): row["answer"] for row in splits["train"] if not row["images"]}
    assert texts == {"Same?": None, "Nine?": "9"}
    assert report["steps"]["duplicates"]["left_out"] == {
        "the same prompt has different answers": 3,
        "equal to a prompt of own": 5,
    }


def test_no_image_is_on_both_sides_of_the_split(prepare, draw, tmp_path):
    """Prompts hold 0 to 2 images of 30, in chains; text prompts have no image to share."""
    names = [draw(f"{i}.png", f"#{i:02d}0000", f"#00{i:02d}00") for i in range(30)]
    rows = [{"prompt": f"{i}?", "images": [names[i % 30]]} for i in range(90)]
    rows += [{"prompt": f"both {i}?", "images": [names[i], names[i + 1]]} for i in range(0, 30, 3)]
    rows += [{"prompt": f"text {i}?"} for i in range(40)]
    splits, report = prepare(write_lines(tmp_path / "own.jsonl", rows), test_fraction=0.3)
    shown = {name: {load_image(i).tobytes() for row in rows["images"] for i in row} for name, rows in splits.items()}
    assert len(shown["train"] | shown["test"]) == 30 and not shown["train"] & shown["test"] and shown["test"]
    assert report["train"] + report["test"] == len(rows) == 140 and 20 < report["test"] < 65
    together = [{text_of(row) for row in rows} for rows in splits.values()]
    for i in range(0, 30, 3):
        chain = {f"both {i}?", *(f"{i + k}?" for k in (0, 1, 30, 31, 60, 61))}
        assert chain <= together[0] or chain <= together[1]


def test_what_a_benchmark_holds_is_left_out(prepare, draw, tmp_path):
    pictures = [draw(f"{i}.png", "white", *colors) for i, colors in enumerate((["red"], ["blue"] * 3, ["green"] * 2))]
    with Image.open(tmp_path / "0.png") as image:
        image.resize((96, 96)).save(tmp_path / "larger.jpg", quality=85)
    rows = [
        {"prompt": "Compressed?", "images": [pictures[0]]},
        {"prompt": "Equal?", "images": [pictures[1]]},
        {"prompt": "Tested?", "images": [pictures[2]]},  # its picture is another
        {"prompt": "  TESTED text?"},
        {"prompt": "Fourth?"},
    ]
    benchmark = [
        {"id": "a", "query": "q", "response": ["x", "y"], "image": "larger.jpg"},
        {"id": "b", "query": "Tested?", "response": ["x", "y"], "image": "1.png"},
        {"id": "c", "query": "Tested text?", "response": ["x", "y"]},
        {"id": "OWN-4", "query": "q", "response": ["x", "y"], "image": "gone.png"},
    ]
    write_lines(tmp_path / "benchmark.jsonl", benchmark)
    source = write_lines(tmp_path / "own.jsonl", rows) | {"benchmark_id_prefix": "OWN-"}
    splits, report = prepare(source, benchmarks=[{"name": "bench", "path": "benchmark.jsonl"}], test_fraction=0.0)
    assert [text_of(row) for row in splits["train"]] == ["Tested?"]
    step = report["steps"]["decontamination: bench"]
    assert step["left_out"] == {
        "bench holds a similar image": 1,
        "bench holds this image": 1,
        "bench holds this prompt": 1,
        "bench holds this row of the set by its id": 1,
    }
    assert (step["in"], step["out"], step["benchmark_images_not_read"]) == (5, 1, 1)


BAD = {
    "no prompt": ({"answer": 1}, "the row has no prompt"),
    "empty": ({"prompt": " "}, "the prompt is empty"),
    "a number": ({"prompt": 5}, "neither a string nor a list of messages with `role` and `content`"),
    "video": ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, "Number of videos provided (0)"),
    "role": ({"prompt": [{"role": 7, "content": "q"}]}, "a message has the role 7"),
    "marks": ({"prompt": "<image> <image>", "images": ["a.png"]}, "Number of images provided"),
    "null": ({"prompt": "q", "images": [None]}, "an image is null"),
    "gone": ({"prompt": "q", "images": ["gone.png"]}, "image: could not be decoded"),
    "outside": ({"prompt": "q", "images": ["../secret.png"]}, "image: leads out of the image root"),
    "url": ({"prompt": "q", "images": ["http://x/a.png"]}, "image: is a URL"),
    "no path": ({"prompt": "q", "images": [5]}, "image: it is neither bytes nor a path"),
    "half path": ({"prompt": "q", "images": ["\ud83d.png"]}, r"image: '\ud83d.png' is not a path"),
    "half text": ({"prompt": "\ud83d"}, "a text holds half a character"),
    "half answer": ({"prompt": "q", "answer": ["\ud83d"]}, "a text holds half a character"),
    "answer": ({"prompt": "q", "answer": {"value": 9}}, "the answer is no text, number, boolean, or list of those"),
}


def test_a_bad_row_ends_no_run_and_many_do(prepare, draw, tmp_path):
    draw("a.png", "red")
    rows = [row | {"id": name} for name, (row, _) in BAD.items()]
    rows += [{"id": "half \ud83d", "prompt": "q", "images": [5]}]
    good = [{"prompt": f"{i}?"} for i in range(60)]
    source = write_lines(tmp_path / "own.jsonl", rows + good)
    with open(tmp_path / "own.jsonl", "a") as file:
        file.write('{"prompt": \n[1]\n')
    message = "18 of 78 rows are bad, and `max_refused` is 0.2. Most: 3 own: a text holds half a .*See refused.jsonl: m"
    with pytest.raises(ValueError, match=message):
        prepare(source, max_refused=0.2)
    assert len(lines_of(tmp_path / "out/refused.jsonl")) == 18 and not (tmp_path / "out/prompts").exists()
    splits, report = prepare(source, max_refused=0.25)
    assert {text_of(row) for row in rows_of(splits)} == {row["prompt"] for row in good}
    refused = lines_of(tmp_path / "out/refused.jsonl")
    assert sum(report["steps"]["bad rows"]["left_out"].values()) == len(refused) == 18
    assert [row["id"] for row in refused] == [*BAD, "half ?", "row 76", "row 77"]
    for row, (_, reason) in zip(refused, BAD.values(), strict=False):
        assert row["reason"].startswith(reason), row
    assert [row["reason"][:20] for row in refused[-2:]] == ["the line is not JSON", "not in the set's sch"]
    assert {row["id"]: row["image"] for row in refused if row["image"]}["gone"] == "gone.png"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"nam": "a"}, r"sources: own has the keys \['nam'\]; there are name, format, path"),
        ({"weight": 0.5}, r"sources: own has the keys \['weight'\]"),
        ({"format": "mathverse"}, "sources: own has the format mathverse; there are llava_critic, mathvista, "),
        ({"columns": {"promt": "q"}}, "sources: own has columns {'promt': 'q'}. They are for the format `prompts`"),
        ({"columns": {"prompt": "q"}, "format": "mmpr"}, "They are for the format `prompts`"),
        ({"columns": {"images": "image_path"}}, "sources: own: `columns` names image_path, and no row has it"),
        ({"max_rows": "3"}, "sources: own has max_rows '3', a str"),
    ],
)
def test_an_entry_that_cannot_be_meant_is_refused(prepare, tmp_path, entry, message):
    source = write_lines(tmp_path / "own.jsonl", [{"prompt": "q"}])
    with pytest.raises(ValueError, match=message):
        prepare(source | entry)


def test_settings_that_leave_nothing_are_said(prepare, tmp_path):
    source = write_lines(tmp_path / "own.jsonl", [{"prompt": "q"}])
    with pytest.raises(ValueError, match="No prompt is left to train on: .*it has no answer"):
        prepare(source, answers_only=True)
    with pytest.raises(ValueError, match=r"sources: they are called \[\]. Give at least one"):
        prepare()
    with pytest.raises(ValueError, match=r"they are called \['own', 'own'\]"):
        prepare(source, source)
    with pytest.raises(FileNotFoundError, match="sources: own: gone.jsonl does not exist"):
        prepare(source | {"path": "gone.jsonl"})
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(ValueError, match="sources: own: empty.jsonl is empty. Write it again"):
        prepare(source | {"path": "empty.jsonl"})
    (tmp_path / "out/prompts").mkdir(parents=True)
    with pytest.raises(ValueError, match="out/prompts is not from this recipe, and would be replaced. Move it."):
        prepare(source)


def test_max_rows_and_a_saved_set_with_splits(prepare, image_pairs, tmp_path):
    rows = [{"id": row["id"], "prompt": row["prompt"], "images": row["images"], "answer": "1"} for row in image_pairs]
    Dataset.from_list(as_png(rows), PROMPT_FEATURES).save_to_disk(tmp_path / "saved")
    source = {"name": "saved", "format": "prompts", "path": "saved", "max_rows": 5}
    splits, report = prepare(source, test_fraction=0.0)
    assert report["rows"] == {"saved": 5}
    expected = {(row["prompt"][0]["content"], load_image(row["images"][0]).tobytes()) for row in rows[:5]}
    assert {(text_of(row), load_image(row["images"][0]).tobytes()) for row in splits["train"]} == expected
    again, report = prepare({"name": "again", "format": "prompts", "path": "out/prompts", "split": "train"})
    assert report["rows"] == {"again": len(expected)}


def contents(path):
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def test_the_recipe_alone_writes_the_same_bytes_again(tmp_path):
    """Copied with its YAML into an empty folder, with the sets that the embedded world draws."""
    run([sys.executable, "-m", "vl_reward.tiny.public_sets"], tmp_path)
    said = run_recipe("prepare_prompts", tmp_path)
    assert said.startswith("No --config given: running prepare_prompts.yaml, on the embedded digits world. ")
    out = tmp_path / "outputs/tiny/prepare_prompts"
    report, first = json.loads((out / "prompts.json").read_text()), contents(out)
    assert report["rows"] == {"mmpr": 53, "rlaif_v": 41, "vlfeedback": 20}
    assert {name: (step["in"], step["out"]) for name, step in report["steps"].items()} == {
        "bad rows": (114, 112),
        "rows without a prompt": (112, 112),
        "duplicates": (112, 110),
        "decontamination: vl_rewardbench": (110, 108),
    }
    assert report["train"] + report["test"] == 108 and report["test"] > 0
    time.sleep(1)  # another second, should one be written
    run_recipe("prepare_prompts", tmp_path, "--num_proc", "2")
    assert contents(out) == first and not (out / ".partial").exists()
