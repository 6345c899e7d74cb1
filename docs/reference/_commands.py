"""The page of the commands, from click."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator

import click

from docs.reference._tables import code, page, table
from flops_fit_ray.cli._commands import commands

NAME = "flops-fit-ray"


def render() -> str:
    """Return the page."""
    context = click.Context(commands, info_name=NAME)
    return page(
        "Commands",
        f"`python -m flops_fit_ray` is the same as `{NAME}`, and `python -m flops_fit_ray.run` as `{NAME} run`. "
        "`--json` prints one object ([its fields](json.md)) to stdout, and everything else goes to stderr.",
        *_paragraphs(commands),
        "Tab completes commands and options after",
        f"```sh\n{_COMPLETION}```",
        *(part for name in commands.list_commands(context) for part in _command(context, name)),
    )


_COMPLETION = """\
eval "$(_FLOPS_FIT_RAY_COMPLETE=bash_source flops-fit-ray)"   # in ~/.bashrc; zsh_source for zsh, fish_source for fish
"""


def _command(group: click.Context, name: str) -> Iterator[str]:
    command = commands.get_command(group, name)
    assert command is not None
    context = click.Context(command, info_name=name, parent=group)
    yield f"## {name}"
    yield f"```text\n{NAME} {name} {' '.join(command.collect_usage_pieces(context))}\n```"
    yield from _paragraphs(command)
    options = [one for one in command.params if isinstance(one, click.Option)]
    yield table(["option", "value", "default", "meaning"], [_option(one, context) for one in options])


def _paragraphs(command: click.Command) -> Iterator[str]:
    """Yield the paragraphs of a command's help in one line each; blocks that click keeps as they are, as code."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(command.help or "")):
        if paragraph.startswith("\b"):
            yield f"```text\n{paragraph.removeprefix(chr(8)).strip()}\n```"
        else:
            yield " ".join(paragraph.split())


_DEFAULT = re.compile(r"\s*\[default: ([^\[\]]*)\](?=\.?$)")


def _option(option: click.Option, context: click.Context) -> tuple[str, str, str, str]:
    meaning = (option.help or "").strip()
    found = _DEFAULT.search(meaning)
    default = found[1] if found else ""
    meaning = _DEFAULT.sub("", meaning)
    if option.show_default and not found:
        default = code(option.get_default(context))
    repeated = " (repeatable)" if option.multiple and "repeated" not in meaning else ""
    return ", ".join(map(code, option.opts)), _value(option, context), default, meaning + repeated


def _value(option: click.Option, context: click.Context) -> str:
    if option.is_flag:
        return ""
    if isinstance(option.type, click.Choice):
        return ", ".join(code(choice) for choice in option.type.choices)
    if isinstance(option.type, click.IntRange | click.FloatRange):
        kind = "whole number" if isinstance(option.type, click.IntRange) else "number"
        name = f"{code(option.metavar)}, " if option.metavar else ""
        return f"{name}{kind}{_range(option.type)}"
    return code(option.metavar or option.make_metavar(context))


def _range(limits: click.IntRange | click.FloatRange) -> str:
    words = {"min": ("above" if limits.min_open else "at least"), "max": ("below" if limits.max_open else "at most")}
    bounds = [f"{word} {getattr(limits, name):,}" for name, word in words.items() if getattr(limits, name) is not None]
    return "".join(f", {bound}" for bound in bounds)
