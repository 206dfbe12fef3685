"""docs/video.md: its commands run, and its table is that of the kept files. The study behind it, at its smallest."""

import json
import re
import sys

import pytest
import video_costs
from launches import ROOT
from rehearsal import Rehearsal
from test_docs import commands_of, run
from video_files import frames, write_video
from video_study import main, table

from vl_reward.data.images import load_image
from vl_reward.tiny.video_digits import as_videos, compose_videos, order_pairs


PAGE = ROOT / "docs/video.md"


def test_the_commands_of_the_page_run(tmp_path):
    (tmp_path / "recipes").symlink_to(ROOT / "recipes")
    (tmp_path / "frames").mkdir()
    write_video(tmp_path / "clip.mp4", frames(12), 8)
    for number, picture in enumerate(frames(2), 1):
        picture.save(tmp_path / f"frames/{number}.png")
    run(commands_of("docs/video.md"), tmp_path)
    (python,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    (tmp_path / "score.py").write_text(python + "assert scores[0] != scores[1], scores\n")
    run("python score.py", tmp_path)
    told = [
        json.loads(line)
        for name in ("train", "eval")
        for line in open(tmp_path / f"outputs/videos/videos_{name}.jsonl")
    ]
    assert sorted(row["videos"][0]["frames"] for row in told) == [2, 2, 2, 4]


def test_the_table_of_the_page_is_that_of_the_kept_files():
    results = [json.loads((ROOT / f"docs/video/seed_{seed}.json").read_text()) for seed in (0, 1, 2)]
    page = PAGE.read_text()
    assert table(results) in page
    assert all(result["n"] == 1000 and result["steps"] * result["batch_size"] == 9600 for result in results)
    for reading in ("videos", "images"):
        minutes = sum(result[reading]["cpu_minutes"] for result in results) / 3
        assert f"{minutes:.1f}" in page.split("<!-- end of study -->")[1]
        for result in results:
            assert result[reading]["in_order"] >= 0.85 and result[reading]["shuffled"] <= 0.58


def test_the_costs_of_the_page_are_those_of_the_kept_file():
    costs = json.loads((ROOT / "docs/video/costs.json").read_text())
    assert video_costs.fill(PAGE.read_text()) == PAGE.read_text()
    assert [row["visual_tokens"] for row in costs["estimated"]] == [1280, 768, 1536, 3072, 6144]
    assert video_costs.estimate(8)["gib"] == pytest.approx(costs["estimated"][1]["gib"], rel=0.02)
    for row in costs["measured"]:
        assert row["estimated"] == pytest.approx(row["measured"], rel=0.12)


def test_a_row_with_a_video_is_measured_as_the_page_says(tmp_path):
    rehearsal = Rehearsal("7b", tmp_path, "float32", 1280, narrower=8)
    rehearsal.write()
    row = video_costs.measure(rehearsal, 2)
    assert row["visual_tokens"] == 192 and row["cpu_seconds"] > 0 and 0 < row["measured"] < 1
    told = [json.loads(line) for line in open(tmp_path / "frames_2/videos_train.jsonl")]
    assert {(video["frames"], video["height"], video["width"]) for row in told for video in row["videos"]} == {
        (2, 336, 448)
    }


def test_only_the_order_of_frames_says_which_response_is_right():
    pairs = order_pairs(compose_videos("test", 0), 200)
    assert pairs == order_pairs(compose_videos("test", 0), 200)
    texts = [sorted(re.findall(r"\d", row[side][0]["content"])[:2]) for row in pairs for side in ("chosen", "rejected")]
    assert texts[0::2] == texts[1::2]  # the same digits, in either order
    shuffled = order_pairs(compose_videos("test", 0), 200, shuffled=True)
    moved = [row["images"] != other["images"] for row, other in zip(pairs, shuffled, strict=True)]
    assert sum(moved) > 100 and [row["chosen"] for row in pairs] == [row["chosen"] for row in shuffled]
    for row, other in zip(pairs, shuffled, strict=True):
        assert len(row["images"]) == len(other["images"]) in (4, 6, 8)
        assert len({image.tobytes() for image in row["images"]}) == 2
        assert row["images"][0].tobytes() == row["images"][1].tobytes() != row["images"][-1].tobytes()
    (video,) = as_videos(pairs[:1])[0]["videos"]
    assert [load_image(frame).tobytes() for frame in video["frames"]] == [i.tobytes() for i in pairs[0]["images"]]
    assert as_videos(pairs[:1])[0]["images"] == [] and 0.3 < sum(len(row["images"]) == 6 for row in pairs) / 200 < 0.7


def test_the_study_runs_at_its_smallest(tmp_path, monkeypatch, capsys):
    arguments = ["--seeds", "0", "--steps", "2", "--batch_size", "4", "--output_dir", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["video_study.py", *arguments])
    monkeypatch.setattr("video_study.HELD_OUT", 8)
    main()
    result = json.loads((tmp_path / "seed_0.json").read_text())
    assert result["n"] == 8 and result["videos"]["in_order"] == pytest.approx(
        round(8 * result["videos"]["in_order"]) / 8
    )
    assert table([result]) in capsys.readouterr().out
