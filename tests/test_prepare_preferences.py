"""The recipe, copied out with its YAML: what it keeps, its account, the same bytes again, also after a kill."""

import hashlib
import json
import os
import runpy
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from datasets import Image as ImageColumn
from datasets import List, load_from_disk
from PIL import Image
from test_images import BLUE, EXIF, GREEN, RED, WHITE, corners, encoded, png_header, quarters
from test_recipes import ENVIRONMENT, ROOT, run, run_recipe

from vl_reward.curation import OutputFolder
from vl_reward.data.images import load_image


OUT = "outputs/tiny/prepare_preferences"


@pytest.fixture
def run_here(folder, monkeypatch):
    """Run the recipe in this process: to start another takes most of a run's time."""

    def run_main(*arguments, place=folder):
        monkeypatch.chdir(place)
        monkeypatch.setattr(sys, "argv", ["prepare_preferences.py", *arguments])
        runpy.run_path(str(ROOT / "recipes/prepare_preferences.py"), run_name="__main__")

    return run_main


def contents(path):
    """A hash of each file under a folder."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return {str(file.relative_to(path)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the sets and the processor that the tiny config reads."""
    folder = tmp_path_factory.mktemp("prepare")
    run([sys.executable, "-m", "vl_reward.tiny.public_sets"], folder)
    shutil.copytree(ROOT / "src/vl_reward/tiny/checkpoints/base", folder / "outputs/tiny/base")
    return folder


@pytest.fixture(scope="module")
def prepared(folder):
    return run_recipe("prepare_preferences", folder)


def test_what_was_planted_is_found(folder, prepared):
    audit = json.loads((folder / OUT / "audit.json").read_text())
    steps = {step["step"]: step["sources"] for step in audit["steps"]}
    assert audit["sources"]["llava_critic"]["skipped"] == {"tie": 5}
    assert audit["sources"]["vlfeedback"]["skipped"] == {"a rating is not a number": 60, "tie": 20}
    assert sum(steps["images"]["mmpr"]["dropped"].values()) == 2
    assert steps["duplicates"]["rlaif_v"]["dropped"] == {"equal to a pair of rlaif_v": 1}
    assert steps["near-duplicates"]["mmpr"]["dropped"] == {"nearly equal to a pair of rlaif_v": 1}
    reverse = "the same responses are preferred the other way round"
    assert steps["contradictions"]["povid"]["dropped"] == {reverse: 2}
    assert steps["decontamination: vl_rewardbench"]["rlaif_v"]["dropped"] == {
        "vl_rewardbench holds this row of the set by its id": 1,
        "vl_rewardbench holds this image": 1,
    }
    assert steps["mixture"]["skywork"]["out"] == 30
    quarantine = [json.loads(line) for line in open(folder / OUT / "quarantine.jsonl")]
    assert sorted((row["source"], row["image"]) for row in quarantine) == [
        ("mmpr", "../../secret.png"),
        ("mmpr", "outputs/tiny/public_sets/mmpr/images/cut.png"),
    ]


def test_nothing_leaves_without_a_line(folder, prepared):
    audit = json.loads((folder / OUT / "audit.json").read_text())
    datasets = load_from_disk(folder / OUT / "preferences")
    n_pairs = sum(source["pairs"] for source in audit["sources"].values())
    dropped = [json.loads(line) for line in open(folder / OUT / "dropped.jsonl")]
    n_kept = sum(map(len, datasets.values()))
    assert n_pairs == n_kept + len(dropped) and audit["steps"][-1]["out"] == n_kept
    assert f"{n_kept} of {n_pairs} pairs saved" in prepared
    ids = [id for dataset in datasets.values() for id in dataset["id"]]
    assert len(set(ids)) == n_kept and not {row["id"] for row in dropped if row["step"] == "decontamination"} & set(ids)
    for step in audit["steps"]:
        assert step["in"] - step["out"] == sum(row["step"] == step["step"] for row in dropped)
        assert step["in"] == step["out"] or step["examples"]


def test_rows_are_in_the_preference_format_and_train_and_test_share_no_image(folder, prepared):
    datasets = load_from_disk(folder / OUT / "preferences")
    assert datasets["train"].column_names == ["id", "source", "prompt", "images", "chosen", "rejected"]
    pixels = {}
    for split, dataset in datasets.items():
        pixels[split] = {image.tobytes() for row in dataset for image in row["images"]}
        for row in dataset:
            parts = [part for message in row["prompt"] for part in message["content"]]
            assert sum(part["type"] == "image" for part in parts) == len(row["images"])
            assert row["chosen"][-1]["role"] == row["rejected"][-1]["role"] == "assistant"
    assert len(datasets["test"]) > 0 and pixels["train"].isdisjoint(pixels["test"])


def test_the_card_and_the_report_name_sources_licences_and_thresholds(folder, prepared):
    card, report = ((folder / OUT / name).read_text() for name in ("README.md", "audit.md"))
    for text in ("CC BY-NC 4.0", "Apache-2.0", "rlaif_v.parquet", '"min_rating_margin": 0.1', '"datasketch": "'):
        assert text in card
    assert "| images | mmpr | " in report and "## Examples" in report


def test_same_yaml_same_bytes(folder, prepared, tmp_path, run_here):
    before = contents(folder / OUT)
    run_recipe("prepare_preferences", folder)
    assert contents(folder / OUT) == before
    run_here("--seed", "7", "--output_dir", str(tmp_path / "other"))
    other = contents(tmp_path / "other")
    assert other.keys() == before.keys() and other["preferences/train/data-00000-of-00001.arrow"] not in before.values()


@pytest.mark.parametrize("moment", ["work", "work/inspected.arrow", "preferences/train", "audit.json"])
def test_killed_and_run_again(folder, prepared, moment, run_here):
    """Killed as soon as a file of that step is there. The former result stays until the new one is whole."""
    before = contents(folder / OUT)
    process = subprocess.Popen(
        [sys.executable, "prepare_preferences.py"],
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    partial = folder / f"{OUT}.partial"
    deadline = time.monotonic() + 120
    while not (partial / moment).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and partial.exists()
    assert contents(folder / OUT) == before
    run_here()
    assert contents(folder / OUT) == before and not partial.exists()


def test_killed_while_the_result_is_put_in_place(folder, prepared, run_here):
    """The former result is aside already, and the new one not yet in place."""
    before = contents(folder / OUT)
    former, partial = folder / f"{OUT}.former", folder / f"{OUT}.partial"
    shutil.copytree(folder / OUT, partial)
    os.replace(folder / OUT, former)
    run_here()
    assert contents(folder / OUT) == before and not partial.exists() and not former.exists()


def good_files(zoo):
    """Files that decode, each with its four corners."""
    plain = [RED, GREEN, BLUE, WHITE]
    expected = dict.fromkeys(("plain.png", "palette.gif", "bitmap.bmp", "right.jpg", "no_suffix", "inner.png"), plain)
    for name in ("plain.png", "palette.gif", "bitmap.bmp"):
        quarters().save(zoo / name)
    for name in ("right.jpg", "no_suffix"):
        (zoo / name).write_bytes(encoded(quarters(), "PNG"))
    (zoo / "inner.png").symlink_to(zoo / "plain.png")
    for orientation, expected[f"exif_{orientation}.png"] in EXIF.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        quarters().save(zoo / f"exif_{orientation}.png", exif=exif)
    alpha = Image.new("RGBA", (8, 8), (*RED, 0))
    alpha.paste((*BLUE, 255), (0, 0, 4, 8))
    alpha.save(zoo / "alpha.png")
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(zoo / "print.tiff")
    Image.fromarray(np.full((8, 8), 0xFFFF, np.uint16)).save(zoo / "deep.png")
    frames = [Image.new("RGB", (8, 8), colour) for colour in (GREEN, BLUE)]
    frames[0].save(zoo / "moving.gif", save_all=True, append_images=frames[1:])
    Image.new("RGB", (2, 400), RED).save(zoo / "strip.png")
    expected |= {"alpha.png": [BLUE, WHITE] * 2, "print.tiff": [RED] * 4, "deep.png": [WHITE] * 4}
    return expected | {"moving.gif": [GREEN] * 4, "strip.png": [RED] * 4}


def bad_files(zoo, outside):
    """Files, and paths to none, that are refused, each with a part of the reason."""
    data = encoded(quarters(), "PNG")
    files = {
        "empty.png": (b"", "cannot identify 0 bytes"),
        "text.png": (b"hello", "cannot identify"),
        "drawing.svg": (b"<svg/>", "cannot identify"),
        "cut.png": (data[:-30], "could not be decoded"),
        "cut.jpg": (encoded(Image.effect_noise((64, 64), 90), "JPEG")[:900], "truncated"),
        "bomb.png": (png_header(60_000, 60_000), "decompression bomb"),
        "large.png": (png_header(10_000, 10_000), "10000 x 10000 pixels"),
        "thread.png": (encoded(Image.new("RGB", (1, 201)), "PNG"), "1 x 201 pixels: one side is over 200 times"),
    }
    for name, (content, _) in files.items():
        (zoo / name).write_bytes(content)
    quarters().save(outside)
    (zoo / "link.png").symlink_to(outside)
    os.mkfifo(zoo / "pipe.png")
    expected = {name: reason for name, (_, reason) in files.items()}
    expected |= dict.fromkeys(("link.png", f"../{outside.name}", str(outside)), "leads out of the image root")
    expected |= dict.fromkeys(("https://example.org/a.png", "file:///etc/hostname"), "is a URL")
    expected |= dict.fromkeys((".", ""), "is the image root itself")
    return expected | {"pipe.png": "not a regular file", "none.png": "No such file", "a\0b.png": "null"}


def test_a_zoo_of_images_stops_nothing_and_none_is_lost(folder, tmp_path):
    """Every file is either in the set, with the right pixels, or in quarantine with the reason, and in the audit."""
    (zoo := tmp_path / "zoo").mkdir()
    good, bad = good_files(zoo), bad_files(zoo, tmp_path / "secret.png")
    assert len(good) + len(bad) == 37
    lines = [
        {"id": name, "prompt": f"What is in {i}?", "chosen": "Four colours.", "rejected": "A cat.", "images": [name]}
        for i, name in enumerate([*good, *bad])
    ]
    (zoo / "own.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    source = {"name": "zoo", "format": "trl_format", "path": str(zoo / "own.jsonl")}
    config = {"sources": [source], "test_fraction": 0.0}
    (tmp_path / "zoo.yaml").write_text(yaml.safe_dump({**config, "output_dir": str(tmp_path / "out")}))
    run_recipe("prepare_preferences", folder, "--config", str(tmp_path / "zoo.yaml"))
    kept = load_from_disk(tmp_path / "out/preferences")["train"].cast_column("images", List(ImageColumn(decode=False)))
    names = {f"What is in {i}?": name for i, name in enumerate(good)}
    images = {names[row["prompt"][0]["content"][-1]["text"]]: load_image(row["images"][0]) for row in kept}
    assert images.keys() == good.keys()
    for name, expected in good.items():
        distance = np.abs(np.array(corners(images[name])) - expected).max()
        assert distance == 0, name
    reasons = {row["origin"]: row["reason"] for row in map(json.loads, open(tmp_path / "out/quarantine.jsonl"))}
    assert reasons.keys() == bad.keys()
    for name, reason in bad.items():
        assert reason in reasons[name], name
    audit = json.loads((tmp_path / "out/audit.json").read_text())
    (step,) = (step for step in audit["steps"] if step["step"] == "images")
    assert (step["in"], step["out"]) == (37, len(good)) and sum(step["sources"]["zoo"]["dropped"].values()) == len(bad)


def test_surrogate_scores_take_a_second_round(folder, prepared, tmp_path, run_here):
    """The scored set again, less what the surrogate doubts; that is listed with its texts."""
    datasets = load_from_disk(folder / OUT / "preferences")
    ids = [id for dataset in datasets.values() for id in dataset["id"]]
    scores = {id: [float(i % 5), 1.5] for i, id in enumerate(ids)}
    lines = [json.dumps({"id": id, "scores": pair}) for id, pair in scores.items()]
    (tmp_path / "scores.jsonl").write_text("\n".join(lines))
    arguments = ["--scores_file", str(tmp_path / "scores.jsonl"), "--min_score_margin", "1.0"]
    run_here(*arguments, "--output_dir", str(tmp_path / "second"))
    repair = [json.loads(line) for line in open(tmp_path / "second/repair.jsonl")]
    assert {row["id"] for row in repair} == {id for id, (chosen, _) in scores.items() if chosen < 2.5}
    assert all(row["prompt"] and row["chosen"] and row["score_rejected"] == 1.5 for row in repair)
    second = load_from_disk(tmp_path / "second/preferences")
    kept = {row["id"]: row["score_chosen"] for dataset in second.values() for row in dataset.remove_columns("images")}
    assert set(kept) <= {id for id, (chosen, _) in scores.items() if chosen > 2.5} and len(kept) > len(ids) / 4
    assert all(score == scores[id][0] for id, score in kept.items())


def test_wrong_entries_stop_the_run(folder, tmp_path, run_here):
    settings = yaml.safe_load((ROOT / "recipes/configs/tiny/prepare_preferences.yaml").read_text())
    settings["sources"][0]["max_piars"] = 3
    (tmp_path / "typo.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match="max_piars"):
        run_here("--config", str(tmp_path / "typo.yaml"))


def test_files_of_others_are_not_replaced(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/my_notes.txt").write_text("dear")
    with pytest.raises(ValueError, match=r"holds \['my_notes.txt'\], which the result would replace"):
        OutputFolder(str(tmp_path / "out"))


def test_missing_sets_name_the_command(tmp_path, run_here):
    shutil.copytree(ROOT / "src/vl_reward/tiny/checkpoints/base", tmp_path / "outputs/tiny/base")
    with pytest.raises(FileNotFoundError, match=r"python -m vl_reward\.tiny\.public_sets"):
        run_here(place=tmp_path)


def test_stage_1_trains_on_it(folder, prepared):
    run_recipe("reward_stage1", folder, "--max_steps", "1", "--dataset_name", f"{OUT}/preferences")
    metrics = json.loads((folder / "outputs/tiny/reward_stage1/eval_results.json").read_text())
    test = load_from_disk(folder / OUT / "preferences")["test"]
    assert metrics["eval_n_pairs"] == sum(len(images) > 0 for images in test["images"])
