"""Every YAML and every command in a docstring or a YAML's header."""

import ast
import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest
import yaml
from peft import get_peft_model

from vl_reward import RecipeParser, VisionModelConfig
from vl_reward.models.vision_reward_model import VisionRewardModel


ROOT = Path(__file__).parent.parent
RECIPES = sorted((ROOT / "recipes").glob("*.py"))
CONFIGS = sorted((ROOT / "recipes/configs").rglob("*.yaml"))


def recipe_of(config):
    """`reward_stage1_lora.yaml` belongs to the recipe with the longest name that it starts with."""
    names = [path.stem for path in RECIPES if config.stem == path.stem or config.stem.startswith(f"{path.stem}_")]
    return ROOT / "recipes" / f"{max(names, key=len)}.py"


def load_recipe(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def dataclasses_of(path):
    """The dataclasses that the recipe gives its parser."""
    module = load_recipe(path)
    call = next(
        node
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "RecipeParser"
    )
    return tuple(getattr(module, name.id) for name in call.args[0].elts)


def parse(config, recipe):
    types = dataclasses_of(recipe)
    # A machine without a GPU refuses bf16, which is a default of TRL; all else is parsed as it stands.
    has_trainer = any(field.name == "use_cpu" for type_ in types for field in dataclasses.fields(type_))
    on_cpu = ["--use_cpu", "true", "--bf16", "false"] if has_trainer else []
    return RecipeParser(types, str(recipe), ()).parse_args_and_config(["--config", str(config), *on_cpu])


def test_there_are_configs_for_every_recipe():
    for world in ("tiny", "qwen2_5_vl_7b", "qwen3_vl_8b"):
        names = {config.stem for config in CONFIGS if config.parent.name == world}
        assert {recipe.stem for recipe in RECIPES} <= names


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_parses_strictly(config, tmp_path):
    parse(config, recipe_of(config))
    typo = tmp_path / config.name
    typo.write_text(config.read_text() + "\nlearnin_rate: 1.0\n")
    with pytest.raises(ValueError, match="learnin_rate"):
        parse(typo, recipe_of(config))


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_config_holds_only_what_differs_from_the_defaults(config):
    defaults = {}
    for type_ in dataclasses_of(recipe_of(config)):
        for field in dataclasses.fields(type_):
            defaults[field.name] = field.default
    for key, value in yaml.safe_load(config.read_text()).items():
        assert key == "report_to" or defaults[key] != value, f"{key}: {value} is the default"


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_header_holds_the_launch_line_of_this_config(config):
    header = config.read_text().replace("\\\n#    ", "")
    recipe = recipe_of(config)
    commands = re.findall(r"accelerate launch .*", header)
    assert len(commands) == 1
    assert f"recipes/{recipe.name}" in commands[0]
    if config.parent.name != "tiny":
        assert str(config.relative_to(ROOT)) in commands[0]
        assert "GPU" in header


@pytest.mark.parametrize("path", [*RECIPES, *CONFIGS, ROOT / "README.md"], ids=lambda path: path.name)
def test_paths_in_commands_exist(path):
    for command in re.findall(r"(?:accelerate launch|python) [^\n`]*(?:\\\n[^\n`]*)*", path.read_text()):
        for name in re.findall(r"(?:recipes|accelerate_configs|bench)/[\w/.-]+", command):
            assert (ROOT / name).exists(), f"{path.name}: {name}"


@pytest.mark.parametrize("name", ["reward_stage1_lora", "mpo_lora"])
@pytest.mark.parametrize(
    ("world", "family"), [("qwen2_5_vl_7b", "qwen2_5_vl"), ("qwen3_vl_8b", "qwen3_vl")], indirect=["family"]
)
def test_lora_trains_the_language_model_alone(name, world, policy, policy_path, reward_model):
    config = ROOT / f"recipes/configs/{world}/{name}.yaml"
    model_args = parse(config, recipe_of(config))[2]
    model_args.model_name_or_path = policy_path  # the hub's checkpoint is not here
    lora = model_args.peft_config
    assert lora.target_modules == reward_model.lora_targets
    in_full = [] if name == "mpo_lora" else reward_model.trained_in_full(reward_model)
    lora.modules_to_save = list(in_full)  # as VisionRewardTrainer does
    model = get_peft_model(policy if name == "mpo_lora" else reward_model, lora)
    assert isinstance(model.base_model.model, VisionRewardModel) == (name != "mpo_lora")
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    adapted = {key for key in trained if "lora_" in key}
    layers = policy.config.text_config.num_hidden_layers
    assert len(adapted) == 2 * 7 * layers and all(".language_model.layers." in key for key in adapted)
    assert {key.split(".modules_to_save")[0].removeprefix("base_model.model.") for key in trained - adapted} == {
        *in_full
    }


def test_given_lora_targets_are_kept(policy_path):
    model_args = VisionModelConfig(policy_path, use_peft=True, lora_target_modules=["q_proj", "v_proj"])
    assert model_args.peft_config.target_modules == {"q_proj", "v_proj"}
    assert VisionModelConfig(policy_path).peft_config is None


def test_stage_1_and_stage_2_differ_in_one_block():
    one, two = (ROOT / f"recipes/reward_stage{n}.py" for n in (1, 2))
    block = re.compile(r"    # --- STAGE \d.*?(?=\n\n)", re.DOTALL)
    assert len(block.findall(one.read_text())) == 1
    assert block.sub("", one.read_text()) == block.sub("", two.read_text())


ACCELERATE_CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))


@pytest.mark.parametrize("path", ACCELERATE_CONFIGS, ids=lambda path: path.stem)
def test_accelerate_config_loads(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.num_machines == 1
    if "zero" in path.stem:
        assert config.deepspeed_config["zero_stage"] == int(path.stem[-1])
        assert config.distributed_type.value == "DEEPSPEED"


def test_accelerate_configs_are_all_there():
    assert {path.stem for path in ACCELERATE_CONFIGS} >= {
        "single_gpu",
        "multi_gpu",
        "deepspeed_zero1",
        "deepspeed_zero2",
        "deepspeed_zero3",
        "fsdp2",
        "cpu_2_processes",
    }


def test_every_recipe_names_its_7b_run():
    for path in RECIPES:
        command = RecipeParser(dataclasses_of(path), str(path), ()).command_for_7b().split()
        assert command[:2] == ["accelerate", "launch"] and f"recipes/{path.name}" in command
        config = ROOT / command[command.index("--config") + 1]
        assert config.exists() and config.name.startswith(path.stem)
        if "--config_file" in command:
            assert (ROOT / command[command.index("--config_file") + 1]).exists()


def test_recipes_stay_readable():
    for path in RECIPES:
        assert len(path.read_text().splitlines()) <= 155, path.name


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_an_option_is_read_or_refused(path):
    """Each option of TRL's model and script arguments, set to another value than its default."""
    config = ROOT / f"recipes/configs/tiny/{path.stem}.yaml"
    changes = {"load_in_4bit": "true", "load_in_8bit": "true", "dataset_streaming": "true"}
    changes |= {"model_revision": "other", "use_peft": "true", "lora_r": "3", "share_prefixes": "false"}
    changes |= {"attn_implementation": "eager", "dtype": "bfloat16", "dataset_test_split": "other"}
    source, types = path.read_text(), dataclasses_of(path)
    known = {field.name for type_ in types for field in dataclasses.fields(type_)}
    by_function = dict.fromkeys(("use_peft", "lora_r"), ".peft_config")
    by_function |= dict.fromkeys(("load_in_4bit", "load_in_8bit"), ".quantization_config")
    for name in changes.keys() & known:
        read = by_function.get(name, f".{name}") in source
        has_trainer = "use_cpu" in known
        command = ["--config", str(config), f"--{name}", changes[name]]
        command += ["--use_cpu", "true", "--bf16", "false"] if has_trainer else []
        parser = RecipeParser(types, str(path), ())
        if read:
            parser.parse_args_and_config(command)
        else:
            with pytest.raises(ValueError, match=f"`{name}: .*` has no effect: {path.name} does not read it"):
                parser.parse_args_and_config(command)


def test_a_mixture_of_nothing_is_refused(tmp_path):
    path, config = ROOT / "recipes/prepare_preferences.py", tmp_path / "own.yaml"
    config.write_text("output_dir: out\n")
    with pytest.raises(ValueError, match="`sources` is empty: .* configs/tiny/prepare_preferences.yaml"):
        RecipeParser(dataclasses_of(path), str(path), ()).parse_args_and_config(["--config", str(config)])
