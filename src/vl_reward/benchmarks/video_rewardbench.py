"""VideoRewardBench (arXiv 2509.00484): pairs about one video each, in five dimensions."""

import re

from .benchmark_file import check_texts, read_rows
from .report.accuracy import mean_of_groups, pair_credits, summarize_pairs


HUB_ID = "Dragonriser/VideoRewardBench"
# The paper's dimensions, with the number of their pairs.
DIMENSIONS = {
    "long-form perception": 283,
    "short-form perception": 413,
    "knowledge": 238,
    "reasoning": 278,
    "safety": 351,
}
# Assumed: the public file was not seen. Keys are what `columns` may name, values the names without it.
COLUMNS = {
    "prompt": "prompt",
    "videos": "video",
    "chosen": "chosen",
    "rejected": "rejected",
    "source": "dimension",
}


def dimension_of(text: object) -> str | None:
    """The paper's dimension of that name, whatever its case and its hyphens; `None` for another text."""
    letters = {re.sub("[^a-z]", "", name): name for name in DIMENSIONS}
    return letters.get(re.sub("[^a-z]", "", str(text).lower()))


def named_columns(columns: dict[str, str] | None) -> dict[str, str]:
    """
    The file's name of each of [`COLUMNS`].

    Raises:
        ValueError: If `columns` names what is not read.
    """
    if unknown := sorted(set(columns or {}) - COLUMNS.keys()):
        raise ValueError(
            f"`columns` has {', '.join(unknown)}, which VideoRewardBench does not have. These can be named: "
            f"{', '.join(COLUMNS)} (`source` is the dimension)."
        )
    return COLUMNS | (columns or {})


def load(source: str = HUB_ID, columns: dict[str, str] | None = None) -> list[dict]:
    """
    Read VideoRewardBench.

    From the paper: a row has a prompt with one video, a chosen and a rejected response, and one of five dimensions.
    Assumed: the names of the columns, and that a video is a path or bytes. No public text that was found has them.

    Args:
        source (`str`, *optional*, defaults to `"Dragonriser/VideoRewardBench"`):
            A file in JSON, JSON lines or parquet, or a dataset's hub id.
        columns (`dict[str, str]`, *optional*):
            The file's own names, by those of [`COLUMNS`]: `{"prompt": "question", "source": "category"}`.

    Returns:
        `list[dict]`: `id` (the row's number), `subset` (the dimension), `prompt`, `images` (none), `videos` (one),
        `responses` (chosen, rejected) and `preferred` (0).

    Raises:
        ValueError: If a column is missing, a dimension is none of the paper's, or a video is neither a path nor bytes.
            The row is named.
    """
    names, rows = named_columns(columns), []
    try:
        read = read_rows(source, tuple(names.values()))
    except ValueError as error:
        raise ValueError(
            f"{error} The names are assumed, since the public file was not seen. If yours differ, give them: `columns: "
            "{prompt: question, videos: video_path, source: category}`, say."
        ) from error
    for i, row in enumerate(read):
        row = {name: row[own] for name, own in names.items()}
        dimension, video = dimension_of(row["source"]), row["videos"]
        if dimension is None:
            raise ValueError(
                f"{source}, row {i}: the dimension is {row['source']!r}, and the paper's are {', '.join(DIMENSIONS)}. "
                "Give one of these."
            )
        if not isinstance(video, str | dict) or not video:
            raise ValueError(f"{source}, row {i}: the video is a {type(video).__name__}. Give a path or bytes.")
        rows.append(
            {
                "id": str(i),
                "subset": dimension,
                "prompt": row["prompt"],
                "images": [],
                "videos": [video],
                "responses": check_texts(source, i, [row["chosen"], row["rejected"]], 2),
                "preferred": 0,
            }
        )
    return rows


def summarize(rows: list[dict], scores: list[list[float]]) -> dict:
    """
    `overall` is the accuracy over all pairs, and `subsets` has each dimension's. These are the columns of the paper's
    table 4, whose overall numbers are the means over its 1,563 pairs. `macro` is the mean of the five dimensions. The
    paper does not give it. Where a dimension does not occur, `missing_subsets` names it, and `macro` is `None`.
    """
    results, dimensions = summarize_pairs(rows, scores), [row["subset"] for row in rows]
    missing = [name for name in DIMENSIONS if name not in dimensions]
    macro, interval = (None, None) if missing else mean_of_groups(dimensions, pair_credits(rows, scores))
    return results | {"macro": macro, "macro_interval": interval, "missing_subsets": missing}
