"""TRL's script arguments, and the names of a dataset's columns."""

from dataclasses import dataclass, field
from typing import Literal

from trl import ScriptArguments

from .mappings import read_mapping


# What the recipes read. `images` may be one image, and `videos` one video.
COLUMNS = ("id", "prompt", "images", "videos", "chosen", "rejected", "margin", "source", "answer")
COLUMNS += ("responses", "response", "finish_reasons")


@dataclass
class DatasetArguments(ScriptArguments):
    """
    [`~trl.ScriptArguments`] of a recipe whose `dataset_name` may have columns of other names, and rows that cannot be
    used. A recipe reads `max_refused` or `too_long`, and one that does not refuses it.

    Parameters:
        columns (`dict` or `str`, *optional*):
            Names that the recipe reads, each with the dataset's own name for it. A string is read as JSON.
        max_refused (`float`, *optional*, defaults to `0.01`):
            The fraction of the rows that may be unusable: they are left out, and listed in `refused.jsonl`. With more
            of them the run stops.
        too_long (`str`, *optional*, defaults to `"stop"`):
            Whether training stops for rows over `max_length`, or drops them.

    Raises:
        ValueError: If `columns` is not a mapping from names to names, has a name that no recipe reads, or one column
            twice; or if `max_refused` is no fraction.
    """

    columns: dict | str | None = field(
        default=None,
        metadata={
            "help": "The dataset's own names of columns, by the names that are read: "
            '`{"prompt": "question", "images": "image"}`.'
        },
    )
    max_refused: float = field(
        default=0.01, metadata={"help": "The largest fraction of rows that may be unusable. With more, the run stops."}
    )
    too_long: Literal["stop", "drop"] = field(
        default="stop",
        metadata={"help": "Rows over `max_length`: `stop` ends the run before its first step, `drop` leaves them out."},
    )

    def __post_init__(self):
        given, self.columns = self.columns, read_mapping(self.columns)
        if given is not None and not is_mapping_of_names(self.columns):
            raise ValueError(
                f"`columns: {given}` is no mapping from names to names. Write `columns: {{prompt: question}}` in the "
                """YAML, or `--columns '{"prompt": "question"}'` on the command line."""
            )
        check_columns(self.columns or {})
        if not 0 <= self.max_refused <= 1:
            raise ValueError(f"`max_refused: {self.max_refused}` is no fraction. 0.01 is one row in a hundred.")


def is_mapping_of_names(value: object) -> bool:
    """Whether a value is a dictionary from strings to strings."""
    return isinstance(value, dict) and all(isinstance(name, str) for pair in value.items() for name in pair)


def check_columns(columns: dict[str, str]):
    """
    Check a mapping of columns, from the names that are read to the dataset's own.

    Raises:
        ValueError: For a name that no recipe reads, or a column that would be read as two.
    """
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise ValueError(
            f"`columns` has {', '.join(unknown)}, which no recipe reads. These are read: {', '.join(COLUMNS)}. Write "
            "the name that is read first, then the dataset's own: `columns: {prompt: question}`."
        )
    if len(set(columns.values())) < len(columns):
        raise ValueError(f"`columns: {columns}` names one column of the dataset twice. Name each once.")
