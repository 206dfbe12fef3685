"""How recipes read their configuration: the tiny default, overrides, typos, and inputs that do not exist."""

import shutil
from dataclasses import dataclass, field, fields
from pathlib import Path

import pytest
from test_configs import RECIPES, dataclasses_of
from trl import RewardConfig, ScriptArguments

from vl_reward import DatasetArguments, RecipeParser, VisionModelConfig


@dataclass
class Arguments:
    model_name_or_path: str = field(default="nobody/nothing")
    batch_size: int = field(default=1)
    output_dir: str | None = field(default=None)
    sources: list[dict] = field(default_factory=list)


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


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("batch_size: 5\n", "running train.yaml.\n"),
        ("output_dir: outputs/tiny/train\nbatch_size: 5\n", "running train.yaml.\n"),
        (
            "batch_size: 5\nmodel_name_or_path: outputs/tiny/base\n",
            "running train.yaml, on the embedded digits world. ",
        ),
        ("batch_size: 5\nsources: [{path: outputs/tiny/a}]\n", "running train.yaml, on the embedded digits world. "),
    ],
)
def test_config_beside_a_copied_recipe_is_found(recipe, tmp_path, yaml, said, capsys, monkeypatch):
    """It is somebody's own, unless it reads what the embedded world is made of."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outputs/tiny/base").mkdir(parents=True)
    (tmp_path / "train.yaml").write_text(yaml)
    assert parse(recipe).batch_size == 5
    assert capsys.readouterr().out.startswith(f"No --config given: {said}")


def test_a_renamed_recipe_runs_with_its_own_config(recipe, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(recipe, tmp_path / "mine.py")
    assert parse("mine.py", "--batch_size", "6").batch_size == 6
    said = "No --config given, and no mine.yaml beside the recipe: the command line is all there is.\n"
    assert capsys.readouterr().out == said
    (tmp_path / "mine.yaml").write_text("batch_size: 7\n")
    assert parse("mine.py").batch_size == 7
    assert capsys.readouterr().out == "No --config given: running mine.yaml.\n"
    command = RecipeParser((Arguments,), "mine.py", ()).command_for_7b()
    assert command == "accelerate launch recipes/train.py --config recipes/configs/qwen2_5_vl_7b/train.yaml"


def test_config_with_an_equals_sign_and_one_that_is_not_there(recipe, tmp_path, capsys):
    (tmp_path / "other=1.yaml").write_text("batch_size: 3\n")
    assert parse(recipe, f"--config={tmp_path}/other=1.yaml", "--model_name_or_path=a/b").batch_size == 3
    assert capsys.readouterr().out == ""
    for given in ([f"--config={tmp_path}/none.yaml"], ["--config", str(tmp_path)], ["--config"]):
        with pytest.raises(FileNotFoundError, match="`--config .*` is not a file. Name a YAML."):
            parse(recipe, *given)


@dataclass
class EvaluationArguments(DatasetArguments):
    benchmark: str | None = field(default=None)
    scores_file: str | None = field(default=None)
    reward_model: str | None = field(default=None)


def test_inputs_have_to_be_given(tmp_path):
    """Those that a recipe declares itself may be left out, and a benchmark stands in place of a dataset."""
    (tmp_path / "mine.py").write_text(".model_name_or_path .dataset_name .benchmark .scores_file")
    inputs = ("model_name_or_path", "dataset_name", "reward_model")
    parser = RecipeParser((EvaluationArguments, VisionModelConfig), str(tmp_path / "mine.py"), inputs)
    with pytest.raises(
        ValueError, match="`model_name_or_path` and `dataset_name` must be given: `--model_name_or_path"
    ):
        parser.parse_args_and_config([])
    with pytest.raises(ValueError, match="^`dataset_name` must be given: `--dataset_name ...` on the command line, or"):
        parser.parse_args_and_config(["--model_name_or_path", "a/b"])
    for given in (["--dataset_name", "c/d"], ["--benchmark", "x"]):
        assert parser.parse_args_and_config(["--model_name_or_path", "a/b", *given])[1].model_name_or_path == "a/b"
    parsed = parser.parse_args_and_config(["--scores_file", "s.jsonl", "--benchmark", "x"])
    assert parsed[1].model_name_or_path is None
    (tmp_path / "mine.py").write_text(".model_name_or_path .dataset_name .estimate")
    estimate = ["--estimate", "true", "--model_name_or_path"]
    for given in ([], ["--dataset_name", "./missing"]):  # an estimate reads the model's config alone
        assert parser.parse_args_and_config([*estimate, "a/b", *given])[1].estimate
    with pytest.raises(FileNotFoundError, match="model_name_or_path"):
        parser.parse_args_and_config([*estimate, "./missing"])


def test_columns_in_a_config_and_on_the_command_line(recipe, tmp_path):
    (tmp_path / "own.yaml").write_text("columns: {prompt: question, images: image}\n")

    def read(*args):
        parser = RecipeParser((DatasetArguments,), str(tmp_path / "mine.py"), ())
        return parser.parse_args_and_config(args)[0].columns

    (tmp_path / "mine.py").write_text(".columns")
    config = ["--config", str(tmp_path / "own.yaml")]
    assert read() is None
    assert read(*config) == {"prompt": "question", "images": "image"}
    assert read("--columns", '{"prompt": "query"}') == {"prompt": "query"}
    assert read(*config, "--columns", '{"prompt": "query"}') == {"prompt": "query"}
    for given in ("{prompt: query}", "prompt", '["prompt"]', '{"prompt": 1}', "5"):
        with pytest.raises(
            ValueError, match="`columns: .*` is no mapping from names to names. Write `columns: {prompt:"
        ):
            read("--columns", given)
    (tmp_path / "own.yaml").write_text("columns: {prompt: [question]}\n")
    with pytest.raises(ValueError, match="no mapping from names to names"):
        read(*config)
    (tmp_path / "own.yaml").write_text("columns: {promt: question}\n")  # before a model is loaded
    with pytest.raises(ValueError, match="`columns` has promt, which no recipe reads"):
        read(*config)
    (tmp_path / "mine.py").write_text("reads no column")
    with pytest.raises(ValueError, match="`columns: .*` has no effect: mine.py does not read it"):
        read("--columns", '{"prompt": "query"}')


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_that_reads_a_dataset_maps_its_columns(path):
    reads = "NamedDataset(script_args.dataset_name" in path.read_text()
    assert ("columns" in {field.name for one in dataclasses_of(path) for field in fields(one)}) == reads
    assert ("script_args.columns" in path.read_text()) == reads


def test_processes_that_do_not_know_of_each_other_are_refused_before_data_are_read(recipe, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    given = ["--output_dir", "unused", "--bf16", "false"]
    (Path(recipe).parent / "configs/tiny/train.yaml").write_text("{}")
    with pytest.raises(ValueError, match="2 processes were started, and each would train alone"):
        RecipeParser((RewardConfig,), recipe, ()).parse_args_and_config(given)
    # What an estimate needs is known without them.
    Path(recipe).write_text("model_args.estimate, model_args.model_name_or_path")
    estimate = ["--estimate", "true", "--model_name_or_path", "nobody/nothing"]
    RecipeParser((RewardConfig, VisionModelConfig), recipe, ()).parse_args_and_config([*given, *estimate])


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
        ("outputs/tiny/base", "python -m vl_reward.tiny builds the embedded world's models and datasets.$"),
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


def test_a_missing_path_of_somebodys_own_is_theirs_to_check(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("runs/first/model", "/prepare", "./outputs/prepare"):
        with pytest.raises(FileNotFoundError, match="does not exist. Check the path; a relative one begins at /"):
            parse(recipe, "--model_name_or_path", path)


def test_hub_ids_are_not_taken_for_paths(recipe):
    assert parse(recipe, "--model_name_or_path", "Qwen/Qwen2.5-VL-7B-Instruct")


def test_number_in_scientific_notation_is_a_number(recipe, tmp_path):
    """YAML reads `1e-5` as a string."""
    (tmp_path / "lr.yaml").write_text(f"output_dir: {tmp_path}\nlearning_rate: 1e-5\nbf16: false\nuse_cpu: true\n")
    parser = RecipeParser((ScriptArguments, RewardConfig, VisionModelConfig), recipe, ())
    assert parser.parse_args_and_config(["--config", str(tmp_path / "lr.yaml")])[1].learning_rate == 1e-5


@pytest.mark.parametrize("name", ["reward_stage1", "reward_stage2", "mpo", "grpo"])
def test_a_yaml_names_one_tracker_or_several(name, tmp_path):
    (path,) = [path for path in RECIPES if path.stem == name]
    config = (path.parent / f"configs/tiny/{name}.yaml").read_text()
    on_cpu = ["--use_cpu", "true"]
    for trackers, read in (("trackio", ["trackio"]), ("[trackio, tensorboard]", ["trackio", "tensorboard"])):
        (tmp_path / "run.yaml").write_text(config.replace("report_to: none", f"report_to: {trackers}"))
        parser = RecipeParser(dataclasses_of(path), str(path), ())
        parsed = parser.parse_args_and_config(["--config", str(tmp_path / "run.yaml"), *on_cpu])
        assert parsed[1].report_to == read
