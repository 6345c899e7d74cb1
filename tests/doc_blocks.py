"""Checks of the blocks of code that pages show: specs load, commands parse, Python names what is there.

Nothing of them is run.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import shlex
import textwrap
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

import click

from docs.markdown import ROOT, Block
from flops_fit_ray.cli._commands import commands
from flops_fit_ray.errors import SpecError
from flops_fit_ray.fit_options import FitOptions
from flops_fit_ray.spec import SweepSpec, make_spec, parse_yaml
from flops_fit_ray.spec._hints import all_paths
from flops_fit_ray.spec.arguments import known_arguments

LEFT_TO_READERS = {"text", "diff", "mermaid"}  # outputs and drawings


def faults(block: Block) -> Iterator[str]:
    """Yield what is wrong with a block; one that cannot be checked has its reason in a comment before it."""
    if not block.language:
        yield "has no language; output is `text`"
    elif block.why_not_run or block.language in LEFT_TO_READERS:
        return
    elif block.language not in CHECKS:
        yield f"{block.language} is not checked; write <!-- not run: REASON --> before it"
    else:
        yield from CHECKS[block.language](block.text)


def yaml_faults(text: str) -> Iterator[str]:
    """A spec, or a part of one that a whole one may hold."""
    try:
        content = parse_yaml(text, "block")
        if not isinstance(content, dict):
            yield "is no mapping"
            return
        whole = merged(
            {"model": {"target": "model:GPT", "size_param": "d_model"}, "data": {"train": "data:train"}}, content
        )
        make_spec({"budgets": [1e15, 3e15, 1e16, 3e16]} | whole, "block", open_budgets=True)
    except SpecError as e:
        yield from e.faults


def merged(base: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with what `more` has, mapping by mapping."""
    inner = {
        k: merged(base[k], v) for k, v in more.items() if isinstance(v, Mapping) and isinstance(base.get(k), Mapping)
    }
    return {**base, **more, **inner}


def json_faults(text: str) -> Iterator[str]:
    try:
        json.loads(text)
    except ValueError as e:
        yield str(e)


def toml_faults(text: str) -> Iterator[str]:
    try:
        tomllib.loads(text)
    except ValueError as e:
        yield str(e)


# Python ---------------------------------------------------------------------------------------------------------------

RETURNS = {"find_optimal": "flops_fit_ray.result:Result", "fit_table": "flops_fit_ray.analysis:Analysis",
           "check": "flops_fit_ray.training.preflight.check:CheckReport"}  # fmt: skip


def python_faults(text: str) -> Iterator[str]:
    """It is Python; what it takes from the package is there, with the arguments that it is given."""
    try:
        tree = ast.parse(textwrap.dedent(text))
    except SyntaxError as e:
        yield f"{e.msg} in line {e.lineno}"
        return
    names: dict[str, Any] = {}  # of the block: what they are of the package
    yield from take_imports(tree, names)
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and isinstance(node.targets[0], ast.Name):
            names |= {node.targets[0].id: kind for kind in kinds_made_by(node.value, names)}  # noqa: B035
    given = dict_literals(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in names:
            home = names[node.value.id]
            if not hasattr(home, node.attr) and node.attr not in getattr(home, "__dataclass_fields__", ()):
                yield f"{node.value.id} has no {node.attr}"
        elif isinstance(node, ast.Call):
            yield from call_faults(node, names, given)


def take_imports(tree: ast.AST, names: dict[str, Any]) -> Iterator[str]:
    """Add what a block imports of the package to `names`; yield what is not there."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("flops_fit_ray"):
            home = importlib.import_module(str(node.module))
            for alias in node.names:
                if hasattr(home, alias.name):
                    names[alias.asname or alias.name] = getattr(home, alias.name)
                else:
                    yield f"{node.module} has no {alias.name}"
        elif isinstance(node, ast.Import):
            ours = [alias for alias in node.names if alias.name == "flops_fit_ray"]
            names |= {alias.asname or alias.name: importlib.import_module(alias.name) for alias in ours}


def of_package(function: ast.expr, names: Mapping[str, Any]) -> Any:
    """What a call calls, if it is of the package; else None."""
    if isinstance(function, ast.Name):
        return names.get(function.id)
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id in names:
        return getattr(names[function.value.id], function.attr, None)
    return None


def kinds_made_by(call: ast.Call, names: Mapping[str, Any]) -> list[Any]:
    """The class of what a call returns, where it is known."""
    called = of_package(call.func, names)
    if inspect.isclass(called):
        return [called]
    if called is None or called.__name__ not in RETURNS or any(k.arg == "train" for k in call.keywords):
        return []
    module, _, name = RETURNS[called.__name__].partition(":")
    return [getattr(importlib.import_module(module), name)]


def dict_literals(tree: ast.AST) -> dict[str, list[str]]:
    """Keys of the mappings that a block writes down, by their names."""
    return {
        node.targets[0].id: [str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)]
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and isinstance(node.value, ast.Dict)
    }


def call_faults(call: ast.Call, names: Mapping[str, Any], given: Mapping[str, list[str]]) -> Iterator[str]:
    called = of_package(call.func, names)
    if not callable(called):
        return
    parameters = inspect.signature(called).parameters
    known = set(parameters)
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        options = set(FitOptions.__dataclass_fields__) if called.__name__ == "fit_table" else known_arguments()
        known |= options if called.__name__ in RETURNS else {keyword.arg or "" for keyword in call.keywords}
    for keyword in call.keywords:
        spread = given.get(keyword.value.id, []) if keyword.arg is None and isinstance(keyword.value, ast.Name) else []
        for name in [keyword.arg] if keyword.arg else spread:
            if name not in known:
                yield f"{called.__name__} has no argument {name}"
    if len(call.args) > len([p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY]):
        yield f"{called.__name__} does not take {len(call.args)} arguments"


# Commands -------------------------------------------------------------------------------------------------------------

ASSIGNMENT = re.compile(r"^[A-Za-z_]\w*=")
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
PATHS = set(all_paths(SweepSpec))


def shell_faults(text: str) -> Iterator[str]:
    """Each command of ours parses, with its options and their values; modules and targets of make exist."""
    for words in shell_commands(text):
        if words[0] == "make":
            yield from (f"make has no target {word}" for word in words[1:] if word.isalpha() and word not in TARGETS)
        for i, word in enumerate(words):
            if word.rpartition("/")[2] == "flops-fit-ray" and i in (0, 1):
                yield from command_faults(words[i + 1 :])
            elif word == "-m" and i and "python" in words[i - 1] and i + 1 < len(words):
                yield from module_faults(words[i + 1], words[i + 2 :])


def module_faults(module: str, rest: list[str]) -> Iterator[str]:
    if module in ("flops_fit_ray", "flops_fit_ray.run"):
        yield from command_faults(rest if module == "flops_fit_ray" else ["run", *rest])
    elif module.partition(".")[0] in ("flops_fit_ray", "tests", "benchmarks", "docs"):
        path = ROOT / module.replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            yield f"there is no module {module}"


def shell_commands(text: str) -> Iterator[list[str]]:
    """Yield the words of each simple command of a script."""
    waiting = ""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(f"{waiting}{line}", posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that ends in a later line
            waiting += f"{line}\n"
            continue
        waiting = ""
        command: list[str] = []
        for word in [*words, ";"]:
            if set(word) <= set("();|&"):
                if command:
                    yield command
                command = []
            elif command or not ASSIGNMENT.match(word):
                command.append(word)
    assert not waiting, f"a quotation without its end: {waiting}"


def command_faults(words: list[str], *, values: bool = True) -> Iterator[str]:
    """Yield what click would refuse, without running anything; `values` too, or only names."""
    words = words[: next((i for i, word in enumerate(words) if set(word) & set("<>")), len(words))]  # redirections
    if not words or words[0] in ("--help", "-h", "--version"):
        return
    command = commands.get_command(click.Context(commands), words[0])
    if command is None:
        yield f"there is no command {words[0]}"
        return
    context = click.Context(command, info_name=words[0])
    try:
        given, left, _ = command.make_parser(context).parse_args(words[1:])
        if left:
            yield f"{words[0]} takes no {' '.join(left)}"
        if not values:
            return
        for parameter in command.params:
            value = given.get(parameter.name or "")
            there = isinstance(value, str | list | tuple)
            if parameter.required and not there:
                yield f"{words[0]} needs {parameter.human_readable_name}"
            elif there and not isinstance(parameter.type, click.Path):
                parameter.type_cast_value(context, value)
        yield from (f"--set {one}: there is no such key" for one in given.get("overrides") or () if not is_key(one))
    except click.ClickException as e:
        yield f"{words[0]}: {e.format_message()}"


def is_key(override: str) -> bool:
    key = override.partition("=")[0]
    return key in PATHS or any(
        key.startswith(f"{free}.") for free in ("model.kwargs", "model.axes", "data.kwargs", "metrics")
    )


CHECKS = {
    "yaml": yaml_faults,
    "json": json_faults,
    "toml": toml_faults,
    "python": python_faults,
    "sh": shell_faults,
}
