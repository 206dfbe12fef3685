"""Every command, YAML and piece of Python in the pages is parsed as strictly as it would be; test_docs.py runs some."""

import argparse
import ast
import functools
import importlib
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
import transformers
import trl
import yaml
from accelerate.commands.launch import launch_command_parser
from test_configs import RECIPES, ROOT, dataclasses_of

from vl_reward import RecipeParser


PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "recipes/README.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
SHELL = {"cat", "cd", "cp", "done", "export", "for", "kill", "ls", "mkdir"}
VLLM = {"data_parallel_size", "max_model_len", "limit_mm_per_prompt"}  # of vLLM 0.30, beside those in the code
INLINE = re.compile(r"(?<!`)`([^`]+)`(?!`)")
HERE = re.compile(r"cat > (\S+) <<'EOF'\n(.*?)^EOF$", re.DOTALL | re.MULTILINE)
# Words of the shell, and programs that have no parser here: vLLM's is in its own environment.
NOT_PARSED = {
    "cat",
    "cd",
    "do",
    "done",
    "export",
    "for",
    "ls",
    "mkdir",
    "vllm",
    "git",
    "grep",
    "cp",
    "kill",
    "srun",
    "ssh",
}
dataclasses_of = functools.lru_cache(dataclasses_of)


class Parsed(BaseException):
    """Ends a script after its parser: no `except Exception` catches it."""


def blocks(page, *languages):
    return [text for language, text in FENCED.findall(page.read_text()) if language in languages]


def inline_of(page):
    """Code in running text, each in one line."""
    return [" ".join(code.split()) for code in INLINE.findall(FENCED.sub("", page.read_text()))]


def commands_of(script):
    """The simple commands of a script, as lists of words. What it writes into files is left out."""
    for line in HERE.sub("", script).replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";|&()")
        lexer.whitespace_split, lexer.commenters = True, "#"
        command = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";|&()"):
                yield from [command] if command else []
                command = []
            elif command or word not in ("do", "then", "else"):
                command.append(word)


def check_recipe(path, arguments):
    types = dataclasses_of(path)
    has_trainer = any("use_cpu" in type_.__dataclass_fields__ for type_ in types)
    # A machine without a GPU refuses bf16, which is a default of TRL.
    on_cpu = ["--use_cpu", "true", "--bf16", "false"] if has_trainer else []
    RecipeParser(types, str(path), ()).parse_args_and_config([*arguments, *on_cpu])


def check_script(run, name, arguments):
    """Runs a script up to its parser, which knows no abbreviations here."""
    parse_known_args = argparse.ArgumentParser.parse_known_args  # `parse_args` calls it, too

    def parse(parser, args=None, namespace=None):
        parser.allow_abbrev = False
        _, unknown = parse_known_args(parser, args, namespace)
        if unknown:
            parser.error(f"unknown arguments: {unknown}")
        raise Parsed

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", parse),
        mock.patch.object(
            subprocess, "Popen", side_effect=AssertionError(f"{name} starts a process ahead of its parser")
        ),
        mock.patch.object(sys, "argv", [name, *arguments]),
        pytest.raises(Parsed),
    ):
        run(name, run_name="__main__")


def check_python(words):
    """What comes after `python` or `accelerate launch ...`."""
    if "--help" in words:
        words.remove("--help")
    if words[0] == "-c":
        check_source(words[1])
    elif words[0] == "-m":
        check_script(runpy.run_module, words[1], words[2:])
    elif words[0].startswith("bench/"):
        check_script(runpy.run_path, str(ROOT / words[0]), words[1:])
    else:
        assert Path(words[0]).exists(), f"there is no {words[0]}"
        if "RecipeParser(" in Path(words[0]).read_text():  # a recipe, or a copy of one
            check_recipe(Path(words[0]).absolute(), words[1:])


def check_make(words):
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        name = word.split("=")[0]
        known = rf"^{name} \?=" if "=" in word else rf"^{name}:"
        assert re.search(known, makefile, re.MULTILINE), f"the Makefile has no {name}"


def check_pip(words):
    assert words[0] == "install"
    for extra in re.findall(r"(?:vl-reward|\.)\[(\w+)\]", " ".join(words)):
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), f"no extra {extra}"


def check(command):
    while "=" in command[0]:  # a variable of this command alone
        command = command[1:]
    name, *words = command
    if name == "accelerate":
        assert words[0] == "launch"
        launch = launch_command_parser().parse_args(words[1:])
        assert launch.config_file is None or Path(launch.config_file).exists(), f"there is no {launch.config_file}"
        check_python([launch.training_script, *launch.training_script_args])
    elif name == "python":
        check_python(words)
    elif name in ("make", "pip"):
        {"make": check_make, "pip": check_pip}[name](words)
    elif name == "vllm":  # its parser is in an environment of its own
        for word in words:
            assert not word.startswith("--") or word[2:].replace("-", "_") in script_options(), f"vllm has no {word}"
    else:
        assert name in SHELL, f"{name} is no command that this test knows: say how it is checked"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where a reader stands: the repo's folders are there."""
    for name in ("recipes", "accelerate_configs", "bench", "results", "docs"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check_script_text(script, folder):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    script = script.replace("$RECIPES", "recipes").replace("$MACHINE", "0")
    for source, copy in re.findall(r"^cp (\S+) (\S+)$", script, re.MULTILINE):
        shutil.copy(folder / source, folder / copy)
    for name, text in HERE.findall(script):
        (folder / name).write_text(text)
        if name.endswith(".py"):
            check_source(text)
    for command in commands_of(script):
        check(command)


def check_source(text):
    """It compiles, and what it imports of installed packages is there."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert alias.name in vars(module) or importlib.import_module(f"{node.module}.{alias.name}")


@functools.cache
def known_keys():
    return {name for path in RECIPES for type_ in dataclasses_of(path) for name in type_.__dataclass_fields__}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_blocks_of_code(page, folder):
    assert {language for language, _ in FENCED.findall(page.read_text())} <= {
        "",
        "bash",
        "python",
        "yaml",
        "json",
        "text",
    }
    check_script_text("".join(blocks(page, "bash")), folder)
    for text in blocks(page, "python"):
        check_source(text)
    for text in blocks(page, "yaml"):
        assert yaml.safe_load(text).keys() <= known_keys(), text
    for text in blocks(page, "json"):
        json.loads(text)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_and_paths_in_running_text(page, folder):
    for code in inline_of(page):
        if re.search(r"<\w+>|\.\.\.|--key value", code):  # something to fill in
            continue
        if re.match(r"(python|accelerate launch|make|pip) \S", code):
            words = shlex.split(code)
            # A script that is named alone has to be there; with options, those have to be known.
            check(words) if len(words) > 2 or words[0] != "python" else check_exists(words[1])
        elif re.match(r"(recipes|bench|docs|tests|src|results|accelerate_configs|\.ci)/[^\s*<]+$", code):
            check_exists(code)
        elif option := re.match(r"--(\w+)( \S+)?$", code):
            assert option[1].replace("-", "_") in known_keys() | script_options(), f"no recipe or script has {code}"


def check_exists(name):
    assert (ROOT / name).exists(), f"there is no {name}"


@functools.cache
def script_options():
    """Options of scripts, of launchers and of vLLM that the pages may name."""
    sources = [
        path for folder in ("bench", "src/vl_reward", "tests/real_vllm") for path in (ROOT / folder).rglob("*.py")
    ]
    found = {name for path in sources for name in re.findall(r'"--([\w-]+)"', path.read_text())}
    return {name.replace("-", "_") for name in found} | VLLM | vars(launch_command_parser().parse_args(["x"])).keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCED.sub("", page.read_text())):
        path, _, anchor = target.partition("#")
        if path.startswith("http"):
            continue
        to = (page.parent / path).resolve() if path else page
        assert to.exists(), f"{page.name} links to {target}"
        if anchor:
            titles = re.findall(r"^#+ (.*)$", to.read_text(), re.MULTILINE)
            assert anchor in {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}, target


TYPOS = [
    "accelerate launch recipes/mpoo.py",
    "accelerate launch --config_file accelerate_configs/zero3.yaml recipes/mpo.py",
    "accelerate launch --num_proceses 2 recipes/mpo.py",
    "accelerate launch recipes/mpo.py --learnin_rate 1e-5",
    "accelerate launch recipes/mpo.py --config recipes/configs/qwen2_5_vl_7b/mpoo.yaml",
    "python recipes/evaluate_reward.py --benchmark vl_rewardbenchh --data_files x --scores_file y --output_dir z",
    "python -m vl_reward.reprt outputs/tiny",
    "python -m vl_reward.report outputs/tiny --max_pair 3",
    "python -m vl_reward.tiny.base --family qwen4",
    "python bench/peer.py --output_dir x",
    "python bench/prefix_sharing.py --rouns 7",
    "make tests",
    "make demo SED=1",
    "pip install '.[deev]'",
    "acelerate launch recipes/mpo.py",
    "for i in 1; do python recipes/mpo.py --nothing 1; done",
    "echo one; python bench/nothing.py --a b",
    "python recipes/mpo.py --config mine.yaml  # a comment\nmake nothing",
    "for x in",
]


@pytest.mark.parametrize("script", TYPOS)
def test_a_typo_is_found(script, folder):
    with pytest.raises((Exception, SystemExit)):
        check_script_text(script.replace("mine.yaml", "recipes/configs/tiny/mpo.yaml"), folder)


def test_a_typo_in_python_is_found():
    check_source("from vl_reward import RewardScorer\nimport vl_reward.tiny.digits")
    for text in ("from vl_reward import RewardScorr", "import vl_reward.tiny.digit", "scores = scorer("):
        with pytest.raises((AssertionError, ImportError, SyntaxError)):
            check_source(text)


@functools.cache
def messages():
    """All texts of the code and of TRL's parser, with `…` where a value stands."""
    trl_folder, trainer = Path(trl.__file__).parent, Path(transformers.__file__).parent / "training_args.py"
    parsers = [trl_folder / "scripts/utils.py", trl_folder / "scripts/_hf_argparser.py", trainer]
    found = []
    for path in [*(ROOT / "src").rglob("*.py"), *RECIPES, *parsers]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                found.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.append(node.value)
    return found


def test_errors_are_those_of_the_source():
    texts = [text.strip() for text in blocks(ROOT / "docs/errors.md", "text")]
    assert len(texts) > 20
    for text in texts:
        assert any(text in message for message in messages()), f"no message has: {text}"
    assert not any("The loss was … at step …." in message for message in messages())
