"""Numbers that are counted from the rows of a run: best of n, calibration, and what MPO changed."""

import math
from statistics import fmean

from .gallery import WORDS, text_of
from .run_files import RunFiles


BINS = 8


def best_of_n(lines: list[dict]) -> list[dict]:
    """Accuracy of the first, of the best scored and of any among the first n samples, for each n."""
    lines = [line for line in lines if "samples" in line]
    points = []
    for n in range(1, len(lines[0]["samples"]) + 1) if lines else ():
        right = [line["is_correct"][:n] for line in lines]
        ranks = [[-math.inf if s is None else s for s in line["scores"][:n]] for line in lines]
        best = fmean(row[s.index(max(s))] for row, s in zip(right, ranks, strict=True))
        points.append({"n": n, "mean": fmean(map(fmean, right)), "best": best, "pass": fmean(map(any, right))})
    return points


def calibration(lines: list[dict]) -> list[dict]:
    """In bins of as many pairs: the odds that Bradley-Terry says of the preferred one, and how often it was right."""
    gaps = sorted((line["scores"][0] - line["scores"][1] for line in lines), key=abs)
    bins = []
    n_bins = min(BINS, len(gaps))
    for number in range(n_bins):
        part = gaps[len(gaps) * number // n_bins : len(gaps) * (number + 1) // n_bins]
        said = fmean(1 / (1 + math.exp(-abs(gap))) for gap in part)
        was = fmean(0.5 if gap == 0 else float(gap > 0) for gap in part)
        bins.append({"gap": fmean(map(abs, part)), "said": said, "was": was, "pairs": len(part)})
    return bins


def changes(run: RunFiles) -> dict:
    """Greedy responses that were wrong before MPO and right after it, and the other way round."""
    before = {line["id"]: line for line in run.lines("evaluate_policy/responses.jsonl")}
    after = {line["id"]: line for line in run.lines("evaluate_mpo/responses.jsonl")}
    prompts = run.dataset("prompts", "test") if before and after else None
    if prompts is None:
        return {}
    found = {"gained": [], "lost": [], "both_right": 0, "both_wrong": 0}
    for row in prompts.select_columns(["id", "prompt", "answer"]):
        if row["id"] not in before or row["id"] not in after:
            continue
        texts = [before[row["id"]]["greedy"], after[row["id"]]["greedy"]]
        words = [run.verify(text, row["answer"]) for text in texts]
        shown = {"id": row["id"], "prompt": text_of(row["prompt"]), "answer": str(row["answer"])}
        shown |= {"before": texts[0], "after": texts[1], "words": [WORDS[word] for word in words]}
        if bool(words[0]) == bool(words[1]):
            found["both_right" if words[0] else "both_wrong"] += 1
        else:
            found["gained" if words[1] else "lost"].append(shown)
    # Both recipes wrote their own counts: another verifier, or other prompts, would show here.
    total = sum(len(value) if isinstance(value, list) else value for value in found.values())
    told = [run.json(f"evaluate_{name}/results.json").get("greedy_accuracy") for name in ("policy", "mpo")]
    counted = [(found["both_right"] + len(found[key])) / max(1, total) for key in ("lost", "gained")]
    agrees = all(t is not None and math.isclose(t, c, abs_tol=1e-9) for t, c in zip(told, counted, strict=True))
    return found | {"agrees": agrees, "counted": counted}
