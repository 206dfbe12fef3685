"""recipes/score_responses.py: the rows of a file as they were, and their scores."""

import json
import os
import runpy
import sys

import pytest
from datasets import load_from_disk
from test_recipes import ROOT, launcher, run

from vl_reward import RewardScorer
from vl_reward.data.named_dataset import NamedDataset


RECIPE = str(ROOT / "recipes/score_responses.py")


def lines_of(path):
    """Not `splitlines`, which would cut at U+2028."""
    *lines, end = path.read_text(encoding="utf-8").split("\n")
    assert end == ""
    return lines


@pytest.fixture
def score(labelling_world, monkeypatch, tmp_path):
    """Run the recipe in this process, and give the lines that it wrote."""

    def run_main(dataset, out, *arguments):
        monkeypatch.chdir(tmp_path)
        paths = ["--model_name_or_path", str(labelling_world / "model"), "--dataset_name", str(dataset)]
        monkeypatch.setattr(sys, "argv", [RECIPE, "--config", "own.yaml", *paths, "--output_dir", str(out), *arguments])
        (tmp_path / "own.yaml").write_text("shard_size: 3\n")
        runpy.run_path(RECIPE, run_name="__main__")
        return lines_of(tmp_path / out / "scored.jsonl")

    return run_main


@pytest.fixture
def own(image_pairs, tmp_path):
    """Rows as a person has them: other fields of all types, one image or a list, one response or several."""
    rows = []
    for number, pair in enumerate(image_pairs[:8]):
        names = [f"pictures/{number}_{place}.png" for place in range(len(pair["images"]))]
        for name, image in zip(names, pair["images"], strict=True):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            image.save(tmp_path / name)
        texts = [pair[side][0]["content"] for side in ("chosen", "rejected")]
        row = {"n": [9, "neun", [1.5, None], {"a": "ä\u2028"}, True, None, 1e-7, "\\"][number]}
        row |= {"images": names} if len(names) > 1 or number % 2 else {"image": names[0]}
        row |= {"prompt": pair["prompt"][0]["content"], "id": number if number % 3 else f"row {number}"}
        rows.append(row | ({"response": texts[0]} if number == 5 else {"responses": [texts[1], "", *texts]}))
    rows.append({"prompt": "2 + 2?", "responses": []})
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return rows


def test_each_row_is_as_it_was_and_has_its_scores(score, own, labelling_world, tmp_path):
    lines, given = score("own.jsonl", "out"), lines_of(tmp_path / "own.jsonl")
    scorer = RewardScorer.from_pretrained(labelling_world / "model", dtype="float32")
    for line, before, row in zip(lines, given, own, strict=True):
        scores = json.loads(line)["scores"]
        assert line == before[:-1] + f', "scores": {json.dumps(scores)}}}'  # to the last byte
        texts = row.get("responses", [row.get("response")])
        images = row.get("images") or [row["image"]] if "image" in row or "images" in row else []
        images = [[str(tmp_path / name) for name in images]] * len(texts)
        expected = [
            scorer([row["prompt"]], [text], [shown])[0] if text else None
            for text, shown in zip(texts, images, strict=True)
        ]
        assert scores == pytest.approx(expected, abs=1e-5)
    report = json.loads((tmp_path / "out/scoring.json").read_text())
    assert (report["rows"], report["responses"], report["empty_responses"]) == (9, 7 * 4 + 1, 7)
    assert report["reward_model"] == str(labelling_world / "model") and len(report["reward_fingerprint"]) == 64


def test_a_stopped_run_goes_on_and_writes_the_same(score, own, monkeypatch, tmp_path):
    clean = score("own.jsonl", "clean")
    whole, done = RewardScorer.score_candidates, []

    def stop_at_the_third(scorer, rows):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append([row["id"] for row in rows])
        return whole(scorer, rows)

    monkeypatch.setattr(RewardScorer, "score_candidates", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        score("own.jsonl", "out")
    assert not (tmp_path / "out/scored.jsonl").exists()
    done.clear()
    assert score("own.jsonl", "out") == clean
    assert done == [["row 6", "7", "8"]]  # the third shard alone
    done.clear()
    assert score("own.jsonl", "out") == clean and done == []


def test_two_processes_write_what_one_does(own, labelling_world, tmp_path):
    (tmp_path / "own.yaml").write_text("shard_size: 2\n")
    arguments = [RECIPE, "--config=own.yaml", "--dataset_name", "own.jsonl", "--output_dir"]
    model = ["--model_name_or_path", str(labelling_world / "model")]
    run([sys.executable, *arguments, "one", *model], tmp_path)
    run([*launcher("cpu_2_processes", tmp_path), *arguments, "two", *model], tmp_path)
    written = [lines_of(tmp_path / name / "scored.jsonl") for name in ("one", "two")]
    assert written[0] == written[1] and len(written[0]) == 9


def test_a_table_becomes_rows_of_json_that_hold_their_images(score, labelling_world, tmp_path):
    load_from_disk(labelling_world / "candidates").select(range(7)).save_to_disk(tmp_path / "candidates")
    lines = [json.loads(line) for line in score("candidates", "out")]
    candidates = NamedDataset(str(tmp_path / "candidates")).split("train")
    for line, row in zip(lines, candidates, strict=True):
        kept = {key: line[key] for key in ("id", "prompt", "answer", "responses", "finish_reasons")}
        assert kept == {key: row[key] for key in kept} and line.keys() == {*kept, "images", "scores"}
        assert line["images"][0].startswith("data:image;base64,") and len(line["scores"]) == len(line["responses"])
    (tmp_path / "again.jsonl").write_text(
        "".join(json.dumps({key: line[key] for key in line if key != "scores"}) + "\n" for line in lines)
    )
    again = [json.loads(line)["scores"] for line in score("again.jsonl", "again")]
    assert again == [line["scores"] for line in lines]


def test_own_names_of_columns(score, own, tmp_path):
    clean = [json.loads(line)["scores"] for line in score("own.jsonl", "clean")]
    with open(tmp_path / "renamed.jsonl", "w") as file:
        for row in own:
            texts = row.get("responses", [row.get("response")])
            row = {"question": row["prompt"], "texts": texts, "picture": row.get("images", row.get("image"))}
            file.write(json.dumps(row) + "\n")
    mapping = '{"prompt": "question", "responses": "texts", "images": "picture"}'
    lines = [json.loads(line) for line in score("renamed.jsonl", "renamed", "--columns", mapping)]
    assert [line.pop("scores") for line in lines] == clean and lines[8].keys() == {"question", "texts", "picture"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "responses": ["a"], "scores": [1]}, "The rows have `scores`, which would be lost"),
        ({"prompt": "q", "chosen": "a"}, "The rows have prompt, chosen, id, images, and neither `responses` nor"),
        ({"id": "five", "prompt": "q", "responses": ["a", 5]}, "row five: `responses` is .*, not a list of strings"),
        ({"id": "five", "prompt": "q", "responses": "a"}, "row five: `responses` is 'a', not a list of strings"),
        ({"id": "five", "prompt": "q", "response": None}, "row five: `responses` is .None., not a list of strings"),
        ({"id": "five", "prompt": "q", "images": ["gone.png"], "response": "a"}, "row five: .*No such file"),
    ],
)
def test_what_cannot_be_scored_is_named(score, tmp_path, row, message):
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=message):
        score("rows.jsonl", "out")
    assert not os.path.exists(tmp_path / "out/scored.jsonl")
