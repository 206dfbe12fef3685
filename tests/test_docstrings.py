"""What is exported says what it takes: each argument of a public signature is named in its docstring."""

import ast
import dataclasses
import importlib
import inspect
import pkgutil
import re

import pytest
from test_configs import ROOT

import vl_reward


PACKAGES = [
    "vl_reward",
    *(module.name for module in pkgutil.walk_packages(vl_reward.__path__, "vl_reward.") if module.ispkg),
]
EXPORTED = {
    f"{name}.{public}": getattr(importlib.import_module(name), public)
    for name in PACKAGES
    for public in getattr(importlib.import_module(name), "__all__", ())
}


def arguments_of(signature):
    return [name for name in signature.parameters if name not in ("self", "cls")]


def own_fields(cls):
    """A dataclass's fields, without those of a base that says what they are."""
    inherited = {
        field.name for base in cls.__mro__[1:] if dataclasses.is_dataclass(base) for field in dataclasses.fields(base)
    }
    return [
        field.name
        for field in dataclasses.fields(cls)
        if field.name not in inherited or field.name in vars(cls)["__annotations__"]
    ]


def is_ours(cls):
    return cls.__module__.startswith("vl_reward")


def signatures(public):
    """
    Each docstring that has to name arguments, with what it is of and the arguments. A method that takes the place of
    one of TRL's, of transformers' or of Python's has their arguments, and `torch_call` is what their collators call.
    """
    if not inspect.isclass(public):
        yield public.__name__, inspect.getdoc(public), arguments_of(inspect.signature(public))
        return
    if dataclasses.is_dataclass(public):
        yield public.__name__, inspect.getdoc(public), own_fields(public)
    elif "__init__" in vars(public):
        yield public.__name__, inspect.getdoc(public), arguments_of(inspect.signature(public.__init__))
    foreign = {name for base in public.__mro__ if not is_ours(base) for name in vars(base)} | {"torch_call"}
    for base in filter(is_ours, public.__mro__):
        for name, method in vars(base).items():
            method = getattr(method, "__func__", method)  # of a classmethod or a staticmethod
            if inspect.isfunction(method) and (not name.startswith("_") or name == "__call__") and name not in foreign:
                said = inspect.getdoc(getattr(public, name))
                yield f"{public.__name__}.{name}", said, arguments_of(inspect.signature(method))


def test_names_are_exported():
    assert len(EXPORTED) > 25 and "vl_reward.RewardScorer" in EXPORTED


@pytest.mark.parametrize("name", EXPORTED)
def test_each_argument_is_named_in_its_docstring(name):
    missing = {}
    for of, said, arguments in signatures(EXPORTED[name]):
        assert said, f"{of} has no docstring"
        unnamed = [one for one in arguments if not re.search(rf"\b{re.escape(one)}\b", said)]
        if unnamed:
            missing[of] = unnamed
    assert not missing


MODULES = sorted((ROOT / "src/vl_reward").rglob("*.py"))


def constructor_of(node):
    """The arguments of a class's `__init__`, or the fields of a dataclass."""
    inits = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    if inits:
        given = inits[0].args
        known = [*given.args, *given.kwonlyargs, *filter(None, (given.vararg, given.kwarg))]
        return [argument.arg for argument in known if argument.arg != "self"]
    if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
        return [one.target.id for one in node.body if isinstance(one, ast.AnnAssign)]
    return []


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT / "src/vl_reward")))
def test_public_classes_and_functions_have_a_docstring(path):
    """And a class says what its constructor takes."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            said = ast.get_docstring(node)
            assert said, f"{node.name} has no docstring"
            given = constructor_of(node) if isinstance(node, ast.ClassDef) else []
            unnamed = [name for name in given if name not in said]
            assert not unnamed, f"{node.name} does not say what {', '.join(unnamed)} is"
