"""Rows of a JSON or JSONL file, as people have them."""

import json


def parse_json_rows(text: str, name: str) -> list[dict]:
    """
    Rows of a JSON list, of an object that holds them under `rows` (the hub's dataset viewer nests each once more under
    `row`), or of JSON lines, whatever the file's suffix says: `Dataset.to_json` writes lines into `.json` too.

    Raises:
        ValueError: For a line that is not JSON, by its number, or a row that is not an object.
    """
    try:
        value = json.loads(text)
        rows = value["rows"] if isinstance(value, dict) and "rows" in value else value
        rows = rows if isinstance(rows, list) else [rows]
    except json.JSONDecodeError:
        rows = []
        for number, line in enumerate(text.split("\n"), 1):  # `splitlines` would cut at U+2028 inside a text, too
            try:
                rows += [json.loads(line)] if line.strip() else []
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{name}, line {number} is not JSON ({error}). It may be torn: fetch or write the file again."
                ) from error
    rows = [row["row"] if isinstance(row, dict) and "row_idx" in row and "row" in row else row for row in rows]
    if wrong := [i for i, row in enumerate(rows) if not isinstance(row, dict)]:
        raise ValueError(f"{name}, row {wrong[0]} is not an object with named columns. Give one JSON object per row.")
    return rows
