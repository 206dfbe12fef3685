"""One self-contained HTML file on one or several runs."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from .gallery import Thumbnails, gallery_rows
from .run_files import RunFiles
from .sections import curves, section_data
from .visible import script_json, visible


def write_report(folders: Sequence[Path | str], output: Path | str, max_pairs: int = 2000) -> Path:
    """
    Write the page.

    Args:
        folders (`Sequence[Path | str]`):
            One run each, side by side on the page.
        output (`Path` or `str`):
            The HTML file.
        max_pairs (`int`, *optional*, defaults to `2000`):
            The gallery holds so many pairs of each kind and run, at most: all errors first.

    Returns:
        `Path`: the file that was written.
    """
    runs = [RunFiles(Path(folder), name) for folder, name in zip(folders, names_of(folders), strict=True)]
    sections = [section_data(run) for run in runs]
    thumbnails, rows, counts = Thumbnails(), [], {}
    for run in runs:
        shown, counts[run.name] = gallery_rows(run, max_pairs, thumbnails)
        rows += shown
    for run, section in zip(runs, sections, strict=True):
        section["missing"] = sorted(run.missing)
    # Not `select_autoescape`, which goes by the name of the file: this page escapes everything.
    environment = Environment(
        loader=PackageLoader("vl_reward.report", "page"), autoescape=True, undefined=StrictUndefined, finalize=as_text
    )
    inside = files("vl_reward.report") / "page"
    html = environment.get_template("page.html.j2").render(
        runs=sections,
        summary=summary_rows(runs),
        curves=curves(runs),
        counts=counts,
        gallery=Markup(script_json({"rows": rows, "pictures": [*thumbnails.urls]})),
        style=Markup((inside / "style.css").read_text(encoding="utf-8")),
        script=Markup((inside / "gallery.js").read_text(encoding="utf-8")),
    )
    output = Path(output)
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(html, encoding="utf-8")
    return output


def as_text(value):
    """What a template prints: SVG and scripts of this package as they are, all else without anything hidden."""
    return value if isinstance(value, Markup) else visible(str(value))


def names_of(folders: Sequence[Path | str]) -> list[str]:
    """The last part of each path, or the whole of it where two are the same."""
    names = [Path(folder).resolve().name for folder in folders]
    names = names if len({*names}) == len(names) else [str(folder) for folder in folders]
    if len({*names}) < len(names):
        raise ValueError(f"A run is given twice: {', '.join(names)}. Each is one column of the page: give it once.")
    return names


def summary_rows(runs: list[RunFiles]) -> list[dict]:
    """The numbers of each `results.json`, one row per number and one column per run."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for run in runs:
        for group, numbers in run.json("results.json").items():
            if group in ("reward", "policy"):
                for key, value in numbers.items():
                    found.setdefault((group, key), {})[run.name] = value
    return [
        {"group": group, "name": name, "values": [row.get(run.name) for run in runs]}
        for (group, name), row in found.items()
    ]
