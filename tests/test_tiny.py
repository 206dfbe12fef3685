"""The embedded world: its splits, its questions, its pairs, and the models kept in the repo."""

import itertools
import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoModelForImageTextToText, AutoProcessor

import vl_reward.tiny
from vl_reward import ResponseSampler, SamplingParameters
from vl_reward.data.images import load_image
from vl_reward.labelling.verifiers import exact, final_answer
from vl_reward.tiny.digits import QUESTIONS, compose, compose_text, load_scans, respond, solve
from vl_reward.tiny.preferences import as_png, corrupt, corrupted_pairs, shuffle_questions
from vl_reward.tiny.processor import build_processor


CHECKPOINTS = Path(vl_reward.tiny.__file__).parent / "checkpoints"


def test_splits_share_no_image():
    splits = {name: np.concatenate(list(load_scans(name).values())) for name in ("sft", "preference", "test")}
    assert {name: len(scans) for name, scans in splits.items()} == {"sft": 900, "preference": 450, "test": 447}
    # Few scans of different people may be equal; the split itself is a permutation.
    hashes = {name: {scan.tobytes() for scan in scans} for name, scans in splits.items()}
    assert not hashes["sft"] & hashes["test"] and not hashes["preference"] & hashes["test"]


@pytest.mark.parametrize(
    ("kind", "answer"),
    [("sum", "11"), ("difference", "5"), ("larger", "8"), ("smaller", "3"), ("first", "3"), ("second", "8")]
    + [("equal", "no"), ("more", "no")],
)
def test_solve(kind, answer):
    assert solve(kind, 3, 8) == answer
    assert solve("equal", 3, 3) == "yes" and solve("more", 8, 3) == "yes"


def test_answers_of_the_digits_world_are_verified_exactly():
    assert final_answer("I see 4 and 5. Answer: 9") == "9" and exact("I see 4 and 5. Answer: 9", "9")
    assert final_answer("I see 4 and 5. Answer: 9\n") == "9" and exact("I see 4 and 5. Answer: 9\n", "9")
    assert final_answer("I see 4 and 5.") is None and not exact("I see 4 and 5.", "9")
    assert final_answer("Answer: 9 or 10") == "9 or 10" and not exact("Answer: 9 or 10", "9")
    assert not exact("I see 4 and 5. Answer: 19", "9") and not exact("I see 4 and 5. Answer:", "")


def test_questions_are_reproducible_and_seeds_differ():
    def first(split, seed):
        row = next(compose(split, seed))
        return row["question"], [image.tobytes() for image in row["images"]]

    assert first("test", 1) == first("test", 1)
    assert len({str(first(split, seed)) for split in ("sft", "test") for seed in range(3)}) == 6


def test_images_have_one_of_two_layouts():
    rows = list(itertools.islice(compose("test", 0), 400))
    layouts = Counter(tuple(image.size for image in row["images"]) for row in rows)
    assert layouts.keys() == {((112, 56),), ((56, 56), (56, 56))}
    assert min(layouts.values()) > 150
    assert Counter(row["kind"] for row in rows).keys() == QUESTIONS.keys()


@pytest.mark.parametrize("hard", [False, True])
def test_corruptions_are_wrong_in_the_way_they_say(hard):
    rng = random.Random(0)
    for row in itertools.islice(compose("test", 0), 500):
        error, response = corrupt(row, rng, hard)
        correct = respond(row["first"], row["second"], row["answer"])
        assert response != correct
        if error == "misread":
            first, second = int(response[6]), int(response[12])
            assert (first == row["first"]) != (second == row["second"])
            assert final_answer(response) == solve(row["kind"], first, second)
        elif error == "wrong_answer":
            assert response.startswith(correct.split("Answer")[0]) and final_answer(response) != row["answer"]
        else:
            assert final_answer(response) is None


def test_misread_pairs_cannot_be_told_apart_by_their_text():
    """The best guess from the text alone, learnt on one half and tested on the other, stays near one half."""
    pairs = [pair for pair in corrupted_pairs(compose("test", 0), 8000, 0) if pair["source"] == "image/misread"]

    def texts(pair):
        return [pair["prompt"][0]["content"] + pair[side][0]["content"] for side in ("chosen", "rejected")]

    wins, games = Counter(), Counter()
    for pair in pairs[::2]:
        chosen, rejected = texts(pair)
        wins[chosen] += 1
        games.update((chosen, rejected))
    rates = {text: (wins[text] + 1) / (games[text] + 2) for text in games}
    guesses = [rates.get(chosen, 0.5) - rates.get(rejected, 0.5) for chosen, rejected in map(texts, pairs[1::2])]
    assert abs(np.mean([(guess > 0) + 0.5 * (guess == 0) for guess in guesses]) - 0.5) < 0.04


def test_hard_corruptions_are_slips_more_often():
    def shares(hard):
        rng, near, errors = random.Random(0), 0, Counter()
        for row in itertools.islice(compose("test", 0), 4000):
            error, response = corrupt(row, rng, hard)
            errors[error] += 1
            if error == "wrong_answer" and row["kind"] == "sum":
                near += abs(int(final_answer(response)) - int(row["answer"])) <= 2
        return errors["wrong_answer"] / errors.total(), near / errors["wrong_answer"]

    easy, hard = shares(False), shares(True)
    assert hard[0] > easy[0] + 0.1 and hard[1] > 1.3 * easy[1]


def test_the_pairs_of_a_question_differ_and_stay_together():
    pairs = corrupted_pairs(compose("preference", 0), 60, 0, per_question=4)
    shuffled = shuffle_questions(pairs, 0)
    assert sorted(pair["id"] for pair in shuffled) == sorted(pair["id"] for pair in pairs)
    assert shuffled != pairs

    def runs(pairs):
        return [len(list(group)) for _, group in itertools.groupby(pairs, key=lambda pair: id(pair["images"]))]

    assert sorted(runs(shuffled)) == sorted(runs(pairs))
    assert len(runs(pairs)) == 60 and max(runs(pairs)) == 4
    assert len({pair["id"] for pair in pairs}) == len(pairs) > 3 * 60


def test_images_are_stored_losslessly_and_once():
    pairs = corrupted_pairs(compose("preference", 0), 5, 0, per_question=3)
    for pair, stored in zip(pairs, as_png(pairs), strict=True):
        assert [load_image(image).tobytes() for image in stored["images"]] == [im.tobytes() for im in pair["images"]]
        assert {**stored, "images": None} == {**pair, "images": None}


def test_tokenizer_round_trips(processor):
    for row in itertools.islice(compose_text(3), 50):
        text = f"{row['question']} {respond(row['first'], row['second'], row['answer'])}"
        assert processor.tokenizer.decode(processor.tokenizer(text).input_ids) == text
    odd = "Straße 漢字 🙂 <|im_start|>\n\tx"
    assert processor.tokenizer.decode(processor.tokenizer(odd).input_ids) == odd


@pytest.mark.parametrize("family", [".", "qwen3_vl"])
def test_kept_processor_is_the_one_the_code_builds(family):
    built = build_processor(family if family != "." else "qwen2_5_vl")
    for name in ("base", "policy"):
        kept = AutoProcessor.from_pretrained(CHECKPOINTS / family / name)
        assert type(kept) is type(built) and kept.tokenizer.vocab == built.tokenizer.vocab
        assert kept.chat_template == built.chat_template
        assert kept.image_processor.to_dict() == built.image_processor.to_dict()


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [("base", 0.9, 1.0), ("policy", 0.55, 0.75), ("qwen3_vl/base", 0.9, 1.0), ("qwen3_vl/policy", 0.55, 0.75)],
)
def test_kept_models_are_as_strong_as_they_say(name, low, high):
    claimed = json.loads((CHECKPOINTS / name / "accuracy.json").read_text())
    assert low <= claimed["greedy_accuracy"] <= high and claimed["n"] == 1500
    model = AutoModelForImageTextToText.from_pretrained(CHECKPOINTS / name, dtype="float32")
    greedy = SamplingParameters(max_new_tokens=24, temperature=0.0, batch_size=128)
    sampler = ResponseSampler(model, AutoProcessor.from_pretrained(CHECKPOINTS / name), greedy)
    rows = list(itertools.islice(compose("test", seed=1), 300))
    responses, _ = sampler([row["question"] for row in rows], [row["images"] for row in rows])
    accuracy = np.mean([exact(samples[0], row["answer"]) for samples, row in zip(responses, rows, strict=True)])
    assert accuracy == pytest.approx(claimed["greedy_accuracy"], abs=0.07)  # 300 of the 1,500 rows
