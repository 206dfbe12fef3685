"""Samples on disk: the same after any number of stops and processes, and never another policy's."""

import shutil
from pathlib import Path

import pytest

from vl_reward.inference.sample_shards import SampleShards


PROMPTS = [f"question {i}" for i in range(10)]
IMAGES = [[] for _ in PROMPTS]


def sample(shards, process_index=0, num_processes=1, stop_after=None):
    """Answer what is pending, with responses that name the prompt. Returns the shards' numbers."""
    numbers = []
    for number, prompts, images in shards.pending(process_index, num_processes):
        if len(numbers) == stop_after:
            break
        assert len(images) == len(prompts)
        shards.write(number, [[f"{prompt}: a", "\u2028b\n"] for prompt in prompts], [["stop", "length"]] * len(prompts))
        numbers.append(number)
    return numbers


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def test_one_process_equals_two_and_any_number_of_stops(tmp_path):
    one = SampleShards(tmp_path / "one", "f", PROMPTS, IMAGES, shard_size=3)
    assert sample(one) == [0, 1, 2, 3]
    samples = one.read()
    assert samples["responses"][:] == [[f"{prompt}: a", "\u2028b\n"] for prompt in PROMPTS]
    assert samples["finish_reasons"][:] == [["stop", "length"]] * 10

    two = SampleShards(tmp_path / "two", "f", PROMPTS, IMAGES, shard_size=3)
    assert sample(two, 1, 2) == [1, 3]
    with pytest.raises(ValueError, match="2 of 4 shards are not there, the first is 000000-"):
        two.read()
    assert sample(two, 0, 2) == [0, 2]
    assert contents(tmp_path / "two") == contents(tmp_path / "one")

    stopped = [
        sample(SampleShards(tmp_path / "stopped", "f", PROMPTS, IMAGES, shard_size=3), rank, 2, stop_after=1)
        for rank in (0, 1, 0, 1, 0)
    ]
    assert stopped == [[0], [1], [2], [3], []]
    assert contents(tmp_path / "stopped") == contents(tmp_path / "one")


def test_another_policy_prompt_or_image_is_sampled_anew(tmp_path):
    (tmp_path / "a.png").write_bytes(b"a")
    (tmp_path / "b.png").write_bytes(b"b")

    def path(fingerprint="f", prompts=("p", "q"), images=("a.png",)):
        images = [[str(tmp_path / name) for name in images]] * len(prompts)
        return SampleShards(tmp_path / "samples", fingerprint, list(prompts), images).path(0)

    paths = [path(), path("g"), path(prompts=("p", "r")), path(prompts=("q", "p")), path(images=("b.png",))]
    assert len(set(paths)) == 5 and path() == paths[0]


def test_a_torn_file_is_not_taken_for_a_shard(tmp_path):
    shards = SampleShards(tmp_path, "f", PROMPTS, IMAGES, shard_size=5)
    sample(shards)
    whole = contents(tmp_path)
    for name in whole:  # as a kill leaves it: not yet renamed
        shutil.move(tmp_path / name, tmp_path / name.replace(".jsonl", ".123.partial"))
        (tmp_path / name.replace(".jsonl", ".123.partial")).write_bytes(whole[name][:40])
    again = SampleShards(tmp_path, "f", PROMPTS, IMAGES, shard_size=5)
    assert sample(again) == [0, 1]
    assert {name: data for name, data in contents(tmp_path).items() if name in whole} == whole


def test_a_full_disk_stops_with_a_clear_message(tmp_path, monkeypatch):
    shards = SampleShards(tmp_path, "f", PROMPTS, IMAGES, shard_size=5)
    sample(shards, stop_after=1)
    monkeypatch.setattr(Path, "with_suffix", lambda path, suffix: Path("/dev/full"))
    with pytest.raises(OSError, match="No space left on device. The shards before are kept"):
        sample(shards)
    monkeypatch.undo()
    assert sample(SampleShards(tmp_path, "f", PROMPTS, IMAGES, shard_size=5)) == [1]
