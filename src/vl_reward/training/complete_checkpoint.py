"""Checkpoints that count only once they are whole, and the run that they belong to."""

import hashlib
import importlib.metadata
import itertools
import json
import logging
import os
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset
from transformers import ProcessorMixin, Trainer
from transformers.trainer_utils import sort_checkpoints

from ..data.videos.frame_limits import FrameLimits


logger = logging.getLogger(__name__)

MARKER = "complete.json"
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def settings_of(trainer: Trainer) -> dict:
    """
    What a resumed run must have in common with the run of `trainer`, for its data to go on where they were: processes,
    batches, seed, rows, and the limits of their videos.
    """
    args, dataset = trainer.args, trainer.train_dataset
    columns = dataset.column_names or []
    ids = "\0".join(map(str, dataset["id"])) if "id" in columns else ""
    with_videos = {"videos", "video"} & {*columns} and isinstance(trainer.processing_class, ProcessorMixin)
    return {
        "processes": args.world_size,
        "per_device_train_batch_size": args.per_device_train_batch_size,
        "gradient_accumulation_steps": args.gradient_accumulation_steps,
        "seed": args.seed,
        "rows": len(dataset) if isinstance(dataset, Dataset) else None,
        "ids": hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()[:16],
        "video_limits": asdict(FrameLimits.of(trainer.processing_class)) if with_videos else None,
    }


def mark_complete(folder: Path, settings: dict) -> None:
    """
    Write the marker of a checkpoint, once all files of `folder` are there: their names and sizes, what
    [`settings_of`] gives as `settings`, and the versions of packages.
    """
    files = [path for path in folder.rglob("*") if path.is_file() and path != folder / MARKER]
    sizes = {str(path.relative_to(folder)): path.stat().st_size for path in files}
    versions = {name: importlib.metadata.version(name) for name in PACKAGES}
    partial = folder / f"{MARKER}.partial"
    with open(partial, "w", encoding="utf-8") as file:
        json.dump({"files": sizes, "settings": settings, "versions": versions}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, folder / MARKER)


def what_is_wrong(folder: Path) -> str | None:
    """Why a checkpoint is not whole, or `None` if it is."""
    if not (folder / MARKER).exists():
        return f"it has no {MARKER}: it was being written when the run was stopped"
    sizes = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
    there = {name: (folder / name).stat().st_size for name in sizes if (folder / name).exists()}
    changed = [name for name, size in sizes.items() if there.get(name) != size]
    return f"{len(changed)} of its files are missing or have another size, such as {changed[0]}" if changed else None


def newest_complete(output_dir: str, move_aside: bool) -> str | None:
    """
    The newest whole checkpoint in `output_dir`, or `None`. With `move_aside`, newer ones become
    `broken-1-checkpoint-...`.
    """
    for path in reversed(sort_checkpoints(output_dir) if Path(output_dir).is_dir() else []):
        reason = what_is_wrong(Path(path))
        if reason is None:
            return path
        logger.warning(f"{path} is not resumed from: {reason}. It is moved aside.")
        if move_aside:
            names = (Path(path).with_name(f"broken-{number}-{Path(path).name}") for number in itertools.count(1))
            os.rename(path, next(name for name in names if not name.exists()))
    return None


def check_resumable(checkpoint: str, settings: dict) -> None:
    """
    Check that a run can go on from a checkpoint, and warn where it was written with other versions of packages.

    Args:
        checkpoint (`str`):
            Its folder.
        settings (`dict`):
            What [`settings_of`] gives for this run.

    Raises:
        ValueError: If the checkpoint is not whole, or of a run with other data, batches or processes.
    """
    folder = Path(checkpoint)
    if reason := what_is_wrong(folder):
        raise ValueError(
            f"`resume_from_checkpoint: {checkpoint}`: {reason}. Give an older one, or `true` for the newest whole one."
        )
    marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
    if changed := {key: (was, settings[key]) for key, was in marker["settings"].items() if settings[key] != was}:
        told = ", ".join(f"{key} was {was} and is {now}" for key, (was, now) in changed.items())
        raise ValueError(
            f"`resume_from_checkpoint: {checkpoint}`: {told}. Rows would be left out or seen twice. Resume with what "
            "the run was started with, or start anew from its weights: give the checkpoint as `model_name_or_path`."
        )
    for name, was in marker["versions"].items():
        if (now := importlib.metadata.version(name)) != was:
            logger.warning(f"{checkpoint} was written with {name} {was}, and this is {now}: results may differ.")
