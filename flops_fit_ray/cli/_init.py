"""Command that begins a sweep: init."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flops_fit_ray.cli._common import DEMO_FILES, SPEC_NAME, LocalPath, cost_options, demo_directory
from flops_fit_ray.cli._put import put_text

if TYPE_CHECKING:
    from flops_fit_ray.spec import BudgetsFor

OPEN_BUDGETS = """\
# C in FLOPs: chosen when the sweep begins and its speed is known, the widest range that models, data, 300 optimizer
# steps and this time (or hours, flops) allow; `run --minutes 30` gives another. A list does as well:
# [6e10, 2e11, 6e11, 2e12].
budgets: {{{}}}
"""
DEFAULT_MINUTES = 10
_LISTED = re.compile(r"^# C in FLOPs.*?^budgets:.*?\n", re.MULTILINE | re.DOTALL)


@click.command()
@click.argument("directory", default=".", type=LocalPath())
@cost_options
def init(directory: Path, limit: BudgetsFor | None) -> None:
    """Write a commented example (sweep.yaml, model.py, data.py) that runs as it is.

    Its budgets are chosen when it runs, as wide as 10 minutes allow, or as --minutes, --hours or --flops say.
    """
    present = [name for name in DEMO_FILES if (directory / name).exists()]
    if present:
        raise click.UsageError(
            f"{directory} has {', '.join(present)} already; nothing was written: give another directory"
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name in DEMO_FILES:
            text = (demo_directory() / name).read_text(encoding="utf-8")
            (directory / name).write_text(
                with_open_budgets(text, limit) if name == SPEC_NAME else text, encoding="utf-8"
            )
    except OSError as e:
        raise click.UsageError(f"{directory}: cannot be written: {e.strerror}; give another directory") from e
    put_text(f"wrote {', '.join(str(directory / name) for name in DEMO_FILES)}")
    spec = directory / SPEC_NAME
    put_text(f"next: flops-fit-ray run {spec} (or, to see the plan before: check {spec}, and plan {spec})")


def with_open_budgets(text: str, limit: BudgetsFor | None) -> str:
    """Return the demo's spec with `budgets: auto`, and with what the sweep may cost."""
    name, value = ("minutes", str(DEFAULT_MINUTES)) if limit is None else limit.options()
    return _LISTED.sub(OPEN_BUDGETS.format(f"{name.removeprefix('--')}: {value}"), text, count=1)
