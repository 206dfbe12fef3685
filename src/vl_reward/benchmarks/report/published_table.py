"""Published results of reward models, each with its source, to set one's own row among."""

from pathlib import Path

import yaml


class PublishedTable:
    """
    A benchmark's published results as Markdown, with the row of one's own model among them.

    Args:
        benchmark (`str`):
            The benchmark's name; a name without published results gives a table of one row.
    """

    def __init__(self, benchmark: str):
        published = yaml.safe_load((Path(__file__).parent / "published.yaml").read_text())
        self.table = published.get(benchmark, {"columns": ["overall"], "rows": []})

    def markdown(self, name: str, results: dict) -> str:
        """
        Args:
            name (`str`):
                What to call one's own row.
            results (`dict`):
                What the benchmark's `summarize` gives. A column is a key of it, or the name of a section or subset.

        Returns:
            `str`: the table, in percent, ordered by the last column. A row of a file that lacks subsets says so.
        """
        own = []
        for column in self.table["columns"]:
            parts = {**results["subsets"], **results.get("sections", {})}
            value = parts[column]["accuracy"] if column in parts else results.get(column)
            own.append(None if value is None else 100 * value)
        source = f"this run, {results['n']:,} rows"
        if results.get("refused_rows"):
            source += f", {results['refused_rows']:,} refused and counted as wrong"
        if results.get("missing_subsets"):
            source += f", without {', '.join(results['missing_subsets'])}"
        rows = [(row["model"], row["values"], row["source"]) for row in self.table["rows"]]
        rows.append((f"**{name}**", own, source))
        rows.sort(key=lambda row: (row[1][-1] is not None, row[1][-1]), reverse=True)
        header = ["model", *self.table["columns"], "source"]
        lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
        for model, values, origin in rows:
            cells = ["" if value is None else f"{value:.1f}" for value in values]
            lines.append("| " + " | ".join([model, *cells, origin]) + " |")
        return "\n".join(lines) + "\n"
