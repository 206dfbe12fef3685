"""The plots of the page, as SVG that takes the page's colours."""

import io
import re

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

from .visible import visible


INK = "#010203"  # drawn nowhere else: it becomes the page's text colour, which is another one in the dark
STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",
    "text.parse_math": False,  # names of runs and files may hold dollar signs
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
SIZE = (4.2, 2.7)
MOST_POINTS = 2000


def svg(figure: Figure) -> Markup:
    """Inline SVG: without its prologue, its metadata and the addresses of its name spaces."""
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\s(xmlns(:xlink)?|id)="(http[^"]*|(figure|axes|text|patch|line2d|xtick|ytick)[^"]*)"', "", text)
    return Markup(text.replace(INK, "currentColor"))


def axes(x: str, y: str):
    """A figure, and its axes with these labels."""
    figure = Figure(figsize=SIZE, layout="constrained")
    ax = figure.subplots()
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    return figure, ax


@matplotlib.rc_context(STYLE)
def curve(lines: dict[str, tuple[list, list]], x: str, y: str, marker: str = "") -> Markup:
    """
    A plot of lines.

    Args:
        lines (`dict[str, tuple[list, list]]`):
            Places along both axes, by the name of the line.
        x (`str`), y (`str`):
            The labels of the axes.
        marker (`str`, *optional*, defaults to `""`):
            Matplotlib's name for what stands at each point.
    """
    figure, ax = axes(x, y)
    for name, (xs, ys) in lines.items():
        alone = "o" if len(xs) == 1 else ""  # a point has no line
        ax.plot(xs, ys, label=visible(name).lstrip("_"), linewidth=1.4, marker=marker or alone, markersize=4)
    if len(lines) > 1:
        ax.legend(frameon=False)
    return svg(figure)


@matplotlib.rc_context(STYLE)
def bars(names: list[str], values: list[float], x: str) -> Markup:
    """Horizontal bars of `values` with their `names`, the first on top. `x` is the label of the axis."""
    figure, ax = axes(x, "")
    ax.bar_label(ax.barh(names, values, color="#3b82c4"), padding=2, fmt="%g")
    ax.invert_yaxis()
    return svg(figure)


@matplotlib.rc_context(STYLE)
def reward_by_length(lines: list[dict]) -> Markup:
    """Reward of chosen and rejected responses against their length, of as many pairs as a plot can show."""
    figure, ax = axes("response length", "reward")
    step = -(-len(lines) // MOST_POINTS)
    if step > 1:
        ax.set_title(f"every {step}. pair of {len(lines):,}", fontsize=9)
    for place, (name, color) in enumerate({"chosen": "#3b82c4", "rejected": "#d97706"}.items()):
        points = [(line["lengths"][place], line["scores"][place]) for line in lines[::step]]
        ax.scatter(*zip(*points, strict=True), s=6, alpha=0.35, linewidths=0, color=color, label=name)
    for handle in ax.legend(frameon=False, markerscale=2.5).legend_handles:
        handle.set_alpha(1)
    return svg(figure)


@matplotlib.rc_context(STYLE)
def calibration_plot(bins: list[dict]) -> Markup:
    """How often the preferred response was right, against the probability that its gap says."""
    figure, ax = axes("probability that the gap says", "share that was right")
    ax.plot([0.5, 1], [0.5, 1], color="#888888", linewidth=1, linestyle="--")
    ax.plot([b["said"] for b in bins], [b["was"] for b in bins], marker="o", markersize=4, color="#3b82c4")
    return svg(figure)
