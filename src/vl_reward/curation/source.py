"""A public preference set in a mixture: where it is, and how it is read."""

import importlib
import math
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path

from datasets import Dataset, concatenate_datasets, load_dataset

from ..data.splits import split_of
from .audit import CurationAudit
from .conversion import convert
from .pair import PAIR_FEATURES
from .public_rows import undecoded


FORMATS = sorted(path.stem for path in (Path(__file__).parent / "sources").glob("[!_]*.py"))


def check_types(entry: dict, types: dict[str, type]) -> None:
    """
    Check the types of an `entry` of the YAML against `types`, by key.

    Raises:
        ValueError: For a value that is of another type than its key's, as a number in quotes.
    """
    for key, value in entry.items():
        wanted = types[key] | int if types[key] in (float, float | None) else types[key]
        if not isinstance(value, wanted) or isinstance(value, bool) and types[key] is not bool:
            raise ValueError(
                f"sources: {entry.get('name')} has {key} {value!r}, a {type(value).__name__}, and {wanted} is needed."
            )


@dataclass
class PreferenceSource:
    """
    One entry of the mixture in a YAML.

    Args:
        name (`str`):
            What the audit, the card and the column `source` call it.
        format (`str`):
            The file in `curation/sources` whose `read` and `pairs` read it.
        path (`str`):
            A hub id, a JSON, JSONL or parquet file, a folder of parquet files, a dataset saved to disk, or MMPR's
            `meta.json`.
        config (`str`, *optional*), split (`str`, *optional*, defaults to `"train"`):
            Of a dataset on the hub or saved to disk.
        streaming (`bool`, *optional*, defaults to `False`):
            Read the first `max_rows` of a hub set, and fetch no more of it.
        max_rows (`int`, *optional*):
            Read the first rows only.
        max_pairs (`int`, *optional*):
            Keep at most this many pairs after curation, drawn by seed.
        weight (`float`, *optional*):
            Share of the mixture, relative to the other sources' weights. All sources have one, or none.
        image_root (`str`, *optional*):
            The folder that image paths begin at and may not leave. Defaults to the folder of a local file.
        allow_urls (`bool`, *optional*, defaults to `False`):
            Download images that are given as URLs, 10 seconds and 64 MiB each at most.
        frames_as_images (`bool`, *optional*, defaults to `True`):
            Whether a video's frames are images, as if they had nothing to do with each other. Else the pair that is
            written has them as one video. On the way they are images: duplicates and tokens are counted so.
        benchmark_id_prefix (`str`, *optional*):
            Ids of a benchmark that begin with it end in a row number of this set, as VL-RewardBench's `RLAIF-V-14`.
        license (`str`, *optional*):
            For the dataset card. Defaults to what the format's file says.
    """

    name: str
    format: str
    path: str
    config: str | None = None
    split: str = "train"
    streaming: bool = False
    max_rows: int | None = None
    max_pairs: int | None = None
    weight: float | None = None
    image_root: str | None = None
    allow_urls: bool = False
    frames_as_images: bool = True
    benchmark_id_prefix: str | None = None
    license: str | None = None

    @classmethod
    def from_yaml(cls, entry: dict) -> "PreferenceSource":
        """
        A source from `entry`, one of the YAML's `sources`.

        Raises:
            ValueError: For a key that does not exist, one that is missing, or an unknown format.
            FileNotFoundError: If `path` is local and does not exist.
        """
        known = [item.name for item in fields(cls)]
        if unknown := sorted(set(entry) - set(known)):
            raise ValueError(f"sources: {entry.get('name')} has the keys {unknown}; there are {', '.join(known)}.")
        if missing := [key for key in ("name", "format", "path") if not entry.get(key)]:
            raise ValueError(f"sources: {entry} lacks {missing}. Every source needs a name, a format and a path.")
        check_types(entry, {item.name: item.type for item in fields(cls)})
        source = cls(**entry)
        if source.format not in FORMATS:
            raise ValueError(f"sources: {source.name} has the format {source.format}; there are {', '.join(FORMATS)}.")
        if source.is_path and not Path(source.path).exists():
            raise FileNotFoundError(
                f"sources: {source.name}: {source.path} does not exist. Fetch it first; those of configs/tiny are made "
                "by: python -m vl_reward.tiny.public_sets"
            )
        if source.streaming and not source.max_rows:
            raise ValueError(f"sources: {source.name} has `streaming` without `max_rows`: say how many rows to read.")
        for key in ("weight", "max_rows", "max_pairs"):
            value = getattr(source, key)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"sources: {source.name} has {key} {value}. It must be above 0, or left out.")
        if source.image_root is not None and not Path(source.image_root).is_dir():
            raise FileNotFoundError(f"sources: {source.name}: image_root {source.image_root} is not a folder.")
        source.license = source.license or source.module.LICENSE
        return source

    @property
    def module(self):
        """The format's file in `curation/sources`."""
        return importlib.import_module(f"vl_reward.curation.sources.{self.format}")

    @property
    def is_path(self) -> bool:
        """Whether `path` is a local one. A hub id is `name` or `owner/name`, without a file's ending."""
        parts = Path(self.path).parts
        return Path(self.path).exists() or len(parts) > 2 or Path(self.path).suffix in (".json", ".jsonl", ".parquet")

    def load(self, work_dir: Path, audit: CurationAudit, num_proc: int | None = None) -> Dataset:
        """
        All pairs of the set in [`PAIR_FEATURES`]. Public rows that hold none are counted in the audit.

        Args:
            work_dir (`Path`):
                Where intermediate files go. Nothing is taken from an earlier run: files may have changed since.
            audit ([`CurationAudit`]):
                Where the source is recorded.
            num_proc (`int`, *optional*):
                Processes that convert rows.

        Raises:
            ValueError: If no row holds a pair.
        """
        settings = {"pairs": self.module.pairs, "source": self.name, "allow_urls": self.allow_urls}
        settings |= {"frames_as_images": self.frames_as_images}
        parts, n_rows = [], 0
        for number, (rows, root) in enumerate(self.read(str(work_dir / "cache"))):
            rows = rows.add_column("__index__", list(range(n_rows, n_rows + len(rows))))
            n_rows += len(rows)
            parts.append(
                rows.map(
                    convert,
                    batched=True,
                    batch_size=100,
                    remove_columns=rows.column_names,
                    features=PAIR_FEATURES,
                    fn_kwargs={**settings, "root": root},
                    num_proc=num_proc if num_proc and len(rows) > 1000 else None,
                    cache_file_name=str(work_dir / f"pairs-{self.name}-{number}.arrow"),
                    load_from_cache_file=False,
                    desc=f"Pairs of {self.name}",
                )
            )
        outcomes = concatenate_datasets(parts)
        reasons = outcomes["skipped"][:]
        skipped = [(reason, text) for reason, text in zip(reasons, outcomes["excerpt"], strict=True) if reason]
        pairs = outcomes.select([i for i, reason in enumerate(reasons) if reason is None])
        audit.record_source(self.name, n_rows, len(pairs), skipped, path=self.path, license=self.license)
        if not len(pairs):
            raise ValueError(
                f"sources: {self.name}: none of {n_rows:,} rows holds a pair in the format {self.format}: "
                f"{dict(Counter(reasons).most_common(3))}. Is it another format's set?"
            )
        return pairs

    def read(self, cache: str) -> list[tuple[Dataset, str | None]]:
        """The public rows as they are, in parts with the folder of their images. `cache` is for files on the way."""
        if self.is_path:
            parts = self.module.read(Path(self.path), self.image_root, cache)
        else:
            dataset = undecoded(load_dataset(self.path, self.config, split=self.split, streaming=self.streaming))
            if self.streaming:
                dataset = Dataset.from_list(list(dataset.take(self.max_rows)), features=dataset.features)
            parts = [(dataset, self.image_root)]
        parts = [(split_of(rows, self.split, f"split` of the source `{self.name}"), root) for rows, root in parts]
        return [(undecoded(rows.take(min(self.max_rows or len(rows), len(rows)))), root) for rows, root in parts]
