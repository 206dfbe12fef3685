"""The bench runs, at its smallest."""

import json
import subprocess
import sys

import pytest
from test_recipes import ENVIRONMENT, ROOT


def test_prefix_sharing_bench(tmp_path):
    sizes = ["--visual_tokens", "16", "--response_tokens", "8", "--k", "2", "4", "--rounds", "1"]
    command = [sys.executable, str(ROOT / "bench/prefix_sharing.py"), "--output_dir", str(tmp_path), *sizes]
    result = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    assert (tmp_path / "results.png").stat().st_size > 1000
    cells = {
        (cell["workload"], cell["k"]): cell for cell in json.loads((tmp_path / "results.json").read_text())["cells"]
    }
    assert cells.keys() == {("reward", 2), ("mpo", 2), ("nothing shared", 2), ("score", 2), ("score", 4)}
    assert cells["score", 4]["tokens"] == {"rows": 4 * 56, "shared": 48 + 4 * 8}
    assert cells["nothing shared", 2]["tokens"] == {"rows": 112, "shared": 112}
    assert cells["nothing shared", 2]["ideal_ratio"] == 1
    # All prompt and no response, K rows cost K times one: between that and the share of the response's own tokens.
    assert 4 * 56 / (48 + 4 * 8) == pytest.approx(cells["score", 4]["ideal_ratio"], rel=0.1)
    for cell in cells.values():
        assert all(way["seconds"] > 0 and way["rounds"] == 1 for way in cell["ways"].values())
