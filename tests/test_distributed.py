"""The table of recipes on several processes: which of its cells run when, and that pages have what it said."""

import json

import distributed_resume
import pytest
from distributed import all_cells, part_of, table
from launches import ROOT


@pytest.mark.parametrize("total", [1, 5, 15, 100])
def test_parts_have_each_cell_once_and_whole_rows(total):
    cells = all_cells()
    parts = [part_of(cells, f"{number}/{total}") for number in range(1, total + 1)]
    assert sorted(map(str, sum(parts, []))) == sorted(map(str, cells)) and len({*cells}) == len(cells) > 100
    rows = [{cell.row for cell in part} for part in parts]
    assert sum(map(len, rows)) == len({cell.row for cell in cells})
    assert max(map(len, rows)) - min(map(len, rows)) <= 1
    with pytest.raises(ValueError, match=f"there are parts 1/{total} to {total}/{total}"):
        part_of(cells, f"{total + 1}/{total}")


def test_pages_have_what_the_runs_wrote():
    kept = ROOT / "docs/distributed"
    assert (kept / "table.md").read_text() == table(json.loads((kept / "results.json").read_text()))
    cells = json.loads((kept / "resume.json").read_text())
    assert not any("FAILED" in cell["verdict"] for cell in cells) and len(cells) > 10
    page, written = (ROOT / "docs/distributed.md").read_text(), distributed_resume.table(cells)
    assert f"<!-- resume -->\n{written}<!-- end of resume -->" in page
