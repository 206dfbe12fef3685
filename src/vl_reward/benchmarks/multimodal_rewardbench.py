"""Multimodal RewardBench (arXiv 2502.14191): six abilities of a vision-language model, one image each."""

from .benchmark_file import check_texts, read_rows
from .report.accuracy import summarize_pairs


HUB_ID = "syhuggingface/multimodal_rewardbench"  # a copy; the official file is made by the benchmark's own scripts
CATEGORIES = (
    "knowledge",
    "open_generation/correctness_task",
    "open_generation/preference_task",
    "reasoning/coding",
    "reasoning/math",
    "safety/bias",
    "safety/toxicity",
    "vqa",
)


def split_category(id: str, category: str) -> str:
    """The subset that `scripts/2_get_accuracy.py` counts a row under: it divides two categories by the id."""
    if category == "safety":
        return "safety/bias" if id.lower().startswith("pairs") else "safety/toxicity"
    if category == "reasoning":
        return "reasoning/math" if id.lower().startswith("math") else "reasoning/coding"
    return category


def load(source: str = HUB_ID) -> list[dict]:
    """
    Read Multimodal RewardBench, `data/all_data.json` as its scripts make it.

    Returns:
        `list[dict]`: `id`, `subset`, `prompt`, `images`, `responses` (`Output1`, `Output2`) and `preferred` (the index
        of the better one).

    Raises:
        ValueError: If `Better` names neither output.
    """
    rows = []
    for i, row in enumerate(read_rows(source, ("ID", "Category", "Text", "Output1", "Output2", "Better"), ("Image",))):
        if row["Better"] not in ("Output1", "Output2"):
            raise ValueError(f"{source}, row {i}: `Better` is {row['Better']!r}; Output1 or Output2 is needed.")
        rows.append(
            {
                "id": str(row["ID"]),
                "subset": split_category(str(row["ID"]), row["Category"]),
                "prompt": row["Text"],
                "images": [row["Image"]] if row["Image"] else [],
                "responses": check_texts(source, i, [row["Output1"], row["Output2"]], 2),
                "preferred": ("Output1", "Output2").index(row["Better"]),
            }
        )
    return rows


def summarize(rows: list[dict], scores: list[list[float]]) -> dict:
    """
    The numbers of `scripts/2_get_accuracy.py`: `overall` is the accuracy over all pairs; there is no macro average.
    The released file lacks the toxicity pairs of Hateful Memes, so `safety/toxicity` may be in `missing_subsets`.
    """
    results = summarize_pairs(rows, scores)
    return results | {"missing_subsets": sorted(set(CATEGORIES) - results["subsets"].keys())}
