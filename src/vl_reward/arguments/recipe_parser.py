"""How a recipe reads its configuration."""

import ast
import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

from trl import ModelConfig, ScriptArguments, TrlParser


# What of the model arguments is read by other names.
READ_BY = {
    "get_peft_config(": ("use_peft", "use_rslora", "use_dora", "lora_"),
    ".quantization_config": ("load_in_", "bnb_", "use_bnb_nested_quant"),
}


def check_choices(parsed: tuple) -> None:
    """
    Raises:
        ValueError: For a value that is none of its option's choices. argparse looks at the command line only.
    """
    for arguments in parsed:
        for field in dataclasses.fields(arguments) if dataclasses.is_dataclass(arguments) else ():
            value, choices = getattr(arguments, field.name), field.metadata.get("choices") or get_args(field.type)
            is_choice = "choices" in field.metadata or get_origin(field.type) is Literal
            if is_choice and value not in choices and value != field.default:
                known = ", ".join(map(str, choices))
                raise ValueError(f"`{field.name}: {value}`: there is no such choice. There are {known}.")


class RecipeParser(TrlParser):
    """
    [`~trl.TrlParser`] that runs a recipe's tiny config when no `--config` is given, and checks that inputs exist and
    that every option set is one that the recipe reads.

    Args:
        dataclass_types (`tuple`):
            The recipe's dataclasses.
        recipe (`str`):
            The recipe's `__file__`. Its tiny config is `configs/tiny/<recipe>.yaml` beside it, or `<recipe>.yaml` where
            a recipe was copied out together with its config.
        inputs (`tuple[str, ...]`):
            The arguments that name what an earlier step makes. Each recipe writes to `outputs/<world>/<recipe>`, so a
            missing path says which command to run.

    Raises:
        ValueError: For an unknown key, or an option of TRL's that the recipe does not read.
        FileNotFoundError: If an input is a local path that does not exist. The message holds the command to run.
    """

    def __init__(self, dataclass_types, recipe: str, inputs: tuple[str, ...]):
        super().__init__(dataclass_types)
        self.recipe = Path(recipe)
        self.inputs = inputs

    def parse_args_and_config(self, args=None, **kwargs):
        args = sys.argv[1:] if args is None else list(args)
        if "--config" not in args:
            name = self.recipe.stem
            configs = [self.recipe.with_suffix(".yaml"), self.recipe.parent / f"configs/tiny/{name}.yaml"]
            config = next((path for path in configs if path.exists()), configs[-1])
            if os.environ.get("RANK", "0") == "0":
                print(
                    f"No --config given: running {os.path.relpath(config)}, on the embedded digits world. "
                    f"The 7B run: {self.command_for_7b()}",
                    flush=True,
                )
            args = ["--config", str(config), *args]
        parsed = super().parse_args_and_config(args, **kwargs)
        check_choices(parsed)
        self.check_read(parsed)
        for namespace in parsed:  # a shell expands `~`, a YAML does not
            for key in {*self.inputs, "output_dir"} & vars(namespace).keys():
                if str(getattr(namespace, key)).startswith("~"):
                    setattr(namespace, key, str(Path(getattr(namespace, key)).expanduser()))
        values = {key: value for namespace in parsed for key, value in vars(namespace).items()}
        for key in self.inputs:
            # A hub id is `name` or `owner/name`; anything with more parts, or anchored, is a path.
            path = Path(str(values[key] or ""))
            is_path = len(path.parts) > 2 or path.is_absolute() or str(values[key]).startswith(".")
            if is_path and not path.exists():
                raise FileNotFoundError(f"`{key}: {path}` does not exist. Make it first: {self.command_for(path)}")
        return parsed

    def check_read(self, parsed: tuple) -> None:
        """TRL's model and script arguments have options for all of its scripts; what this one ignores is refused."""
        source = self.recipe.read_text()
        read = {name for function, names in READ_BY.items() if function in source for name in names}
        for arguments in parsed:
            if not isinstance(arguments, (ModelConfig, ScriptArguments)):
                continue
            for name, default in vars(type(arguments)()).items():
                value = getattr(arguments, name)
                if value != default and f".{name}" not in source and not name.startswith(tuple(read)):
                    raise ValueError(
                        f"`{name}: {value}` has no effect: {self.recipe.name} does not read it. Remove it."
                    )

    def command_for_7b(self) -> str:
        """The command in the recipe's docstring that runs it with its 7B config."""
        lines = (ast.get_docstring(ast.parse(self.recipe.read_text())) or "").splitlines()
        of_7b = [line for line in lines if f"recipes/{self.recipe.name}" in line and "qwen2_5_vl_7b" in line]
        return " ".join(of_7b[0].split()) if of_7b else "see the recipe's docstring"

    def command_for(self, path: Path) -> str:
        """The command that writes `outputs/<world>/<recipe>/...`, or builds the embedded world's inputs."""
        for part in reversed(path.parts):
            if self.recipe.with_name(f"{part}.py").exists():
                world = path.parts[path.parts.index(part) - 1]
                config = "" if world == "tiny" else f" --config recipes/configs/{world}/{part}.yaml"
                return f"accelerate launch recipes/{part}.py{config}"
        return "python -m vl_reward.tiny builds the embedded world's models and datasets; others are yours to bring"
