"""Sets too large to be read by each process, or copied: each image is read by one, and all know what it has to say."""

import json
import sys
from types import SimpleNamespace

import pytest
from datasets import Dataset, Image, List, Value, concatenate_datasets
from launches import launcher
from PIL.PngImagePlugin import PngImageFile
from test_recipes import run

from vl_reward.data import splits
from vl_reward.tiny.preferences import PREFERENCE_FEATURES, as_png


# All that a training asks of a set before its first step: what is held out of it, which rows have images, which can be
# trained on, and what a reference says of them. Each process notes whose images it reads.
SCRIPT = """
import hashlib, json, sys
from collections import defaultdict
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import AutoProcessor
from vl_reward.data import named_dataset
from vl_reward.data.named_dataset import NamedDataset
from vl_reward.inference import fingerprints
from vl_reward.preflight import row_checks, usable_rows
from vl_reward.preflight.training_rows import TrainingPreflight
from vl_reward.training.reference_log_probs import ReferenceLogProbs

data, model, out = sys.argv[1:]
accelerator, usable_rows.CHECKED_AT_A_TIME = Accelerator(cpu=True), 3
read, stage = defaultdict(list), ""


def note(module, name, images_of):
    compute = getattr(module, name)

    def noted(*args):
        read[f"{stage} {name}"] += [hashlib.sha256(image["bytes"]).hexdigest() for image in images_of(*args)]
        return compute(*args)

    setattr(module, name, noted)


note(named_dataset, "contents_of", lambda row: row["images"])
note(named_dataset, "has_images", lambda row: row["images"])
note(fingerprints, "image_digest", lambda image: [image])
note(row_checks, "load_images", lambda name, images: images)

stage = "splits"
dataset = NamedDataset(data)
dataset.keep_image_rows()
splits = dataset.train_and_test("train", "test")
known = {"split": [split["id"][:] for split in splits]}
stage = "preflight"
check = row_checks.PairCheck(AutoProcessor.from_pretrained(model), 512)
train, test = TrainingPreflight(out)(check, train=splits[0], eval=splits[1])
stage = "reference"
reference = ReferenceLogProbs(Path(out, "reference"), "f", accelerator)
lengths = lambda batch: [torch.tensor([len(row[side][0]["content"]) * 1.0 for row in batch]) for side in SIDES]
SIDES = ("chosen", "rejected")
train = reference(train, lambda rows: rows, lengths, 1)
known["log-probabilities"] = [train["id"][:], train["ref_chosen_logps"][:], train["ref_rejected_logps"][:]]
Path(out, f"{accelerator.process_index}.json").write_text(json.dumps([read, known]))
accelerator.wait_for_everyone()
"""


@pytest.fixture
def data(image_pairs, text_pairs, tmp_path):
    """40 rows without a test split, with image bytes of their own in 32."""
    rows = as_png([*image_pairs, *image_pairs[:8], *text_pairs])
    for number, row in enumerate(rows):
        row["id"] = str(number)
        for image in row["images"]:
            image["bytes"] += bytes([number])  # behind the end of the file
    rows = [rows[i] for i in (*range(0, 40, 3), *range(1, 40, 3), *range(2, 40, 3))]
    dataset = Dataset.from_list(rows, PREFERENCE_FEATURES)
    dataset.save_to_disk(tmp_path / "pairs")
    return tmp_path / "pairs"


def test_each_image_is_read_by_one_of_two_processes_and_both_know_what_one_would(data, policy_path, tmp_path):
    (tmp_path / "script.py").write_text(SCRIPT)
    told, files = {}, sorted(data.iterdir())
    for name, command in (("one", [sys.executable]), ("two", launcher("cpu_2_processes", tmp_path))):
        run([*command, str(tmp_path / "script.py"), str(data), str(policy_path), str(tmp_path / name)], tmp_path)
        told[name] = [json.loads(path.read_text()) for path in sorted((tmp_path / name).glob("?.json"))]
    assert sorted(data.iterdir()) == files, "the set was copied"
    ((read, known),) = told["one"]
    assert [both for _, both in told["two"]] == [known, known]
    rows = Dataset.load_from_disk(data).cast_column("images", List(Image(decode=False)))
    n_images = sum(len(row["images"]) for row in rows)
    held_out = sum(len(row["images"]) for row in rows if row["id"] in known["split"][1])
    assert n_images > 40 and held_out > 0 and sum(map(len, known["split"])) == 32
    assert {kind: len(keys) for kind, keys in read.items()} == {
        "splits contents_of": n_images,
        "splits has_images": n_images,
        "preflight image_digest": n_images,
        "preflight load_images": n_images,
        "reference image_digest": n_images - held_out,
    }
    for kind, keys in read.items():
        shares = [other.get(kind, []) for other, _ in told["two"]]
        assert sorted(shares[0] + shares[1]) == sorted(keys), kind
        if kind != "preflight load_images":  # whoever is done takes what the other has not begun
            assert max(map(len, shares)) < 0.7 * len(keys), kind


@pytest.mark.parametrize(("n", "world"), [(7, 3), (2, 5), (8, 4), (0, 2)])
def test_shares_follow_each_other_and_cover_all(n, world, monkeypatch):
    monkeypatch.setattr(splits, "gather_object", lambda share: share)
    shares = []
    for rank in range(world):
        state = SimpleNamespace(process_index=rank, num_processes=world, is_main_process=False)
        monkeypatch.setattr(splits, "PartialState", lambda state=state: state)
        shares.append(splits.in_shares(lambda i: i * i, n, "Squares"))
    assert sum(shares, []) == [i * i for i in range(n)]
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_images_come_as_they_are_stored_or_decoded_without_a_copy_of_the_set(data, tmp_path):
    rows = Dataset.load_from_disk(data).select(range(0, 40, 2))  # with a table of numbers, as what was held out of it
    before = {path.name: path.stat().st_size for path in data.iterdir()}
    stored = splits.with_images(rows, decode=False)
    again = splits.with_images(stored, decode=True)
    assert {path.name: path.stat().st_size for path in data.iterdir()} == before
    assert stored.features["images"] == List(Image(decode=False)) and splits.with_images(stored, decode=False) is stored
    assert rows.features["images"] == again.features["images"] == List(Image())
    assert len({rows._fingerprint, stored._fingerprint, again._fingerprint}) == 3
    beside = Dataset.from_dict({"number": range(20)})
    concatenate_datasets([stored, beside], axis=1).save_to_disk(tmp_path / "beside")
    kept = [stored, Dataset.load_from_disk(tmp_path / "beside").remove_columns("number"), stored.filter(bool)]
    expected = rows.cast_column("images", List(Image(decode=False)))
    assert {path.name for path in data.iterdir()} > {*before}, "`cast_column` copies no longer: call it again"
    for other in kept:
        assert other.features == expected.features and list(other) == list(expected)
    assert isinstance(again[0]["images"][0], PngImageFile) and again[0]["images"] == rows[0]["images"]
    paths = Dataset.from_dict({"images": [["a.png"]]})
    assert splits.with_images(paths, decode=False)["images"][:] == [[{"bytes": None, "path": "a.png"}]]


def test_numbers_stand_beside_their_rows_without_a_copy_of_the_set(data):
    rows, files = Dataset.load_from_disk(data), {*data.iterdir()}
    selections = [rows, rows.select([5, 3, 38]), rows.select([5, 3, 38, 0]).select([3, 1]), rows.select(range(7, 20))]
    numbers = [[i / 3 for i in range(len(some))] for some in selections]
    given = [splits.with_numbers(some, n=values) for some, values in zip(selections, numbers, strict=True)]
    assert {*data.iterdir()} == files
    for some, values, more in zip(selections, numbers, given, strict=True):
        expected = some.add_column("n", values, feature=Value("float64"))
        assert more.features == expected.features and list(more) == list(expected)
        other = splits.with_numbers(some, n=values[::-1])
        assert len({more._fingerprint, some._fingerprint, other._fingerprint}) == 3
    assert {*data.iterdir()} > files, "`add_column` copies no longer: call it again"
