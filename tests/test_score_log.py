"""Scores written down as they are made: the same bytes after any number of stops and processes."""

import itertools
import json
from pathlib import Path

import pytest

from vl_reward import RewardScorer, share_prefixes
from vl_reward.inference.fingerprints import row_key
from vl_reward.inference.score_log import ResumableScorer, ScoreLog


@pytest.fixture
def scorer(reward_model, processor):
    return RewardScorer(share_prefixes(reward_model), processor, max_batch_tokens=200)


@pytest.fixture
def asked(mixed_pairs):
    rows = [*mixed_pairs[:9], mixed_pairs[1], mixed_pairs[4]]  # two rows are there twice, in other chunks
    responses = [[row[side][0]["content"] for side in ("chosen", "rejected")] for row in rows]
    return [row["prompt"] for row in rows], responses, [row["images"] for row in rows]


def test_one_process_equals_two_and_any_number_of_stops(scorer, asked, tmp_path):
    alone = ResumableScorer(scorer, tmp_path / "one", chunk_size=3)
    alone(*asked)
    expected = alone.merge(*asked)
    assert [len(row) for row in expected] == [2] * 11
    assert len({score for row in expected[:9] for score in row}) == 18
    assert expected[9:] == [pytest.approx(expected[1], abs=1e-5), pytest.approx(expected[4], abs=1e-5)]

    for rank in (1, 0):
        ResumableScorer(scorer, tmp_path / "two", rank, 2, chunk_size=3)(*asked)
    assert ResumableScorer(scorer, tmp_path / "two", chunk_size=3).merge(*asked) == expected
    written = [len(path.read_text().splitlines()) for path in sorted((tmp_path / "two").iterdir())]
    assert written == [6, 5]  # chunks 0 and 2, chunks 1 and 3: nothing twice

    # Stopped five times, at a byte of a line, between lines, and with another number of processes in between.
    whole = (tmp_path / "one/process_00000.jsonl").read_bytes()
    line = whole.index(b"\n") + 1
    for stops in ([0, 1, line - 1, line, 3 * line + 7], [line, 4 * line + 1, len(whole) - 1, 2 * line, line + 5]):
        folder = tmp_path / f"stopped_{stops[1]}"
        for stop, processes in zip(stops, (1, 2, 1, 3, 2), strict=True):
            for rank in range(processes):
                ResumableScorer(scorer, folder, rank, processes, chunk_size=3)(*asked)
            for path in folder.iterdir():
                path.write_bytes(path.read_bytes()[:stop])
        resumed = ResumableScorer(scorer, folder, chunk_size=3)
        resumed(*asked)
        assert resumed.merge(*asked) == expected


def test_what_is_written_is_not_scored_again(scorer, asked, tmp_path):
    first = ResumableScorer(scorer, tmp_path, chunk_size=3)
    first(*asked)
    calls = []
    again = ResumableScorer(scorer, tmp_path, chunk_size=3)
    again.scorer = lambda prompts, *others: calls.append(prompts)
    again(*asked)
    assert calls == [] and again.merge(*asked) == first.merge(*asked)


def test_a_row_without_a_score_is_not_lost(scorer, asked, tmp_path):
    ResumableScorer(scorer, tmp_path, 0, 2, chunk_size=3)(*asked)
    with pytest.raises(ValueError, match="5 of 11 rows have no score, the first is row 3"):
        ResumableScorer(scorer, tmp_path, 0, 2, chunk_size=3).merge(*asked)


def test_the_key_changes_with_all_that_decides_a_score(scorer, image_pairs, tmp_path):
    image, other = image_pairs[0]["images"][0], image_pairs[1]["images"][0]
    image.save(tmp_path / "a.png")
    other.save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())

    def key(fingerprint="f", prompt="p", responses=("r", "s"), images=(str(tmp_path / "a.png"),)):
        return row_key(fingerprint, prompt, list(responses), list(images))

    same = [key(), key(images=[str(tmp_path / "c.png")])]
    same += [key(images=[{"bytes": (tmp_path / "a.png").read_bytes(), "path": None}])]
    same += [key(prompt=[{"role": "user", "content": "p"}])]
    assert len(set(same)) == 1
    different = [key("g"), key(prompt="q"), key(responses=("s", "r")), key(responses=("rs",)), key(images=[])]
    different += [key(images=[str(tmp_path / "b.png")]), key(images=[image]), key(images=[other])]
    assert len({key(), *different}) == len(different) + 1


def test_the_fingerprint_changes_with_the_model(scorer, tmp_path):
    def reward_fingerprint(scorer):
        return ResumableScorer(scorer, tmp_path).fingerprint

    fingerprint = reward_fingerprint(scorer)
    assert reward_fingerprint(scorer) == fingerprint

    def changed(change, undo):
        change()
        other = reward_fingerprint(scorer)
        undo()
        return other

    weight = scorer.model.score.weight.data
    others = [
        changed(lambda: weight[0, 0].add_(1e-3), lambda: weight[0, 0].sub_(1e-3)),
        changed(lambda: setattr(scorer, "bias", 0.5), lambda: setattr(scorer, "bias", 0.0)),
        changed(lambda: setattr(scorer, "max_batch_tokens", 100), lambda: setattr(scorer, "max_batch_tokens", 200)),
    ]
    template = scorer.processor.chat_template
    others.append(
        changed(
            lambda: setattr(scorer.processor, "chat_template", template + " "),
            lambda: setattr(scorer.processor, "chat_template", template),
        )
    )
    assert len({fingerprint, *others}) == 5


def test_a_torn_last_line_is_dropped_and_a_torn_middle_is_named(tmp_path):
    log = ScoreLog(tmp_path)
    log.append({"a": [1.0, 2.0]})
    log.append({"b": [0.1 + 0.2]})
    text = log.path.read_text()
    for cut in range(len(text)):
        log.path.write_text(text[:cut])
        scores = ScoreLog(tmp_path).scores
        assert scores == dict(itertools.islice({"a": [1.0, 2.0], "b": [0.1 + 0.2]}.items(), text[:cut].count("\n")))
        other = ScoreLog(tmp_path)
        other.append({"c": [3.0]})
        assert ScoreLog(tmp_path).scores == scores | {"c": [3.0]}
        assert all(json.loads(line) for line in log.path.read_text().splitlines())
    log.path.write_text('{"key": \n' + text)
    with pytest.raises(ValueError, match="line 1 is not JSON. Delete the line"):
        ScoreLog(tmp_path)


def test_a_full_disk_stops_with_a_clear_message_and_loses_nothing(scorer, asked, tmp_path):
    resumable = ResumableScorer(scorer, tmp_path, chunk_size=3)
    append, written = resumable.log.append, []

    def append_until_full(scores):
        if written:  # /dev/full is a disk without a free byte
            resumable.log.path = Path("/dev/full")
        append(scores)
        written.append(scores)

    resumable.log.append = append_until_full
    with pytest.raises(OSError, match="No space left on device. What was written before is kept"):
        resumable(*asked)
    assert ScoreLog(tmp_path).scores == written[0] and len(written[0]) == 3
    again = ResumableScorer(scorer, tmp_path, chunk_size=3)
    again(*asked)
    assert len(again.merge(*asked)) == 11
