"""The bench runs, at its smallest."""

import json
import sys

import gpu_page
import iterative_curation
import pytest
from test_recipes import ROOT, run


def test_prefix_sharing_bench(tmp_path):
    sizes = "--families qwen2_5_vl qwen3_vl --visual_tokens 16 --response_tokens 8 --k 2 4 --rounds 1"
    run_bench("prefix_sharing", tmp_path, *sizes.split())
    assert (tmp_path / "results.png").stat().st_size > 1000
    written = json.loads((tmp_path / "results.json").read_text())["cells"]
    cells = {(cell["workload"], cell["k"]): cell for cell in written if cell["family"] == "qwen3_vl"}
    assert len(written) == 2 * len(cells) and written[0]["family"] == "qwen2_5_vl"
    assert cells.keys() == {("reward", 2), ("mpo", 2), ("nothing shared", 2), ("score", 2), ("score", 4)}
    assert cells["score", 4]["tokens"] == {"rows": 4 * 56, "shared": 48 + 4 * 8}
    assert cells["nothing shared", 2]["tokens"] == {"rows": 112, "shared": 112}
    assert cells["nothing shared", 2]["ideal_ratio"] == 1
    # All prompt and no response, K rows cost K times one: between that and the share of the response's own tokens.
    assert 4 * 56 / (48 + 4 * 8) == pytest.approx(cells["score", 4]["ideal_ratio"], rel=0.1)
    for cell in cells.values():
        assert all(way["seconds"] > 0 and way["rounds"] == 1 for way in cell["ways"].values())


def run_bench(name, tmp_path, *arguments):
    return run([sys.executable, str(ROOT / f"bench/{name}.py"), "--output_dir", str(tmp_path), *arguments], tmp_path)


def test_pixels_bench(tmp_path):
    """Pixels of 2 pairs and of 4 responses: half as many, and a quarter."""
    sizes = "--pairs 2 --k 4 --visual_tokens 256 --vocab_size 1000 --rounds 1"
    run_bench("pixels", tmp_path, *sizes.split())
    cells, image = json.loads((tmp_path / "pixels.json").read_text())["cells"], 1024 * 1176 * 4 / 2**20
    for name, copied, once in (("reward, 2 pairs", 4, 2), ("MPO, 2 pairs", 4, 2), ("scoring, K = 4", 4, 1)):
        assert cells[name]["copied"]["sent_mib"] == pytest.approx(copied * image, rel=0.01)
        assert cells[name]["once"]["sent_mib"] == pytest.approx(once * image, rel=0.01)
        assert all(way["seconds"] > 0 and way["peak_mib"] > 0 for way in cells[name].values())


def test_overlap_bench(tmp_path):
    run_bench("overlap", tmp_path, "--images", "4", "--turns", "1")
    found = json.loads((tmp_path / "overlap.json").read_text())["steps"]
    assert found.keys() == {"scoring", "sampling", "reference"}
    assert all(0 < one["waits"] < 1 and one["seconds"] > 0 for step in found.values() for one in step.values())


def test_curation_scale_bench(tmp_path):
    output = run_bench("curation", tmp_path, "--sizes", "300", "600", "--num_proc", "1")
    sizes = json.loads((tmp_path / "scale.json").read_text())["sizes"]
    assert [size["pairs"] for size in sizes] == [300, 600]
    for size in sizes:
        assert size["kept"] + sum(size["dropped"].values()) == size["pairs"]
        steps = ("duplicates", "near-duplicates", "decontamination: benchmark")
        assert all(size["dropped"][step] > 0 for step in steps)
        assert f"{size['total_seconds']:9.1f}" in output


def test_curation_accuracy_bench(tmp_path):
    """The figures of the default settings: what must be found, and what must stay."""
    run_bench("curation_accuracy", tmp_path)
    results, kinds = json.loads((tmp_path / "accuracy.json").read_text()), ("photo", "chart", "page", "digits")
    near = results["near-duplicates"]["max_hamming_distance 6, min_text_similarity 0.8"]
    assert near["precision"] == 1 and near["recall"] > 0.6
    for change in ("png again", "blanks", "case", "full stops", "the other way round"):
        assert all(near["found"][f"{change}, {kind}"] == 1 for kind in kinds), change
    for change in ("another number", "another subject", "paraphrase", "another question", "another image"):
        assert all(near["found"][f"{change}, {kind}"] == 0 for kind in kinds), change
    contamination = results["contamination"]["max_hamming_distance 6"]
    assert contamination["precision"] > 0.98 and contamination["recall"] > 0.96
    for change in ("png again", "crop 5 %", "crop 10 %", "the same question and answer, blanks and case"):
        assert all(contamination["found"][f"{change}, {kind}"] == 1 for kind in kinds), change
    for change in ("another image", "the same question"):
        assert all(contamination["found"][f"{change}, {kind}"] == 0 for kind in kinds), change


def test_labelling_scale_bench(tmp_path):
    run_bench("labelling_scale", tmp_path, "--candidates", "64", "--samples", "8")
    results = json.loads((tmp_path / "scale.json").read_text())
    assert results["simulation"]["responses"] == 300_000 * 8 and results["simulation"]["shards_of_samples"] == 1172
    assert [run["candidates"] for run in results["measured"]] == [64] and results["measured"][0]["scores_mib"] > 0


def test_a_second_round_of_curation_gains_and_the_page_shows_it():
    kept = json.loads((ROOT / "docs/curation/iterative.json").read_text())
    assert iterative_curation.table(kept) in (ROOT / "docs/curation.md").read_text()
    assert kept["flipped"] == 0.15 and all(run["curated"] > run["surrogate"] + 0.01 for run in kept["runs"])


def test_the_page_on_a_gpu_has_the_kept_runs():
    page, tables = (ROOT / "docs/gpu.md").read_text(), gpu_page.tables()
    assert list(tables) == ["speed", "moved", "memory", "recipes"]
    for name, table in tables.items():
        assert f"<!-- {name} -->\n{table}\n<!-- end of {name} -->" in page, name
