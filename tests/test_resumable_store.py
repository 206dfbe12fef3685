"""Work on disk as it is done: the same bytes after any number of stops and processes, and never another model's."""

import itertools
import os
import random
import signal
import time
from types import SimpleNamespace

import pytest
from datasets import Dataset, Features, List, Value

from vl_reward import RewardScorer, share_prefixes
from vl_reward.inference import resumable_store
from vl_reward.inference.fingerprints import row_key
from vl_reward.inference.resumable_store import ResumableStore


ROWS = [{"prompt": f"question {i}", "images": []} for i in range(10)]


def open_store(folder, rank=0, world=1, rows=ROWS, fingerprint="f", shard_size=3, run=None, **options):
    """The store as process `rank` of `world` opens it. Processes of one launch have the same `run`."""
    store = ResumableStore(folder, fingerprint, rows, shard_size, **options)
    store.state = SimpleNamespace(process_index=rank, num_processes=world, is_main_process=rank == 0)
    store.run = run or store.run
    return store


def answer(store, stop_after=None):
    """Answer what is pending, with responses that name the prompt. Returns the shards' numbers."""
    numbers = []
    for number, rows in store.pending():
        if len(numbers) == stop_after:
            break
        responses = [[f"{row['prompt']}: a", "\u2028b\n"] for row in rows]
        store.write(number, responses=responses, finish_reasons=[["stop", "length"]] * len(rows))
        numbers.append(number)
    return numbers


def contents(store):
    """All that is in the store's folder, hidden files too."""
    return {path.name: path.read_bytes() for path in store.folder.iterdir()}


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(resumable_store, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(resumable_store, "POLL_SECONDS", 0.01)


def test_one_process_equals_two_and_any_number_of_stops(tmp_path):
    one = open_store(tmp_path / "one")
    assert answer(one) == [0, 1, 2, 3]
    results = list(one.read())
    assert [row["responses"] for row in results] == [[f"{row['prompt']}: a", "\u2028b\n"] for row in ROWS]
    assert [row["finish_reasons"] for row in results] == [["stop", "length"]] * 10
    features = Features({"responses": List(Value("string")), "finish_reasons": List(Value("string"))})
    mapped = Dataset.from_json(one.files(), features=features, cache_dir=str(tmp_path / "cache"))
    assert mapped[:] == {key: [row[key] for row in results] for key in features}

    two = open_store(tmp_path / "two", 1, 2)
    assert answer(two, stop_after=2) == [1, 3]
    with pytest.raises(ValueError, match="2 of 4 shards are not there, the first is 000000-"):
        two.read()
    assert answer(open_store(tmp_path / "two", 0, 2)) == [0, 2]
    assert contents(two) == contents(one)

    stopped = [answer(open_store(tmp_path / "stopped", rank, 2), stop_after=1) for rank in (0, 1, 0, 1, 0)]
    assert stopped == [[0], [1], [2], [3], []]
    assert contents(open_store(tmp_path / "stopped")) == contents(one)


def test_who_is_done_takes_what_others_have_not_begun_from_the_end(tmp_path):
    """Processes 0 and 1 of 3 share 9 shards; process 2 is slow and has begun its first only."""
    rows = [{"prompt": str(i), "images": []} for i in range(9)]
    stores = [open_store(tmp_path, rank, 3, rows, shard_size=1, run="same") for rank in range(3)]
    slow = stores[2].pending()
    assert next(slow)[0] == 2

    first, second, order = stores[0].pending(), stores[1].pending(), []
    for process, store in itertools.islice(itertools.cycle([(first, stores[0]), (second, stores[1])]), 8):
        number, shard = next(process)
        store.write(number, value=[row["prompt"] for row in shard])
        order.append(number)
    assert order == [0, 1, 3, 4, 6, 7, 8, 5]  # their own, then the slow one's, from the end

    stores[2].write(2, value=["2"])
    assert [list(process) for process in (slow, first, second)] == [[], [], []]
    assert [row["value"] for row in stores[0].read()] == [str(i) for i in range(9)]
    assert all(name.endswith(".jsonl") for name in contents(stores[0]))


def test_what_a_dead_process_had_begun_is_taken_over(tmp_path, impatient):
    dead = open_store(tmp_path, 1, 2, run="same")
    assert next(dead.pending())[0] == 1
    assert answer(open_store(tmp_path, 0, 2, run="same")) == [0, 2, 3, 1]


def test_processes_in_step_have_as_many_shards_each(tmp_path):
    """The last shard is done by several where they run out, and all write the same bytes."""
    answer(open_store(tmp_path, rows=ROWS, shard_size=2), stop_after=2)
    stores = [open_store(tmp_path, rank, 2, shard_size=2, in_step=True) for rank in range(2)]
    rounds = [list(store._pending_in_step()) for store in stores]
    assert rounds == [[2, 4], [3, 4]]


def test_a_row_that_is_left_out_or_mended_changes_its_own_shard_alone(tmp_path):
    whole = open_store(tmp_path)
    answer(whole)
    before = contents(whole)
    places = [0, 1, 2, 3, 5, 9]  # without the fifth row, and without the third shard
    some = open_store(tmp_path, rows=[ROWS[i] for i in places], places=places)
    assert answer(some) == [1] and before.items() <= contents(some).items()
    assert [row["responses"][0] for row in some.read()] == [f"question {i}: a" for i in places]
    assert answer(open_store(tmp_path)) == [] and len(contents(whole)) == 5


def test_another_model_prompt_or_image_is_done_anew(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")

    def path(fingerprint="f", prompts=("p", "q"), images=("a.png",)):
        images = [str(tmp_path / name) for name in images]
        rows = [{"prompt": prompt, "images": images} for prompt in prompts]
        return open_store(tmp_path / "samples", rows=rows, fingerprint=fingerprint).path(0)

    paths = [path(), path("g"), path(prompts=("p", "r")), path(prompts=("q", "p")), path(images=("b.png",))]
    assert len(set(paths)) == 5 and path() == paths[0]


def test_the_key_changes_with_all_that_decides_a_result(image_pairs, tmp_path):
    image, other = image_pairs[0]["images"][0], image_pairs[1]["images"][0]
    image.save(tmp_path / "a.png")
    other.save(tmp_path / "b.png")
    (tmp_path / "c.png").write_bytes((tmp_path / "a.png").read_bytes())

    def key(fingerprint="f", prompt="p", responses=("r", "s"), images=(str(tmp_path / "a.png"),)):
        return row_key(fingerprint, {"prompt": prompt, "responses": list(responses), "images": list(images)})

    same = [key(), key(images=[str(tmp_path / "c.png")])]
    same += [key(images=[{"bytes": (tmp_path / "a.png").read_bytes(), "path": None}])]
    same += [key(prompt=[{"role": "user", "content": "p"}])]
    assert len(set(same)) == 1
    different = [key("g"), key(prompt="q"), key(responses=("s", "r")), key(responses=("rs",)), key(images=[])]
    different += [key(images=[str(tmp_path / "b.png")]), key(images=[image]), key(images=[other])]
    assert len({key(), *different}) == len(different) + 1


def test_a_torn_file_is_not_taken_for_a_shard(tmp_path):
    store = open_store(tmp_path, shard_size=5)
    answer(store)
    whole = contents(store)
    for name in whole:  # as a kill leaves it: not yet renamed
        (store.folder / name).rename(store.folder / f".killed.{name[:6]}.0.partial")
        (store.folder / f".killed.{name[:6]}.0.partial").write_bytes(whole[name][:40])
    assert answer(open_store(tmp_path, shard_size=5)) == [0, 1]
    assert contents(store) == whole


def test_a_full_disk_stops_with_a_clear_message_and_loses_nothing(tmp_path, monkeypatch):
    answer(open_store(tmp_path, shard_size=5), stop_after=1)
    # /dev/full is a disk without a free byte.
    monkeypatch.setattr(resumable_store, "open", lambda path, *args, **kwargs: open("/dev/full", *args), raising=False)
    with pytest.raises(OSError, match="No space left on device. The shards before are kept"):
        answer(open_store(tmp_path, shard_size=5))
    monkeypatch.undo()
    assert answer(open_store(tmp_path, shard_size=5)) == [1]


def test_fifty_kills_of_one_to_three_processes_give_the_bytes_of_one_clean_run(tmp_path):
    rows = [{"prompt": f"question {i}", "images": []} for i in range(2000)]
    clean = open_store(tmp_path / "clean", rows=rows, shard_size=2)
    answer(clean)
    rng, killed = random.Random(0), 0
    for attempt in range(50):
        children = []
        for rank in range(world := 1 + attempt % 3):
            if (child := os.fork()) == 0:
                store = open_store(tmp_path / "killed", rank, world, rows, shard_size=2, run=f"run {attempt}")
                for number, shard in store.pending():
                    time.sleep(0.004)
                    responses = [[f"{row['prompt']}: a", "\u2028b\n"] for row in shard]
                    store.write(number, responses=responses, finish_reasons=[["stop", "length"]] * len(shard))
                os._exit(0)
            children.append(child)
        time.sleep(rng.uniform(0.005, 0.06))
        for child in children:
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
    done = len(list(open_store(tmp_path / "killed", rows=rows, shard_size=2).folder.glob("*.jsonl")))
    assert killed >= 60 and done > 50
    last = open_store(tmp_path / "killed", rows=rows, shard_size=2)
    answer(last)
    assert contents(last) == contents(clean) and len(contents(clean)) == 1000


@pytest.fixture
def scorer(reward_model, processor):
    return RewardScorer(share_prefixes(reward_model), processor, max_batch_tokens=200)


def test_scores_do_not_depend_on_who_makes_them(scorer, mixed_pairs, tmp_path):
    pairs = [*mixed_pairs[:9], mixed_pairs[1], mixed_pairs[4]]  # two rows are there twice, in other shards
    rows = [
        {"prompt": row["prompt"], "images": row["images"]}
        | {"responses": [row[side][0]["content"] for side in ("chosen", "rejected")]}
        for row in pairs
    ]

    def score(folder, rank=0, world=1, stop_after=None):
        store, calls = open_store(folder, rank, world, rows, scorer.fingerprint()), []
        for number, shard in store.pending():
            if len(calls) == stop_after:
                break
            store.write(number, scores=scorer.score_candidates(shard))
            calls.append(number)
        return store, calls

    alone, calls = score(tmp_path / "one")
    scores = [row["scores"] for row in alone.read()]
    assert calls == [0, 1, 2, 3] and [len(row) for row in scores] == [2] * 11
    assert len({score for row in scores[:9] for score in row}) == 18
    assert scores[9:] == [pytest.approx(scores[1], abs=1e-5), pytest.approx(scores[4], abs=1e-5)]
    assert score(tmp_path / "two", 1, 2, stop_after=2)[1] == [1, 3]
    assert score(tmp_path / "two", 0, 2)[1] == [0, 2]
    assert score(tmp_path / "two")[1] == []  # what is written is not scored again
    for stop_after, world in ((1, 1), (1, 2), (1, 3)):
        score(tmp_path / "stopped", world - 1, world, stop_after)
    assert contents(score(tmp_path / "stopped")[0]) == contents(score(tmp_path / "two")[0]) == contents(alone)


def test_equal_responses_are_scored_once_and_empty_ones_not_at_all(scorer, image_pairs):
    row = {key: image_pairs[0][key] for key in ("prompt", "images")}
    (scores,) = scorer.score_candidates([row | {"responses": ["9", "", "8", "9", " "]}])
    assert scores == [scores[0], None, scores[2], scores[0], None] and scores[0] != scores[2]
    assert scorer.score_candidates([row | {"responses": [""]}]) == [[None]]
    assert [scores[0], scores[2]] == scorer([row["prompt"]] * 2, ["9", "8"], [row["images"]] * 2)


def test_the_fingerprint_changes_with_the_model(scorer):
    fingerprint = scorer.fingerprint()
    assert scorer.fingerprint() == fingerprint

    def changed(change, undo):
        change()
        other = scorer.fingerprint()
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
