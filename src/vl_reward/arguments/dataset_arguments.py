"""TRL's script arguments, and the names of a dataset's columns."""

import json
from dataclasses import dataclass, field

from trl import ScriptArguments


@dataclass
class DatasetArguments(ScriptArguments):
    """
    [`~trl.ScriptArguments`] of a recipe whose `dataset_name` may have columns of other names.

    Parameters:
        columns (`dict` or `str`, *optional*):
            Names that the recipe reads, each with the dataset's own name for it. A string is read as JSON.

    Raises:
        ValueError: If `columns` is not a mapping from names to names.
    """

    # A `dict` alone could not be given on the command line: the parser would call `dict` on the text.
    columns: dict | str | None = field(
        default=None,
        metadata={
            "help": "The dataset's own names of columns, by the names that are read: "
            '`{"prompt": "question", "images": "image"}`.'
        },
    )

    def __post_init__(self):
        given = self.columns
        if isinstance(given, str):
            try:
                self.columns = json.loads(given)
            except json.JSONDecodeError:
                pass  # it is still a string, and refused
        if given is not None and not is_mapping_of_names(self.columns):
            raise ValueError(
                f"`columns: {given}` is no mapping from names to names. Write `columns: {{prompt: question}}` in the "
                """YAML, or `--columns '{"prompt": "question"}'` on the command line."""
            )


def is_mapping_of_names(value: object) -> bool:
    return isinstance(value, dict) and all(isinstance(name, str) for pair in value.items() for name in pair)
