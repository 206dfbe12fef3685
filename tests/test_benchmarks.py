"""
The benchmarks' rules against values that their official scripts computed (`benchmarks_golden/`), the files they read,
and what is refused.
"""

import copy
import json
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Image, List
from PIL import Image as PILImage
from test_configs import ROOT

from vl_reward.benchmarks import (
    mm_rlhf_rewardbench,
    multimodal_rewardbench,
    preferences,
    rewardbench,
    rewardbench2,
    video_rewardbench,
    vl_rewardbench,
)
from vl_reward.benchmarks.benchmark_images import AskedRows, BenchmarkImages
from vl_reward.benchmarks.report.benchmark_report import BenchmarkReport, length_correlation
from vl_reward.benchmarks.report.published_table import PublishedTable
from vl_reward.benchmarks.report.score_file import ScoreFile
from vl_reward.benchmarks.report.training_overlap import TrainingOverlap


GOLDEN = ROOT / "tests/benchmarks_golden"
SAMPLES = ROOT.parent / "shared/fixtures"  # real public records, which are not part of the project


def golden(name):
    return json.loads((GOLDEN / f"{name}.json").read_text())


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def vl_row(id, ranking=(0, 1), **changes):
    row = {"id": id, "query": "What is it?", "response": ["A cat.", "A small dog."], "image": f"images/{id}.png"}
    return row | {"human_ranking": list(ranking), "judge": "human", "query_source": ""} | changes


def pair_row(subset, id=0, **changes):
    return {"id": id, "prompt": "Why?", "chosen": "Because.", "rejected": "No.", "subset": subset} | changes


# RewardBench


def rewardbench_rows(subsets, per_subset=10_000):
    """Rows and scores with the golden accuracy of each subset, which has four decimals."""
    rows, scores = [], []
    for subset in subsets:
        right = round(golden("rewardbench1_golden")["subset_accuracy"][subset] * per_subset)
        rows += [{"subset": subset, "responses": ["a", "b"], "preferred": 0}] * per_subset
        scores += [[1.0, 0.0]] * right + [[0.0, 1.0]] * (per_subset - right)
    return rows, scores


def test_rewardbench_sections_are_the_official_ones(monkeypatch):
    monkeypatch.setattr("vl_reward.benchmarks.report.accuracy.N_RESAMPLES", 2)
    expected = golden("rewardbench1_golden")
    assert rewardbench.SECTIONS == {
        section: {subset: expected["example_counts"][subset] for subset in subsets}
        for section, subsets in expected["subset_mapping"].items()
    }
    results = rewardbench.summarize(*rewardbench_rows(expected["subset_accuracy"]))
    for section, accuracy in expected["expected_sections"].items():
        assert results["sections"][section]["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert results["overall"] == results["macro"] == pytest.approx(expected["expected_mean_of_4"], abs=1e-12)
    assert results["missing_subsets"] == []
    assert {name: subset["accuracy"] for name, subset in results["subsets"].items()} == expected["subset_accuracy"]


def test_rewardbench_weighs_the_subsets_that_occur(monkeypatch):
    monkeypatch.setattr("vl_reward.benchmarks.report.accuracy.N_RESAMPLES", 2)
    expected = golden("rewardbench1_golden")
    results = rewardbench.summarize(*rewardbench_rows(expected["partial_input_subsets"]))
    for section, accuracy in expected["expected_sections_partial"].items():
        assert results["sections"][section]["accuracy"] == pytest.approx(accuracy, abs=1e-12)
    assert results["missing_subsets"] == [f"hep-{name}" for name in ("cpp", "go", "java", "js", "python", "rust")]


def test_a_section_without_rows_is_no_zero_and_leaves_no_mean():
    rows = [{"subset": "donotanswer", "responses": ["a", "b"], "preferred": 0}] * 4
    results = rewardbench.summarize(rows, [[1, 0], [1, 0], [1, 0], [0, 1]])
    assert results["overall"] is results["macro"] is results["overall_interval"] is None
    assert results["sections"].keys() == {"Safety"} and results["sections"]["Safety"]["accuracy"] == 0.75
    assert {"Chat", "Chat Hard", "Reasoning"} <= set(results["missing_subsets"])


def test_rewardbench_refuses_a_subset_that_no_section_counts(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [pair_row("donotanswer"), pair_row("donotanswr")])
    with pytest.raises(ValueError, match="row 1: no section .* 'donotanswr'"):
        rewardbench.load(path)


# VideoRewardBench


def video_row(dimension, **changes):
    row = {"prompt": "Which came first?", "video": "clips/1.mp4", "chosen": "The cat.", "rejected": "The dog."}
    return row | {"dimension": dimension} | changes


def test_video_rewardbench_is_read_by_the_names_that_are_assumed(tmp_path):
    written = ["Long-form Perception", "short_form_perception", "Knowledge", "reasoning", "SAFETY"]
    rows = video_rewardbench.load(write_lines(tmp_path / "rows.jsonl", [video_row(name, id=7) for name in written]))
    assert [row["subset"] for row in rows] == list(video_rewardbench.DIMENSIONS)
    assert rows[3] == {
        "id": "3",
        "subset": "reasoning",
        "prompt": "Which came first?",
        "images": [],
        "videos": ["clips/1.mp4"],
        "responses": ["The cat.", "The dog."],
        "preferred": 0,
    }


def test_video_rewardbench_takes_other_names_and_bytes(tmp_path):
    table = pa.Table.from_pylist(
        [
            {
                "question": "Which?",
                "clip": {"bytes": b"mp4", "path": "1.mp4"},
                "good": "A",
                "bad": "B",
                "task": "safety",
            },
            {
                "question": "Why?",
                "clip": {"bytes": b"mp4", "path": "2.mp4"},
                "good": "C",
                "bad": "D",
                "task": "knowledge",
            },
        ]
    )
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet")
    columns = {"prompt": "question", "videos": "clip", "chosen": "good", "rejected": "bad", "source": "task"}
    rows = video_rewardbench.load(str(tmp_path / "rows.parquet"), columns)
    assert [(row["prompt"], row["subset"], row["responses"]) for row in rows] == [
        ("Which?", "safety", ["A", "B"]),
        ("Why?", "knowledge", ["C", "D"]),
    ]
    asked = AskedRows(rows, BenchmarkImages(tmp_path).of(rows))
    assert asked[1]["videos"] == [{"bytes": b"mp4", "path": "2.mp4"}] and asked[1]["images"] == []
    with pytest.raises(ValueError, match=r"has no \['prompt'.*it has \['bad', 'clip', 'good', 'question', 'task'\]"):
        video_rewardbench.load(str(tmp_path / "rows.parquet"))


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        (
            video_row("perception"),
            None,
            "row 0: the dimension is 'perception', and the paper's are long-form perception, ",
        ),
        (video_row("safety", video=["1.png"]), None, "row 0: the video is a list. Give a path or bytes."),
        (video_row("safety", video=""), None, "row 0: the video is a str. Give a path or bytes."),
        (video_row("safety", rejected=1), None, "row 0: 2 or more responses are needed, as strings"),
        (
            video_row("safety", chosen=None),
            None,
            r"has no \['chosen'\].*The names are assumed, since the public file was",
        ),
        (video_row("safety"), {"videos": "clip"}, r"has no \['clip'\]; it has \['chosen', 'dimension', 'prompt'"),
        (video_row("safety"), {"images": "image"}, "`columns` has images, which VideoRewardBench does not have"),
    ],
)
def test_video_rewardbench_refuses_what_it_does_not_know(tmp_path, row, columns, message):
    with pytest.raises(ValueError, match=message):
        video_rewardbench.load(write_lines(tmp_path / "rows.jsonl", [row]), columns)


def test_video_rewardbench_overall_is_the_papers(monkeypatch):
    """The overall numbers of its table 4 come from its five dimensions by our rule, and not as their mean."""
    monkeypatch.setattr("vl_reward.benchmarks.report.accuracy.N_RESAMPLES", 2)
    sizes = video_rewardbench.DIMENSIONS
    table = PublishedTable("video_rewardbench").table
    assert table["columns"] == [*sizes, "overall"] and sum(sizes.values()) == 1563
    apart = 0
    for published in table["rows"]:
        rows, scores = [], []
        for (name, n), percent in zip(sizes.items(), published["values"], strict=False):
            right = round(n * percent / 100)
            assert 100 * right / n == pytest.approx(percent, abs=0.0501)
            rows += [{"subset": name, "responses": ["a", "b"], "preferred": 0}] * n
            scores += [[1.0, 0.0]] * right + [[0.0, 1.0]] * (n - right)
        results = video_rewardbench.summarize(rows, scores)
        assert 100 * results["overall"] == pytest.approx(published["values"][-1], abs=0.0501)
        expected = sum(100 * subset["accuracy"] for subset in results["subsets"].values()) / 5
        assert 100 * results["macro"] == pytest.approx(expected) and results["missing_subsets"] == []
        apart += abs(expected - published["values"][-1]) > 0.1
    assert apart > 5


def test_video_rewardbench_without_a_dimension_has_no_macro():
    rows = [{"subset": name, "responses": ["a", "b"], "preferred": 0} for name in ("safety", "safety", "knowledge")]
    results = video_rewardbench.summarize(rows, [[1.0, 0.0], [0.5, 0.5], [1.0, 0.0]])
    assert (results["overall"], results["ties"], results["n"]) == (2 / 3, 1, 3)
    assert results["macro"] is results["macro_interval"] is None
    assert results["missing_subsets"] == ["long-form perception", "short-form perception", "reasoning"]


def test_a_video_stays_in_the_folder(tmp_path):
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips/1.mp4").write_bytes(b"mp4")
    images = BenchmarkImages(tmp_path)
    given = [
        "clips/1.mp4",
        {"path": "clips/1.mp4"},
        "clips",
        "../a.mp4",
        "/etc/passwd",
        ".",
        "clips/2.mp4",
        "http://a/b",
    ]
    rows = [{"id": str(i), "images": [], "videos": [video]} for i, video in enumerate(given)]
    read = list(AskedRows(rows, images.of(rows)))
    assert [row["videos"] for row in read[:3]] == [[f"{tmp_path}/clips/1.mp4"]] * 2 + [[f"{tmp_path}/clips"]]
    reasons = [row["unreadable"] for row in read[3:]]
    assert all("lies outside of" in reason for reason in reasons[:2]) and "the image folder itself" in reasons[2]
    assert all(reason.startswith("there is no video") for reason in reasons[3:])
    assert read[3]["videos"] == []


# RewardBench 2


@pytest.mark.parametrize("case", golden("rewardbench2_golden")["ties_cases"], ids=lambda case: case["desc"])
def test_ties_score_is_the_official_one(case, tmp_path):
    rows = [
        {"id": row["id"], "prompt": "?", "subset": "Ties", "num_correct": row["num_correct"]}
        | {"chosen": ["yes"] * row["num_correct"], "rejected": ["no"] * (len(row["scores"]) - row["num_correct"])}
        for row in case["rows"]
    ]
    loaded = rewardbench2.load(write_lines(tmp_path / "rows.jsonl", rows))
    lines = [{"row": i, "scores": row["scores"]} for i, row in enumerate(case["rows"])]
    scores = ScoreFile(write_lines(tmp_path / "scores.jsonl", lines)).read(loaded)
    results = rewardbench2.summarize(loaded, scores)
    assert results["subsets"]["Ties"]["accuracy"] == pytest.approx(case["expected_ties_score"], abs=1e-12)
    assert results["subsets"]["Ties"]["n"] == len(rows)
    assert "Factuality" in results["missing_subsets"]


@pytest.mark.parametrize("case", golden("rewardbench2_golden")["non_ties_rule_cases"], ids=str)
def test_the_best_of_four_shares_what_it_earns(case):
    assert rewardbench2.best_of_credit(case["scores"]) == case["expected"]


def test_rewardbench2_is_the_mean_of_its_subsets(tmp_path):
    four = {"prompt": "?", "chosen": ["a"], "rejected": ["b", "c", "d"]}
    rows = [{"id": "0", "subset": "Factuality", **four}, {"id": "1", "subset": "Factuality", **four}]
    rows += [{"id": 0, "subset": name, **four} for name in ("Precise IF", "Math", "Safety", "Focus")]  # the same id
    rows += [
        {"id": "ref:3", "subset": "Ties", **four},
        {"id": "tied:3", "subset": "Ties", **four, "chosen": ["a", "e"]},
    ]
    loaded = rewardbench2.load(write_lines(tmp_path / "rows.jsonl", rows))
    assert [len(row["responses"]) for row in loaded] == [4] * 7 + [5]
    of_four = [[1, 0, 0, 0], [0, 1, 0, 0], [2, 2, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 0]]
    scores = of_four + [[9, 0, 0, 0], [9.0, 9.0, 0, 0, 0]]
    results = rewardbench2.summarize(loaded, scores)
    assert {name: subset["accuracy"] for name, subset in results["subsets"].items()} == {
        "Factuality": 0.5,
        "Precise IF": 0.5,
        "Math": 1.0,
        "Safety": 0.0,
        "Focus": 1.0,
        "Ties": pytest.approx(1.01),  # no spread and a gap: an infinite margin
    }
    assert results["overall"] == results["macro"] == pytest.approx((0.5 + 0.5 + 1 + 0 + 1 + 1.01) / 6)
    assert results["missing_subsets"] == [] and results["n"] == 8 and results["ties"] == 2

    without_math = rewardbench2.summarize(loaded[:3] + loaded[4:], scores[:3] + scores[4:])
    assert without_math["missing_subsets"] == ["Math"] and without_math["subsets"]["Focus"]["accuracy"] == 1.0
    assert without_math["overall"] is without_math["macro"] is without_math["overall_interval"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_correct": 2}, "row 0: `num_correct` is 2, and 1 responses are chosen"),
        ({"id": "7"}, "the id '7' of a row of Ties"),
        ({"chosen": "a"}, "row 0: 1 or more responses are needed"),
        ({"rejected": []}, "row 0: 1 or more responses are needed"),
    ],
)
def test_rewardbench2_refuses_what_it_would_misread(changes, message, tmp_path):
    row = {"id": "ref:0", "prompt": "?", "chosen": ["a"], "rejected": ["b"], "subset": "Ties"} | changes
    with pytest.raises(ValueError, match=message):
        rewardbench2.load(write_lines(tmp_path / "rows.jsonl", [row]))


# VL-RewardBench


def test_vl_rewardbench_groups_are_the_official_ones(tmp_path):
    expected = golden("vl_rewardbench_groups")["id_groups"]
    rows = vl_rewardbench.load(write_lines(tmp_path / "rows.jsonl", [vl_row(id) for id in expected]))
    sources = {row["id"]: {"source": row["source"], "group": row["subset"]} for row in rows}
    assert sources == expected


def test_vl_rewardbench_reads_the_ranking_and_counts_equal_ids_twice(tmp_path):
    rows = [vl_row("mmmu_1"), vl_row("mmmu_1", (1, 0)), vl_row("RLHF-V-2", (1, 0)), vl_row("wildvision-3")]
    loaded = vl_rewardbench.load(write_lines(tmp_path / "rows.jsonl", rows))
    results = vl_rewardbench.summarize(loaded, [[2, 1], [2, 1], [1, 2], [3, 3]])
    assert results["overall"] == 0.5  # a tie is not right
    assert results["macro"] == pytest.approx((0.5 + 1 + 0) / 3)
    subsets = {name: (s["accuracy"], s["n"], s["ties"]) for name, s in results["subsets"].items()}
    assert subsets == {"reasoning": (0.5, 2, 0), "hallucination": (1.0, 1, 0), "general": (0.0, 1, 1)}
    assert results["n"] == 4 and results["ties"] == 1
    without_general = vl_rewardbench.summarize(loaded[:3], [[2, 1], [2, 1], [1, 2]])
    assert without_general["missing_subsets"] == ["general"] and without_general["overall"] == pytest.approx(2 / 3)
    assert without_general["macro"] is without_general["macro_interval"] is None


def test_vl_rewardbench_refuses_a_ranking_that_is_none(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", [vl_row("mmmu_1"), vl_row("mmmu_2", (0, 0))])
    with pytest.raises(ValueError, match=r"row 1: `human_ranking` is \[0, 0\]"):
        vl_rewardbench.load(path)


# Multimodal RewardBench


def test_multimodal_rewardbench_divides_two_categories_by_id(tmp_path):
    ids = {
        "PAIRS_1": ("safety", "safety/bias"),
        "hateful_2": ("safety", "safety/toxicity"),
        "mathvista-3": ("reasoning", "reasoning/math"),
        "EMMA-Coding-4": ("reasoning", "reasoning/coding"),
        "nocaps_5": ("open_generation/correctness_task", "open_generation/correctness_task"),
    }
    rows = [
        {"ID": id, "Category": category, "Text": "?", "Output1": "a", "Output2": "bb", "Better": better, "Image": "x"}
        for (id, (category, _)), better in zip(
            ids.items(), ["Output1", "Output2", "Output1", "Output2", "Output2"], strict=True
        )
    ]
    path = tmp_path / "all_data.json"
    path.write_text(json.dumps(rows))
    loaded = multimodal_rewardbench.load(str(path))
    assert [row["subset"] for row in loaded] == [subset for _, subset in ids.values()]
    results = multimodal_rewardbench.summarize(loaded, [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]])
    assert results["overall"] == 0.8 and "macro" not in results
    assert {name: subset["accuracy"] for name, subset in results["subsets"].items()} == {
        "safety/bias": 1.0,
        "safety/toxicity": 0.0,
        "reasoning/math": 1.0,
        "reasoning/coding": 1.0,
        "open_generation/correctness_task": 1.0,
    }


# MM-RLHF-RewardBench


# The pairs of each prompt in the public sample that the golden rewards belong to, in order.
MM_RLHF_SAMPLE = [("short", 2), ("short", 2), ("video", 2), ("video", 2), ("mcq", 2), ("mcq", 3)]
MM_RLHF_SAMPLE += [("safety", 5), ("safety", 6), ("long", 3), ("long", 3)]


def test_mm_rlhf_numbers_are_the_official_ones(tmp_path):
    expected = golden("mm_rlhf_rewardbench_golden")
    rows = [
        {"id": f"prompt {number}", "prompt": "?", "chosen": "a", "rejected": "b"}
        | {"video" if category == "video" else "image": f"{category}/{number}"}
        for number, (category, pairs) in enumerate(MM_RLHF_SAMPLE)
        for _ in range(pairs)
    ]
    loaded = mm_rlhf_rewardbench.load(write_lines(tmp_path / "rows.jsonl", rows))
    results = mm_rlhf_rewardbench.summarize(loaded, expected["rewards"])
    for name, values in expected["expected_category"].items():
        subset = results["subsets"][name]
        assert (subset["accuracy"], subset["acc_plus"], subset["n"]) == tuple(values.values())
    overall = expected["expected_overall"]
    assert (results["overall"], results["acc_plus"], results["n"]) == tuple(overall.values())


@pytest.mark.skipif(not SAMPLES.exists(), reason="needs the public samples")
def test_public_records_are_read():
    """Real rows, which are not part of the project: the golden rewards again, and a ranking of [1, 0]."""
    expected = golden("mm_rlhf_rewardbench_golden")
    rows = mm_rlhf_rewardbench.load(str(SAMPLES / "mm_rlhf_rewardbench.sample.jsonl"))
    results = mm_rlhf_rewardbench.summarize(rows, expected["rewards"])
    assert (results["overall"], results["acc_plus"]) == (0.8, 0.6)
    rows = vl_rewardbench.load(str(SAMPLES / "vl_rewardbench.sample.jsonl"))
    assert len(rows) == 17 and sum(row["preferred"] for row in rows) == 1
    assert sum(row["id"] == "mathverse_2279" for row in rows) == 2
    assert {row["subset"] for row in rows} == {"general", "hallucination", "reasoning"}


def test_mm_rlhf_counts_prompts_all_of_whose_pairs_are_right(tmp_path):
    row = {"prompt": "?", "chosen": "a", "rejected": "b"}
    paths = {"video": "video/clip", "image": "mcq/1.png"}
    rows = [{"id": "v", "video": paths["video"], **row}, {"id": "m", "image": paths["image"], **row}]
    loaded = mm_rlhf_rewardbench.load(write_lines(tmp_path / "rows.jsonl", [rows[0], rows[1], rows[0], rows[1]]))
    assert [r["subset"] for r in loaded] == ["video", "mcq", "video", "mcq"]
    results = mm_rlhf_rewardbench.summarize(loaded, [[1, 0], [1, 0], [1, 0], [1, 1]])
    assert (results["overall"], results["acc_plus"]) == (0.75, 0.5)
    assert results["subsets"]["video"]["acc_plus"] == 1.0 and results["subsets"]["mcq"]["acc_plus"] == 0.0


def test_mm_rlhf_refuses_a_path_without_category(tmp_path):
    row = {"id": "v", "prompt": "?", "chosen": "a", "rejected": "b", "image": "x/1.png"}
    with pytest.raises(ValueError, match="row 0: the path 'x/1.png' holds none of mcq"):
        mm_rlhf_rewardbench.load(write_lines(tmp_path / "rows.jsonl", [row]))


# Files


def test_all_file_forms_give_the_same_rows(tmp_path):
    rows = [vl_row("mmmu_1", rationale="line\u2028separator"), vl_row("RLHF-V-2", (1, 0), rationale="")]
    expected = vl_rewardbench.load(write_lines(tmp_path / "rows.jsonl", rows))
    assert len(expected) == 2
    forms = {
        "list.json": json.dumps(rows, indent=1),
        "rows.json": json.dumps({"rows": rows}),
        "viewer.json": json.dumps({"rows": [{"row_idx": i, "row": row} for i, row in enumerate(rows)]}),
        "by_id.json": json.dumps({row["id"]: row for row in rows}),
        "by_id_alone.json": json.dumps({row["id"]: {key: row[key] for key in row.keys() - {"id"}} for row in rows}),
        "lines.json": "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows),
    }
    for name, text in forms.items():
        (tmp_path / name).write_text(text)
        assert vl_rewardbench.load(str(tmp_path / name)) == expected, name
    pa.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    assert vl_rewardbench.load(str(tmp_path / "rows.parquet")) == expected


def test_parquet_of_datasets_keeps_image_bytes(tmp_path):
    rows = [vl_row("mmmu_1", image=PILImage.new("RGB", (4, 4), "red"))]
    Dataset.from_list(rows).cast_column("image", Image()).to_parquet(tmp_path / "rows.parquet")
    (row,) = vl_rewardbench.load(str(tmp_path / "rows.parquet"))
    assert row["images"][0]["bytes"].startswith(b"\x89PNG")
    assert list(BenchmarkImages(tmp_path).of([row])) == [row["images"]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no row"),
        ("[]", "holds no row"),
        ('{"id": "a"}\n{"id": ', "line 2 is not JSON"),
        ("[1, 2]", "row 0 is not an object"),
        ('{"id": "a", "query": "?"}', r"row 0 has no \['response', 'human_ranking'\]"),
    ],
)
def test_bad_files_are_refused(text, message, tmp_path):
    (tmp_path / "rows.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        vl_rewardbench.load(str(tmp_path / "rows.jsonl"))


def test_a_missing_file_is_not_looked_for_on_the_hub(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.jsonl` does not exist"):
        vl_rewardbench.load(str(tmp_path / "nothing.jsonl"))


ROWS = [{"id": "a", "subset": "s", "responses": ["x", "yy"]}, {"id": "b", "subset": "s", "responses": ["x", "y"]}]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"row": 0, "scores": [1, 2]}\n', "has 1 lines, and the benchmark's file 2 rows"),
        ('{"row": 0, "scores": [1, 2]}\n{"row": 1, "sco', "line 2 is not JSON .* torn"),
        ('{"row": 1, "scores": [1, 2]}\n{"row": 0, "scores": [1, 2]}', "line 1 holds row 1 where row 0 is due"),
        ('{"row": 0, "scores": [1, 2]}\n{"row": 0, "scores": [1, 2]}', "line 2 holds row 0 where row 1 is due"),
        ('{"row": 0, "scores": [1, 2]}\n{"row": 1, "scores": [1]}', "row 1 has 1 scores, and 2 responses"),
        ('{"row": 0, "scores": [1, 2]}\n{"row": 1, "scores": [1, 2, 3]}', "row 1 has 3 scores, and 2 responses"),
        ('{"row": 0, "scores": [1, NaN]}\n{"row": 1, "scores": [1, 2]}', "row 0: the score nan is not a finite"),
        ('{"row": 0, "scores": [1, 2]}\n{"row": 1, "scores": [1, -Infinity]}', "row 1: the score -inf"),
        ('{"row": 0, "scores": [1, 2]}\n{"row": 1, "scores": ["1", 2]}', "row 1: the score '1' is not a finite"),
        ('{"row": 0, "scores": [1, 2]}\n{"row": 1, "scores": [true, 2]}', "row 1: the score True"),
        ('{"row": 0, "scores": [1, 2]}\n\n{"row": 1, "scores": [1, 2]}', "line 2 is not JSON"),
        ('{"row": 0, "scores": 1}\n{"row": 1, "scores": [1, 2]}', "line 1: .* is needed"),
        ('{"row": "0", "scores": [1, 2]}\n{"row": 1, "scores": [1, 2]}', "line 1: .* is needed"),
    ],
)
def test_bad_scores_are_refused_by_line_and_row(text, message, tmp_path):
    (tmp_path / "scores.jsonl").write_text(text)
    with pytest.raises(ValueError, match=message):
        ScoreFile(tmp_path / "scores.jsonl").read(ROWS)


def test_what_is_written_can_be_read_again(tmp_path):
    file = ScoreFile(tmp_path / "scores.jsonl")
    scores = [[0.1 + 0.2, -1e-30], [3.0, 4.0]]
    file.write(ROWS, scores, blank_scores=[[0.0, 0.0], [1.0, 1.0]])
    assert file.read(ROWS) == scores
    assert json.loads(file.path.read_text().splitlines()[0]) == {
        "row": 0,
        "id": "a",
        "subset": "s",
        "scores": [0.1 + 0.2, -1e-30],
        "lengths": [1, 2],
        "blank_scores": [0.0, 0.0],
    }


def test_images_are_found_under_the_folder_and_nowhere_else(tmp_path):
    (tmp_path / "data/video/clip").mkdir(parents=True)
    for name in ("a.png", "video/clip/2.jpg", "video/clip/1.jpg", "video/clip/notes.txt"):
        (tmp_path / "data" / name).touch()
    (tmp_path / "secret.png").touch()
    images = BenchmarkImages(tmp_path / "data")
    paths = images.of([{"images": ["a.png"]}, {"images": ["video/clip"]}, {"images": []}])
    root = tmp_path / "data"
    assert list(paths) == [[f"{root}/a.png"], [f"{root}/video/clip/1.jpg", f"{root}/video/clip/2.jpg"], []]
    for path in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(ValueError, match="Row 0: the image .* lies outside"):
            list(images.of([{"images": [path]}]))
    with pytest.raises(FileNotFoundError, match="Row 1: there is no image"):
        list(images.of([{"images": []}, {"images": ["b.png"]}]))


def test_an_empty_path_is_not_the_folder(tmp_path):
    for name in ("a.png", "b.png"):
        PILImage.new("RGB", (4, 4)).save(tmp_path / name)
    for path in ("", "."):
        with pytest.raises(ValueError, match="Row 0 .x.: the image .* is the image folder itself"):
            list(BenchmarkImages(tmp_path).of([{"id": "x", "images": [path]}]))
    for null in ("", None):
        (row,) = vl_rewardbench.load(write_lines(tmp_path / "rows.jsonl", [vl_row("mmmu_1", image=null)]))
        assert list(BenchmarkImages(tmp_path).of([row])) == [[]]
    with pytest.raises(ValueError, match="Row 0: an image is null"):
        list(BenchmarkImages(tmp_path).of([{"images": [None]}]))
    assert list(BenchmarkImages(tmp_path).of([{"images": None}])) == [[]]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_text(tmp_path, encoding):
    (tmp_path / "rows.jsonl").write_text(json.dumps(vl_row("mmmu_1")) + "\n", encoding=encoding)
    rows = vl_rewardbench.load(str(tmp_path / "rows.jsonl"))
    (tmp_path / "s.jsonl").write_text('{"row": 0, "scores": [1.0, 0.0]}', encoding=encoding)
    assert ScoreFile(tmp_path / "s.jsonl").read(rows) == [[1.0, 0.0]]


def own_pair(**changes):
    pair = {"id": "p", "source": "s", "prompt": "Q?", "images": [], "chosen": "A", "rejected": "B"}
    return pair | changes


def test_own_preferences_are_read_in_all_forms(tmp_path):
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    path, said = str(tmp_path / "a.png"), [{"role": "assistant", "content": "A"}]
    pairs = [own_pair(images=[path]), own_pair(id=None, images=None), own_pair(source=None)]
    rows = preferences.load(Dataset.from_list(pairs))
    assert [row["id"] for row in rows] == ["p", "1", "p"] and [row["subset"] for row in rows] == ["s", "s", "all"]
    assert list(BenchmarkImages(None).of(rows)) == [[path], [], []]
    summary = preferences.summarize(rows, [[1.0, 0.0]] * 3)
    assert summary["subsets"].keys() == {"s", "all"}

    question = [{"role": "user", "content": "Q?"}]
    whole = own_pair(chosen=[*question, *said], rejected=[*question, {"role": "assistant", "content": "B"}])
    (row,) = preferences.load(DatasetDict({"test": Dataset.from_list([whole])}))
    assert (row["prompt"], row["responses"]) == (question, ["A", "B"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"chosen": ""}, "the chosen response is empty"),
        ({"rejected": None}, "the rejected response is missing"),
        ({"prompt": None}, "the two conversations share no prompt"),
    ],
)
def test_own_preferences_that_are_none_are_marked(changes, message):
    good, bad = preferences.load(Dataset.from_list([own_pair(id="good"), own_pair(**changes)]))
    assert good["responses"] == ["A", "B"] and "unreadable" not in good
    assert bad["unreadable"].startswith(message) and (bad["id"], bad["responses"]) == ("p", [])


def test_own_preferences_without_a_column_a_split_or_rows_are_refused():
    data = Dataset.from_list([own_pair()])
    with pytest.raises(ValueError, match="lack images"):
        preferences.load(data.remove_columns("images"))
    with pytest.raises(ValueError, match="the splits train, and `dataset_test_split` is test"):
        preferences.load(DatasetDict({"train": data}))
    with pytest.raises(ValueError, match="have no rows"):
        preferences.load(data.select([]))


def test_own_images_are_not_held():
    pairs = [own_pair(images=[PILImage.new("RGB", (4 + i, 4))]) for i in range(3)]
    rows = preferences.load(Dataset.from_list(pairs).cast_column("images", List(Image())))
    asked = AskedRows(rows, BenchmarkImages(None).of(rows))
    assert [row["images"][0].keys() for row in asked] == [{"bytes", "path"}] * 3
    assert [row["id"] for row in asked] == ["0 (p)", "1 (p)", "2 (p)"]
    blank = AskedRows.with_blank_images(list(asked))
    assert [row["images"][0].size for row in blank] == [(4, 4), (5, 4), (6, 4)]
    assert [row["id"] for row in asked.select([2, 0])] == ["2 (p)", "0 (p)"]


def test_a_row_whose_image_is_not_found_is_marked(tmp_path):
    PILImage.new("RGB", (4, 4)).save(tmp_path / "a.png")
    rows = vl_rewardbench.load(
        write_lines(tmp_path / "rows.jsonl", [vl_row("x", image="a.png"), vl_row("y", image="b.png")])
    )
    there, gone = AskedRows(rows, BenchmarkImages(tmp_path).of(rows))
    assert there["images"] == [str(tmp_path / "a.png")] and "unreadable" not in there
    assert gone["images"] == [] and gone["unreadable"].startswith(f"there is no image {tmp_path}/b.png. Fetch")


def test_a_refused_row_is_in_every_number_as_a_wrong_one():
    rows = [{"id": str(i), "subset": "s", "responses": ["x", "yy"], "preferred": i % 2} for i in range(4)]
    results = BenchmarkReport(preferences.summarize, rows)([[2.0, 1.0], None, [1.0, 2.0], [0.0, 1.0]])
    assert (results["n"], results["overall"], results["ties"], results["refused_rows"]) == (4, 0.5, 0, 1)
    without = results["without_refused_rows"]
    assert (without["n"], without["accuracy"], without["subsets"]) == (3, 2 / 3, {"s": 2 / 3})
    whole = BenchmarkReport(preferences.summarize, rows[:1] + rows[2:])([[2.0, 1.0], [1.0, 2.0], [0.0, 1.0]])
    assert results["length_correlation"] == whole["length_correlation"]
    assert whole["refused_rows"] == 0 and "without_refused_rows" not in whole
    best_of_4 = [{"id": "a", "subset": "Math", "responses": list("wxyz"), "num_correct": 1}] * 2
    results = BenchmarkReport(rewardbench2.summarize, best_of_4)([[3.0, 0.0, 1.0, 2.0], None])
    assert (results["subsets"]["Math"]["accuracy"], results["ties"]) == (0.5, 0)
    with pytest.raises(ValueError, match="None of 4 rows has scores"):
        BenchmarkReport(preferences.summarize, rows)([None] * 4)


# What every result carries


def random_rows(n, seed=0):
    rng = random.Random(seed)
    ids = ["mmmu_1", "RLHF-V-2", "wildvision-3", "RLAIF-V-4", "politics-5"]
    rows = [
        {
            "id": (id := rng.choice(ids)),
            "source": vl_rewardbench.source_of(id),
            "subset": vl_rewardbench.GROUPS[vl_rewardbench.source_of(id)],
            "prompt": f"question {i}",
            "images": [],
            "responses": ["x" * rng.randint(1, 30), "y" * rng.randint(1, 30)],
            "preferred": rng.randrange(2),
        }
        for i in range(n)
    ]
    # A scorer that is right on about 70 % and ties on about 10 %.
    scores = [[float(rng.randrange(10)), float(rng.randrange(10))] for _ in rows]
    for row, pair in zip(rows, scores, strict=True):
        if rng.random() < 0.5:
            pair[row["preferred"]] = 10.0
    return rows, scores


def test_shuffled_rankings_change_the_result():
    rows, scores = random_rows(400)
    right = vl_rewardbench.summarize(rows, scores)["overall"]
    preferred = [row["preferred"] for row in rows]
    random.Random(1).shuffle(preferred)
    shuffled = [row | {"preferred": p} for row, p in zip(rows, preferred, strict=True)]
    assert right > 0.65
    assert abs(vl_rewardbench.summarize(shuffled, scores)["overall"] - 0.5) < 0.08


def test_swapping_chosen_and_rejected_gives_one_minus_the_accuracy_ties_aside():
    rows, scores = random_rows(400)
    results = vl_rewardbench.summarize(rows, scores)
    swapped = vl_rewardbench.summarize([row | {"preferred": 1 - row["preferred"]} for row in rows], scores)
    assert results["ties"] == swapped["ties"] > 0
    assert swapped["overall"] == pytest.approx(1 - results["overall"] - results["ties"] / 400)
    for name, subset in results["subsets"].items():
        other = swapped["subsets"][name]["accuracy"]
        assert other == pytest.approx(1 - subset["accuracy"] - subset["ties"] / subset["n"])


def test_intervals_are_those_of_the_bootstrap_and_reproducible():
    rows, scores = random_rows(400)
    results = vl_rewardbench.summarize(rows, scores)
    low, high = results["overall_interval"]
    error = math.sqrt(results["overall"] * (1 - results["overall"]) / 400)
    assert (low, high) == pytest.approx(
        (results["overall"] - 1.96 * error, results["overall"] + 1.96 * error), abs=0.01
    )
    accuracies = {name: (s["accuracy"], s["n"]) for name, s in results["subsets"].items()}
    error = math.sqrt(sum(a * (1 - a) / n for a, n in accuracies.values())) / len(accuracies)
    half_width = np.subtract(*results["macro_interval"][::-1]) / 2
    assert half_width == pytest.approx(1.96 * error, rel=0.1)
    assert vl_rewardbench.summarize(copy.deepcopy(rows), copy.deepcopy(scores)) == results


def test_trivial_baselines_and_length_correlation():
    rows, _ = random_rows(300)
    lengths = [[len(text) for text in row["responses"]] for row in rows]
    baselines = BenchmarkReport(vl_rewardbench.summarize, rows)([[float(n) for n in pair] for pair in lengths])
    better = [(pair[row["preferred"]], pair[1 - row["preferred"]]) for row, pair in zip(rows, lengths, strict=True)]
    expected = {
        "shorter_is_better": sum(a < b for a, b in better) / 300,
        "longer_is_better": sum(a > b for a, b in better) / 300,
        "first_is_better": sum(row["preferred"] == 0 for row in rows) / 300,
    }
    assert {name: result["accuracy"] for name, result in baselines["baselines"].items()} == pytest.approx(expected)
    assert baselines["overall"] == baselines["baselines"]["longer_is_better"]["accuracy"]
    assert baselines["baselines"]["longer_is_better"]["ties"] == sum(a == b for a, b in better) > 0
    assert baselines["length_correlation"] == pytest.approx(1.0)
    assert length_correlation(rows, [[-float(n) for n in pair] for pair in lengths]) == pytest.approx(-1.0)
    assert length_correlation(rows, [[1.0, 1.0]] * 300) is None


def test_rows_in_the_training_data_are_left_out(tmp_path):
    red, blue = (PILImage.new("RGB", (8, 8), color) for color in ("red", "blue"))
    red.save(tmp_path / "red.bmp")
    blue.save(tmp_path / "blue.png")
    message = {"role": "user", "content": "Describe  this image."}
    training = Dataset.from_list(
        [
            {"prompt": [message], "images": [red], "chosen": [{"role": "assistant", "content": "Red."}]}
            | {"rejected": [{"role": "assistant", "content": "Green."}]},
            {"prompt": [message | {"content": "Why?"}], "images": [], "chosen": [{"role": "assistant", "content": "x"}]}
            | {"rejected": [{"role": "assistant", "content": "y"}]},
        ]
    )
    overlap = TrainingOverlap(training, tmp_path)

    def row(prompt, images, responses=("p", "q")):
        return {"prompt": prompt, "images": images, "responses": list(responses)}

    assert overlap.reason(row("What?", ["red.bmp"])) == "image"
    assert overlap.reason(row("describe this image.", ["blue.png"])) is None
    assert overlap.reason(row("describe this image.", ["blue.png"], ("A sea.", "green."))) == "prompt and response"
    assert overlap.reason(row("why?", [])) == "prompt"
    assert overlap.reason(row("How?", [])) is None
    assert overlap.images_not_read == 0
    assert overlap.reason(row("What?", ["gone.png"])) is None
    assert overlap.images_not_read == 1
    # A video is no text: the prompt alone says nothing. Its frames are compared where they are files.
    (tmp_path / "clip").mkdir(), blue.save(tmp_path / "clip/0.png"), red.save(tmp_path / "clip/1.png")
    (tmp_path / "a.mp4").write_bytes(b"mp4")
    assert overlap.reason(row("why?", []) | {"videos": ["a.mp4"]}) is None
    assert overlap.reason(row("What?", []) | {"videos": ["clip"]}) == "image"
    assert overlap.images_not_read == 2

    rows = [
        {"id": "mmmu_1", "source": "reasoning_tasks", "subset": "reasoning", "preferred": 0, **row(*asked)}
        for asked in (("What?", ["red.bmp"]), ("What?", ["blue.png"]), ("why?", []))
    ]
    results = BenchmarkReport(vl_rewardbench.summarize, rows, overlap)([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert results["overall"] == pytest.approx(2 / 3)
    without = results["without_training_rows"]
    assert without["removed"] == {"image": 1, "prompt": 1}
    assert (without["n"], without["overall"]) == (1, 0.0)


def test_table_sets_our_row_among_published_ones():
    rows, scores = random_rows(400)
    results = vl_rewardbench.summarize(rows, scores)
    lines = PublishedTable("vl_rewardbench").markdown("ours", results).splitlines()
    assert lines[0] == "| model | general | hallucination | reasoning | overall | macro | source |"
    macros = [float(line.split(" | ")[5]) for line in lines[2:]]
    assert macros == sorted(macros, reverse=True)
    (own,) = [line for line in lines if "**ours**" in line]
    assert own.endswith("this run, 400 rows |") and f" {100 * results['overall']:.1f} " in own
    skywork = "| Skywork-VL Reward | 66.0 | 80.0 | 61.0 | 73.1 | 69.0 | arXiv 2505.07263, table 3, 1,250 rows |"
    assert skywork in lines
    partial = vl_rewardbench.summarize(rows[:1], scores[:1])
    assert ", without " in PublishedTable("vl_rewardbench").markdown("ours", partial)


def test_published_rows_are_whole():
    names = ("vl_rewardbench", "rewardbench", "multimodal_rewardbench", "mm_rlhf_rewardbench", "video_rewardbench")
    for benchmark in names:
        table = PublishedTable(benchmark).table
        assert table["rows"]
        for row in table["rows"]:
            assert len(row["values"]) == len(table["columns"]) and row["source"]
            assert all(0 < value < 100 for value in row["values"])
