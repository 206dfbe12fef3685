"""The comparison with others: counts at a small vocabulary, and the page that holds what the bench measured."""

import json

import ms_swift
import pytest
import torch
from peers import PAGE, Peers, draw, measure, put_between, table


@pytest.fixture(scope="module")
def peers(tmp_path_factory):
    return Peers(1000, tmp_path_factory.mktemp("peers"))


def counts(way):
    return [way[name] for name in ("decoder tokens", "vision patches", "logits")]


def distinct_tokens(texts):
    """Of responses to one prompt: letters that begin two of them are one token each, and each ends with two."""
    return len({text[: i + 1] for text in texts for i in range(len(text))}) + 2 * len(texts)


def test_a_step_of_mpo_is_that_of_trl_with_less_computed(peers):
    """`measure` compares the losses. Two pairs of 256 image tokens: a response's tokens, and its prompt's once."""
    ways = peers.mpo(2, 256, 8)
    measured = measure(ways, rounds=1, seconds=1.0)
    batch = peers.ours.data_collator([peers.ours.train_dataset[0]])
    prompt = batch["input_ids"].shape[1] - 8
    trl, ours, ahead = (counts(measured[name]) for name in ("trl", "ours", "ours, ahead"))
    assert trl == [2 * 4 * (prompt + 8), 2 * 4 * 1024, 2 * 4 * (prompt + 8 - 1) * 1000]
    # The two images differ, and so their rows part before them; the newline that ends a response is in it.
    before = next(i for i, token in enumerate(batch["input_ids"][0]) if token == peers.processor.image_token_id)
    responses = sum(distinct_tokens(draw(256, 8, number, 2)[1]) for number in (0, 1))
    assert 28 < responses <= 32
    assert ours == [2 * (before + 2 * (prompt - before) + responses), 2 * 2 * 1024, 2 * responses * 1000]
    assert ahead == [number // 2 for number in ours]


def test_scores_are_equal_with_less_computed(peers):
    with torch.no_grad():
        measured = measure(peers.score(4, 256, 8), rounds=1, seconds=1.0)
    full, no_logits, ours = (counts(measured[name]) for name in ("value head", "value head, no logits", "ours"))
    length = full[0] // 4
    assert full == [4 * length, 4 * 1024, 4 * length * 1000] and no_logits == [*full[:2], 0]
    assert ours == [length - 8 + distinct_tokens(draw(256, 8, 0, 4)[1]), 1024, 0]


def test_page_holds_what_was_measured():
    results = json.loads((PAGE.with_suffix("") / "results.json").read_text())
    page = PAGE.read_text()
    for task in ("mpo", "score"):
        assert put_between(page, task, table(results[task])) == page
    assert table(results["mpo"]).count("| ours, ahead |") == len(results["mpo"]) == 7
    assert {cell["k"] for cell in results["score"]} == {2, 8, 32}


def test_page_holds_what_was_measured_beside_ms_swift():
    cells = json.loads((PAGE.with_suffix("") / "ms_swift.json").read_text())
    page = PAGE.read_text()
    assert put_between(page, "ms-swift", ms_swift.table(cells)) == page
    for cell in cells:
        assert len({round(loss, 3) for loss in cell["first_loss"].values()}) == 1
