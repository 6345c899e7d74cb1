"""Commands that try the tool itself: selftest."""

from __future__ import annotations

import json
import sys

import click

from flops_fit_ray.cli.common import json_option
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED


@click.command()
@click.option("--address", help="An existing Ray cluster, e.g. auto [default: RAY_ADDRESS, else a local one].")
@json_option
def selftest(address: str | None, as_json: bool) -> int:
    """Run two small sweeps whose exponents are known, through Ray, and compare. Exit code 1 if one is missed."""
    from flops_fit_ray.selftest.cases import run_cases
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    out = sys.stderr if as_json else sys.stdout
    cases = run_cases(address, lambda line: click.echo(line, file=out))
    passed = all(case.passed for case in cases)
    if as_json:
        content = {"schema_version": SCHEMA_VERSION, "passed": passed, "cases": [c.to_json() for c in cases]}
        click.echo(json.dumps(content))
    return EXIT_DONE if passed else EXIT_FAILED
