"""How recipes read their configuration: the tiny default, overrides, typos, and inputs that do not exist."""

from dataclasses import dataclass, field

import pytest
from trl import RewardConfig, ScriptArguments

from vl_reward import RecipeParser, VisionModelConfig


@dataclass
class Arguments:
    model_name_or_path: str = field(default="nobody/nothing")
    batch_size: int = field(default=1)


@pytest.fixture
def recipe(tmp_path):
    (tmp_path / "configs/tiny").mkdir(parents=True)
    (tmp_path / "configs/tiny/train.yaml").write_text("batch_size: 2\n")
    command = "accelerate launch recipes/train.py \\\n    --config recipes/configs/qwen2_5_vl_7b/train.yaml"
    (tmp_path / "train.py").write_text(f'"""\nTrains.\n\n{command}\n"""\n')
    (tmp_path / "prepare.py").touch()
    return str(tmp_path / "train.py")


def parse(recipe, *args):
    return RecipeParser((Arguments,), recipe, ("model_name_or_path",)).parse_args_and_config(args)[0]


def test_without_config_the_tiny_one_runs_and_says_so(recipe, capsys):
    assert parse(recipe).batch_size == 2
    first_line = capsys.readouterr().out.splitlines()[0]
    assert "configs/tiny/train.yaml" in first_line
    command = "accelerate launch recipes/train.py --config recipes/configs/qwen2_5_vl_7b/train.yaml"
    assert first_line.endswith(f"The 7B run: {command}")


def test_only_the_main_process_says_so(recipe, capsys, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    parse(recipe)
    assert capsys.readouterr().out == ""


def test_command_line_wins_over_config_wins_over_default(recipe, tmp_path):
    (tmp_path / "other.yaml").write_text("batch_size: 3\n")
    assert parse(recipe, "--config", str(tmp_path / "other.yaml")).batch_size == 3
    assert parse(recipe, "--config", str(tmp_path / "other.yaml"), "--batch_size", "4").batch_size == 4
    assert parse(recipe, "--batch_size", "4").batch_size == 4


def test_config_beside_a_copied_recipe_is_found(recipe, tmp_path):
    (tmp_path / "train.yaml").write_text("batch_size: 5\n")
    assert parse(recipe).batch_size == 5


def test_typo_stops_the_run(recipe, tmp_path):
    (tmp_path / "typo.yaml").write_text("batch_sise: 3\n")
    with pytest.raises(ValueError, match="batch_sise"):
        parse(recipe, "--config", str(tmp_path / "typo.yaml"))
    with pytest.raises(ValueError, match="batch_sise"):
        parse(recipe, "--batch_sise", "3")


@pytest.mark.parametrize(
    ("path", "command"),
    [
        ("outputs/tiny/prepare", "accelerate launch recipes/prepare.py$"),
        ("outputs/tiny/prepare/data", "accelerate launch recipes/prepare.py$"),
        ("outputs/7b/prepare", "accelerate launch recipes/prepare.py --config recipes/configs/7b/prepare.yaml$"),
        ("outputs/tiny/base", "python -m vl_reward.tiny"),
    ],
)
def test_missing_input_names_the_command_that_makes_it(recipe, path, command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=f"`model_name_or_path: {path}` does not exist. Make it first: {command}"
    ):
        parse(recipe, "--model_name_or_path", path)
    (tmp_path / path).mkdir(parents=True)
    assert parse(recipe, "--model_name_or_path", path).model_name_or_path == path


def test_hub_ids_are_not_taken_for_paths(recipe):
    assert parse(recipe, "--model_name_or_path", "Qwen/Qwen2.5-VL-7B-Instruct")


def test_number_in_scientific_notation_is_a_number(recipe, tmp_path):
    """YAML reads `1e-5` as a string."""
    (tmp_path / "lr.yaml").write_text(f"output_dir: {tmp_path}\nlearning_rate: 1e-5\nbf16: false\nuse_cpu: true\n")
    parser = RecipeParser((ScriptArguments, RewardConfig, VisionModelConfig), recipe, ())
    assert parser.parse_args_and_config(["--config", str(tmp_path / "lr.yaml")])[1].learning_rate == 1e-5
