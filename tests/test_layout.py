"""The rooms of the library: imports between folders point down only, and no files import each other in a circle."""

import ast
from graphlib import TopologicalSorter

from test_configs import RECIPES, ROOT


PACKAGE = ROOT / "src/vl_reward"
# Each folder may import from those of the lines below its own, and from itself.
FLOORS = [
    ["tiny"],
    ["report"],
    ["labelling", "preflight", "training"],
    ["curation", "inference"],
    ["benchmarks", "memory"],
    ["data", "prefix_sharing"],
    ["arguments"],
    ["models"],
]
FLOOR_OF = {folder: number for number, folders in enumerate(FLOORS) for folder in folders}


def module_of(path):
    """`data/images.py` is `data.images`, and `data/__init__.py` is `data`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_of(path): path for path in PACKAGE.rglob("*.py")}


def imports_of(module):
    """The modules of this package that a module imports, wherever in the file, each by its full name."""
    path, found = FILES[module], set()
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("vl_reward.") for alias in node.names if "vl_reward" in alias.name}
        elif isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = ".".join(part for part in base if part)
            # `from . import accuracy` names a module, `from .accuracy import ratio` what is in one.
            inside = {f"{base}.{alias.name}".strip(".") for alias in node.names}
            found |= {name if name in FILES else base for name in inside}
        elif isinstance(node, ast.ImportFrom):
            assert node.module.split(".")[0] not in {"recipes", "vl_reward"}, f"{path}: import it relatively"
    return found


def test_every_folder_has_its_floor():
    assert {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"} == FLOOR_OF.keys()
    assert [path.name for path in PACKAGE.glob("*.py")] == ["__init__.py"]


def test_imports_between_folders_point_down():
    for module in FILES:
        folder = module.split(".")[0]
        for imported in imports_of(module) if module else ():
            other = imported.split(".")[0]
            assert imported in FILES, f"{module} imports {imported}"
            assert other == folder or FLOOR_OF[other] > FLOOR_OF[folder], f"{module} imports {imported}, which is above"


def test_no_files_import_each_other_in_a_circle():
    graph = {module: imports_of(module) - {module} for module in FILES}
    order = list(TopologicalSorter(graph).static_order())  # raises CycleError, with the circle
    assert order.index("data.messages") < order.index("inference.scorer") < order.index("")


def test_folders_stay_small():
    for folder in [PACKAGE, *(path for path in PACKAGE.rglob("*") if path.is_dir())]:
        files = [path for path in folder.glob("*.py") if path.name != "__init__.py"]
        assert len(files) <= 11, f"{folder} has {len(files)} files: it wants rooms"


def test_recipes_import_nouns_and_never_each_other():
    names = {path.stem for path in RECIPES}
    nouns = {"pair_rules", "verifiers", "blank_image"}  # two modules of rules, and a thing
    allowed = nouns | {"share_prefixes", "unshare_prefixes", "family_of"}  # words of one line
    for path in RECIPES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.ImportFrom):
                continue
            assert node.module.split(".")[0] not in names, path
            if node.module.split(".")[0] != "vl_reward" or node.module == "vl_reward.benchmarks":  # one module each
                continue
            assert node.module == "vl_reward" or node.module.removeprefix("vl_reward.") in FILES, path
            lower = {alias.name for alias in node.names if not alias.name[0].isupper()}
            assert lower <= allowed, path
