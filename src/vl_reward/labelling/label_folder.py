"""The folder of a labelling's results, in which nothing is replaced that a labelling did not write."""

import hashlib
import json
import os
import shutil
from pathlib import Path


RESULTS = ("preferences", "README.md", "labels.json", "scores.jsonl")
MANIFEST = ".labels_written.json"


class LabelFolder:
    """
    Collects results in `<path>/.labelling` and puts them in place of those of an earlier labelling. What was written is
    kept in a manifest, with a hash of each file: others, and those that were changed since, are not touched.

    Args:
        path (`str` or `Path`):
            The folder. It may hold other files.

    Attributes:
        partial (`Path`): Where results are collected.

    Raises:
        ValueError: If what a labelling writes is there, but not from a labelling.
    """

    def __init__(self, path: str | Path):
        self.path, self.partial = Path(path), Path(path) / ".labelling"
        self.check()

    def check(self) -> None:
        """
        Raises:
            ValueError: If a result would replace what is not from a labelling, or was changed since.
        """
        written = self._written()
        present = signatures(self.path)
        others = sorted(name for name, signature in present.items() if signature not in written.get(name, []))
        if others:
            raise ValueError(
                f"`output_dir: {self.path}` holds {', '.join(others[:5])}, which no labelling wrote, or which was "
                "changed since. The result would replace it: move it, or choose another `output_dir`."
            )

    def begin(self) -> None:
        """Make an empty `partial`."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)

    def finish(self) -> None:
        """Put what is in `partial` in place of the former results, after [`check`]. Raises what it does."""
        self.check()
        new, former = signatures(self.partial), self._written()
        names = former.keys() | new.keys()
        # A stop from here on leaves files of either, all of them known.
        self._write({name: [*former.get(name, []), *([new[name]] if name in new else [])] for name in names})
        for result in RESULTS:
            target = self.path / result
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
            if (self.partial / result).exists():
                os.replace(self.partial / result, target)
        self._write({name: [signature] for name, signature in new.items()})
        shutil.rmtree(self.partial)

    def _written(self) -> dict[str, list[str]]:
        manifest = self.path / MANIFEST
        return json.loads(manifest.read_text()) if manifest.exists() else {}

    def _write(self, written: dict[str, list[str]]) -> None:
        temporary = self.path / f"{MANIFEST}.new"
        temporary.write_text(json.dumps(written, indent=2))
        os.replace(temporary, self.path / MANIFEST)


def signatures(folder: Path) -> dict[str, str]:
    """The size and a hash of the first MiB of each result's files in `folder`, by their names."""
    found = {}
    for result in RESULTS:
        path = folder / result
        for file in sorted(path.rglob("*")) if path.is_dir() and not path.is_symlink() else [path]:
            if file.is_symlink():
                found[file.relative_to(folder).as_posix()] = "a link"
            elif file.is_file():
                with open(file, "rb") as opened:
                    digest = hashlib.sha256(opened.read(2**20)).hexdigest()
                found[file.relative_to(folder).as_posix()] = f"{file.stat().st_size} {digest}"
    return found
