"""Command that lists published scaling laws: laws."""

from __future__ import annotations

import json

import click

from flops_fit_ray.cli._common import echo, json_option


@click.command()
@click.argument("names", nargs=-1, metavar="[NAME]...")
@json_option
def laws(names: tuple[str, ...], as_json: bool) -> None:
    """List published scaling laws: source, formula, constants, the runs they were fitted to, units.

    `predict`, `compare` and `plan --simulate --surface` take them by NAME. A file or a directory of the same name comes
    first.
    """
    from flops_fit_ray.analysis import PUBLISHED, published_law
    from flops_fit_ray.console.laws_text import laws_table, laws_text
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    found = [published_law(name) for name in names] or list(PUBLISHED.values())
    content = {"schema_version": SCHEMA_VERSION, "laws": [law.to_json() for law in found]}
    head = [] if names else [laws_table(found), ""]
    echo(json.dumps(content, indent=1) if as_json else "\n".join([*head, laws_text(found)]))
