"""How a recipe reads its configuration."""

import ast
import dataclasses
import os
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import yaml
from transformers import TrainingArguments
from trl import ModelConfig, ScriptArguments, TrlParser


# What of the model arguments is read by other names.
READ_BY = {
    ".peft_config": ("use_peft", "use_rslora", "use_dora", "lora_"),
    ".image_pixels": ("max_pixels", "max_image_tokens"),
    ".video_limits": ("video_",),
    ".quantization_config": ("load_in_", "bnb_", "use_bnb_nested_quant"),
}
# TRL's inputs, without which a recipe has nothing to do, and what may stand in place of each.
NEEDED = {"model_name_or_path": ("scores_file",), "dataset_name": ("benchmark",)}


def check_choices(parsed: tuple) -> None:
    """
    Check the values of options that have choices. argparse looks at the command line alone.

    Args:
        parsed (`tuple`):
            The recipe's dataclasses, filled.

    Raises:
        ValueError: For a value that is none of its option's choices.
    """
    for arguments in parsed:
        for field in dataclasses.fields(arguments) if dataclasses.is_dataclass(arguments) else ():
            value, choices = getattr(arguments, field.name), field.metadata.get("choices") or get_args(field.type)
            is_choice = "choices" in field.metadata or get_origin(field.type) is Literal
            if is_choice and value not in choices and value != field.default:
                known = ", ".join(map(str, choices))
                raise ValueError(f"`{field.name}: {value}`: there is no such choice. There are {known}.")


def check_processes(training_args: TrainingArguments) -> None:
    """
    Check that the processes of a training know of each other. accelerate takes each for the only one where it finds no
    GPU and was not told to use the CPU.

    Args:
        training_args ([`~transformers.TrainingArguments`]):
            A trainer's arguments.

    Raises:
        ValueError: If more processes were launched than a trainer would count.
    """
    launched = int(os.environ.get("WORLD_SIZE", 1))
    if launched != training_args.world_size:
        raise ValueError(
            f"{launched} processes were started, and each would train alone and write over the others' files: PyTorch "
            "finds no GPU. `nvidia-smi` and `CUDA_VISIBLE_DEVICES` say what there is. Without a GPU, add "
            "`use_cpu: true` (`--use_cpu true`)."
        )


def texts_in(value: object) -> list[str]:
    """All strings in what YAML gives."""
    if isinstance(value, dict | list):
        return [text for one in (value.values() if isinstance(value, dict) else value) for text in texts_in(one)]
    return [value] if isinstance(value, str) else []


class RecipeParser(TrlParser):
    """
    [`~trl.TrlParser`] that runs a recipe's own config when no `--config` is given, and checks that inputs are given and
    exist, and that every option set is one that the recipe reads.

    Args:
        dataclass_types (`tuple`):
            The recipe's dataclasses.
        recipe (`str`):
            The recipe's `__file__`. Its own config is `<recipe>.yaml` beside it, or else `configs/tiny/<recipe>.yaml`.
            Where there is neither, the command line is all there is.
        inputs (`tuple[str, ...]`):
            The arguments that name what an earlier step makes. Each recipe writes to `outputs/<world>/<recipe>`, so a
            missing path says which command to run.

    Raises:
        ValueError: For an unknown key, an option of TRL's that the recipe does not read, or an input that is not given.
        FileNotFoundError: If the config, or an input that is a local path, does not exist. The message says what to do.
    """

    def __init__(self, dataclass_types, recipe: str, inputs: tuple[str, ...]):
        super().__init__(dataclass_types)
        self.recipe = Path(recipe)
        self.inputs = inputs

    def parse_args_and_config(self, args=None, **kwargs):
        args = sys.argv[1:] if args is None else list(args)
        # TRL knows `--config FILE` alone, and takes `--config=FILE` for an unknown argument.
        args = [part for arg in args for part in (arg.split("=", 1) if arg.startswith("--config=") else [arg])]
        if "--config" not in args:
            args = [*self.own_config(), *args]
        elif not (path := Path(*args[args.index("--config") + 1 :][:1])).exists() or path.is_dir():
            raise FileNotFoundError(f"`--config {path}` is not a file. Name a YAML.")
        parsed = super().parse_args_and_config(args, **kwargs)
        check_choices(parsed)
        estimate = any(getattr(namespace, "estimate", False) for namespace in parsed)
        for namespace in parsed:
            if isinstance(namespace, TrainingArguments) and not estimate:
                check_processes(namespace)
        self.check_read(parsed)
        for namespace in parsed:  # a shell expands `~`, a YAML does not
            for key in {*self.inputs, "output_dir"} & vars(namespace).keys():
                if str(getattr(namespace, key)).startswith("~"):
                    setattr(namespace, key, str(Path(getattr(namespace, key)).expanduser()))
        self.check_inputs(parsed)
        return parsed

    def own_config(self) -> list[str]:
        """`--config` with the recipe's own config, or nothing where it has none. The main process prints which."""
        configs = [self.recipe.with_suffix(".yaml"), self.recipe.parent / f"configs/tiny/{self.recipe.stem}.yaml"]
        config = next((path for path in configs if path.exists()), None)
        if config is None:
            said = f"No --config given, and no {configs[0].name} beside the recipe: the command line is all there is."
        elif config == configs[-1] or self.is_embedded(config):
            said = f"No --config given: running {os.path.relpath(config)}, on the embedded digits world. "
            said += f"The 7B run: {self.command_for_7b()}"
        else:
            said = f"No --config given: running {os.path.relpath(config)}."
        if os.environ.get("RANK", "0") == "0":
            print(said, flush=True)
        return [] if config is None else ["--config", str(config)]

    def is_embedded(self, config: Path) -> bool:
        """Whether a config reads what `vl_reward.tiny` makes, as a copy of `configs/tiny/<recipe>.yaml` does."""
        values = yaml.safe_load(config.read_text())
        inputs = (
            {key: value for key, value in values.items() if key != "output_dir"} if isinstance(values, dict) else {}
        )
        return any(text.startswith("outputs/tiny/") for text in texts_in(inputs))

    def check_inputs(self, parsed: tuple) -> None:
        """
        Check that inputs are given, and that local ones exist.

        Args:
            parsed (`tuple`):
                The recipe's dataclasses, filled.

        Raises:
            ValueError: If TRL's model or dataset, which the recipe reads, is not given.
            FileNotFoundError: If an input that is a local path does not exist.
        """
        values = {key: value for namespace in parsed for key, value in vars(namespace).items()}
        of_trl = {key for one in parsed if isinstance(one, (ModelConfig, ScriptArguments)) for key in vars(one)}
        read = ["model_name_or_path"] if values.get("estimate") else self.inputs  # an estimate reads the config alone
        needed = {key: others for key, others in NEEDED.items() if key in read and key in of_trl}
        missing = [key for key, others in needed.items() if not any(values.get(one) for one in (key, *others))]
        if missing:
            raise ValueError(
                f"{' and '.join(f'`{key}`' for key in missing)} must be given: `--{missing[0]} ...` on the command "
                f"line, or `{missing[0]}: ...` in a YAML that `--config` names. "
                f"`python {self.recipe.name} --help` lists all options."
            )
        for key in read:
            # A hub id is `name` or `owner/name`; anything with more parts, or anchored, is a path.
            path = Path(str(values[key] or ""))
            is_path = len(path.parts) > 2 or path.is_absolute() or str(values[key]).startswith(".")
            if is_path and not path.exists():
                raise FileNotFoundError(f"`{key}: {path}` does not exist. {self.remedy_for(path)}")

    def check_read(self, parsed: tuple) -> None:
        """
        Refuse options that the recipe does not read. TRL's model and script arguments have those of all its scripts.

        Args:
            parsed (`tuple`):
                The recipe's dataclasses, filled.

        Raises:
            ValueError: For an option that has another value than its default, and is not read.
        """
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
        of_7b = [line for line in lines if "recipes/" in line and "qwen2_5_vl_7b" in line]
        of_7b = [line for line in of_7b if f"recipes/{self.recipe.name}" in line] or of_7b  # or it was renamed
        return " ".join(of_7b[0].split()) if of_7b else "see the recipe's docstring"

    def remedy_for(self, path: Path) -> str:
        """
        What to do about an input that is not there: the command that makes `path`, where a recipe or the embedded world
        does.
        """
        parts = path.parts
        for number in range(len(parts) - 1, 1, -1):
            world, part = parts[number - 1 : number + 1]
            if parts[number - 2] == "outputs" and self.recipe.with_name(f"{part}.py").exists():
                config = "" if world == "tiny" else f" --config recipes/configs/{world}/{part}.yaml"
                return f"Make it first: accelerate launch recipes/{part}.py{config}"
        if parts[:2] == ("outputs", "tiny"):
            return "Make it first: python -m vl_reward.tiny builds the embedded world's models and datasets."
        return f"Check the path; a relative one begins at {Path.cwd()}."
