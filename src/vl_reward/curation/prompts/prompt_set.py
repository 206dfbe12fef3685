"""Prompts of all sources on their way to one set."""

import json
from collections import Counter, defaultdict
from pathlib import Path

from datasets import Dataset, DatasetDict, Value, concatenate_datasets

from ...benchmarks.contamination import RowContent
from ...data.content_groups import group_by_content
from ...data.json_rows import as_dataset
from ...data.text_keys import normalize
from ..pair_curation import with_content_fingerprint
from ..steps.decontamination import BenchmarkContent, benchmark_row_ids
from ..steps.mixture import split_and_order
from .prompt_rows import PROMPT_FEATURES, read_batch
from .prompt_source import PromptSource


N_EXAMPLES = 3


class PromptSet:
    """
    Reads the prompts of all sources, leaves out what must not be in the set, and keeps the account of it.

    Args:
        sources (`list[PromptSource]`):
            Sources named first keep theirs where two hold the same prompt.
        work_dir (`Path`):
            Where intermediate files go.
        num_proc (`int`, *optional*):
            Processes that read rows and decode images.

    Attributes:
        refused (`list[dict]`): `source`, `id`, `reason` and, if that is why, `image` of every row that is bad.
        report (`dict`): How many rows each source has, and how many each step left out, for which reason.

    Raises:
        ValueError: If there is no source, or two have the same name.
    """

    def __init__(self, sources: list[PromptSource], work_dir: Path, num_proc: int | None = None):
        names = [source.name for source in sources]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"sources: they are called {names}. Give at least one, each with a name of its own.")
        self.prefixes = {source.name: source.source.benchmark_id_prefix for source in sources}
        self.rows = concatenate_datasets([part for one in sources for part in self.load(one, work_dir, num_proc)])
        names = [name for name in PROMPT_FEATURES if name not in ("prompt", "images")]  # those stay on disk
        self.columns = {name: self.rows[name][:] for name in names}
        self.columns["answer"] = [answer and json.loads(answer) for answer in self.columns["answer"]]
        names = {"source": "source", "id": "origin", "reason": "refused", "image": "bad_image"}
        told = zip(*(self.columns[name] for name in names.values()), strict=True)
        self.refused = [dict(zip(names, row, strict=True)) for row in told if row[2]]
        self.kept, self.report = list(range(len(self.rows))), {"rows": Counter(self.columns["source"]), "steps": {}}
        self.leave_out("bad rows", dict(enumerate(self.column("refused"))))
        self.leave_out("rows without a prompt", dict(enumerate(self.column("not_meant"))))

    @staticmethod
    def load(source: PromptSource, work_dir: Path, num_proc: int | None) -> list[Dataset]:
        """
        All rows of a source in [`PROMPT_FEATURES`], in parts. Rows that cannot be used are among them.

        Args:
            source ([`PromptSource`]):
                The source.
            work_dir (`Path`), num_proc (`int`, *optional*):
                As [`PromptSet`] takes them.
        """
        parts, n_rows = [], 0
        settings = {"prompt_of": source.prompt_of, "source": source.name, "allow_urls": source.source.allow_urls}
        for number, (rows, root) in enumerate(source.read(str(work_dir / "cache"))):
            rows = rows.add_column("__index__", list(range(n_rows, n_rows + len(rows))))
            n_rows += len(rows)
            parts.append(
                rows.map(
                    read_batch,
                    batched=True,
                    batch_size=100,
                    remove_columns=rows.column_names,
                    features=PROMPT_FEATURES,
                    fn_kwargs=settings | {"root": root},
                    num_proc=num_proc if num_proc and len(rows) > 1000 else None,
                    cache_file_name=str(work_dir / f"prompts-{source.name}-{number}.arrow"),
                    load_from_cache_file=False,
                    desc=f"Prompts of {source.name}",
                )
            )
        return parts

    def column(self, name: str) -> list:
        """The column `name` of the rows that are still there, as a list."""
        return [self.columns[name][i] for i in self.kept]

    def leave_out(self, step: str, reasons: dict[int, str | None]) -> None:
        """
        Leave out rows, and report the step.

        Args:
            step (`str`):
                Its name in the report.
            reasons (`dict[int, str | None]`):
                Why a row goes, by its position among those that are still there. One with `None` stays.
        """
        examples, reasons = defaultdict(list), {position: reason for position, reason in reasons.items() if reason}
        for position, reason in sorted(reasons.items()):
            row = self.kept[position]
            examples[reason].append(f"{self.columns['source'][row]}: {self.columns['origin'][row]}")
        self.report["steps"][step] = {
            "in": len(self.kept),
            "out": len(self.kept) - len(reasons),
            "left_out": dict(Counter(reasons.values()).most_common()),
            "examples": {reason: rows[:N_EXAMPLES] for reason, rows in examples.items()},
        }
        self.kept = [i for position, i in enumerate(self.kept) if position not in reasons]

    def check_refused(self, max_refused: float) -> None:
        """
        Raises:
            ValueError: If more than the fraction `max_refused` of all rows is bad.
        """
        if len(self.refused) > max_refused * len(self.rows):
            reasons = Counter(f"{row['source']}: {row['reason']}" for row in self.refused).most_common(3)
            raise ValueError(
                f"{len(self.refused):,} of {len(self.rows):,} rows are bad, and `max_refused` is {max_refused}. Most: "
                + "; ".join(f"{n:,} {reason}" for reason, n in reasons)
                + ". See refused.jsonl: mend them, choose another `format`, or raise `max_refused`."
            )

    def leave_out_without_answer(self) -> None:
        """Leave out prompts without an answer."""
        answers = self.column("answer")
        self.leave_out("answers", {i: "it has no answer" for i, one in enumerate(answers) if one is None})

    def leave_out_duplicates(self) -> None:
        """Of prompts with the same text and images, the first that has an answer stays; none, where answers differ."""
        groups, sources, answers = defaultdict(list), self.column("source"), self.column("answer")
        for i, key in enumerate(zip(self.column("prompt_key"), map(tuple, self.column("pixel_hashes")), strict=True)):
            groups[key].append(i)
        reasons = {}
        for rows in groups.values():
            known = [i for i in rows if answers[i] is not None]
            if known and not set.intersection(*(texts_of(answers[i]) for i in known)):
                reasons |= dict.fromkeys(rows, "the same prompt has different answers")
                continue
            first = (known or rows)[0]
            reasons |= {i: f"equal to a prompt of {sources[first]}" for i in rows if i != first}
        self.leave_out("duplicates", reasons)

    def leave_out_contaminated(self, benchmark: BenchmarkContent, max_hamming_distance: int) -> None:
        """
        Leave out prompts that are a benchmark's, by their text or their images.

        Args:
            benchmark ([`BenchmarkContent`]):
                The benchmark.
            max_hamming_distance (`int`):
                Bits of 64 in which the perceptual hashes of one image may differ.
        """
        columns, contents = map(self.column, ("prompt_key", "pixel_hashes", "perceptual_hashes")), []
        for key, pixels, hashes in zip(*columns, strict=True):
            contents.append(RowContent(key, [], pixels, [int(digits, 16) for digits in hashes], bool(pixels)))
        step = f"decontamination: {benchmark.name}"
        ids = benchmark_row_ids([self.prefixes[name] for name in self.column("source")], self.column("index"))
        self.leave_out(step, benchmark.reasons(contents, ids, max_hamming_distance))
        self.report["steps"][step]["benchmark_images_not_read"] = benchmark.images_not_read

    def datasets(self, test_fraction: float, seed: int) -> DatasetDict:
        """
        The prompts that are left, as `train` and `test`. Those that share an image, directly or through others, are all
        in one of them.

        Args:
            test_fraction (`float`):
                The share of prompts that `test` has.
            seed (`int`):
                Decides which, and the order.

        Raises:
            ValueError: If there is no prompt to train on.
        """
        shown = zip(self.column("pixel_hashes"), self.column("prompt_key"), strict=True)
        groups = group_by_content([set(pixels) or {prompt} for pixels, prompt in shown])
        train, test = split_and_order(self.column("id"), groups, test_fraction, seed)
        splits = {"train": train, "test": test}
        self.report |= {name: len(positions) for name, positions in splits.items()}
        if not splits["train"]:
            raise ValueError(f"No prompt is left to train on: {self.report}. Relax a step, or lower `test_fraction`.")
        return DatasetDict(
            {name: self.dataset([*map(self.kept.__getitem__, rows)]) for name, rows in splits.items() if rows}
        )

    def dataset(self, rows: list[int]) -> Dataset:
        """`id`, `prompt`, `images` and `answer` of the rows with the numbers `rows`. Answers keep their types."""
        ids = [self.columns["id"][i] for i in rows]
        told = as_dataset(
            [{"id": id, "answer": self.columns["answer"][i]} for id, i in zip(ids, rows, strict=True)], ""
        )
        if told.features["answer"] == Value("null"):
            told = told.cast_column("answer", Value("string"))
        shown = self.rows.select(rows).select_columns(["prompt", "images"])
        columns = concatenate_datasets([told, shown], axis=1).select_columns(["id", "prompt", "images", "answer"])
        return with_content_fingerprint(columns, ids)


def texts_of(answer: object) -> set[str]:
    """The texts of an answer, or of all that are accepted, as they are compared: 9.0 is 9."""
    answers = answer if isinstance(answer, list) else [answer]
    return {normalize(str(int(one) if isinstance(one, float) and one.is_integer() else one)) for one in answers}
