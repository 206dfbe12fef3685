"""Scores of a benchmark's rows on disk: one JSON line per row, from which every number can be computed again."""

import json
import math
from pathlib import Path

from ...data.json_rows import read_text


class ScoreFile:
    """
    JSON lines of `{"row": 0, "scores": [1.5, -0.25]}`, one per row of a benchmark file and in its order, scores in the
    order of the row's responses; `{"row": 0, "scores": null}` for a row that was refused. More keys may be there: what
    [`ScoreFile.write`] writes can be read again.

    Args:
        path (`str` or `Path`):
            The file.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def read(self, rows: list[dict]) -> list[list[float] | None]:
        """
        Read and check the scores of a benchmark's rows. A score may stand in a list of its own, `[1.5]`, as pipelines
        of transformers write it.

        Args:
            rows (`list[dict]`):
                The benchmark's rows with their `responses`.

        Returns:
            `list[list[float] | None]`: one score per response of each row, `None` for a row that was refused.

        Raises:
            ValueError: For a torn line, a line that is missing, twice there or out of order, a wrong number of scores,
                and a score that is not a finite number. The line and the row are named.
        """
        lines = read_text(self.path).split("\n")
        while lines and not lines[-1].strip():
            lines.pop()
        scores = []
        for i, text in enumerate(lines):
            try:
                line = json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"{self.path}, line {i + 1} is not JSON ({error}): it is torn.") from error
            if (
                not isinstance(line, dict)
                or not isinstance(line.get("scores", 0), list | None)
                or type(line.get("row")) is not int
            ):
                raise ValueError(f'{self.path}, line {i + 1}: `{{"row": {i}, "scores": [...]}}` is needed.')
            if line["row"] != i:
                raise ValueError(
                    f"{self.path}, line {i + 1} holds row {line['row']} where row {i} is due: a line is missing, twice "
                    "there or out of order. Write one line per row, in the order of the benchmark's file."
                )
            scores.append(line["scores"])
        if len(scores) != len(rows):
            raise ValueError(
                f"{self.path} has {len(scores)} lines, and the benchmark's file {len(rows)} rows. Write one per row."
            )
        return [
            None if values is None else self._check(i, row, values)
            for i, (row, values) in enumerate(zip(rows, scores, strict=True))
        ]

    def _check(self, i: int, row: dict, values: list) -> list[float]:
        values = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
        if len(values) != len(row["responses"]):
            raise ValueError(
                f"{self.path}, row {i} has {len(values)} scores, and {len(row['responses'])} responses. One score per "
                "response is needed, chosen before rejected."
            )
        for value in values:
            if type(value) not in (int, float) or not math.isfinite(value):
                raise ValueError(
                    f"{self.path}, row {i}: the score {value!r} is not a finite number, so it cannot be compared."
                )
        return [float(value) for value in values]

    def write(self, rows: list[dict], scores: list[list[float] | None], **columns: list) -> None:
        """
        Write `row`, `id`, `subset`, `scores`, `lengths` (characters) and further columns, one line per row.

        Args:
            rows (`list[dict]`):
                Rows with `id`, `subset` and `responses`.
            scores (`list[list[float] | None]`):
                One score per response of each row, `None` for a row that was refused.
            **columns (`list`):
                One value per row each.
        """
        with open(self.path, "w", encoding="utf-8") as file:
            for i, (row, values) in enumerate(zip(rows, scores, strict=True)):
                line = {"row": i, "id": row["id"], "subset": row["subset"], "scores": values}
                line["lengths"] = [len(response) for response in row["responses"]]
                file.write(json.dumps(line | {name: column[i] for name, column in columns.items()}) + "\n")
