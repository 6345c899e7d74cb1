"""Command that tests the installation: selftest."""

from __future__ import annotations

import json
import sys

import click

from flops_fit_ray.cli._common import address_option, echo, json_option
from flops_fit_ray.cli._put import put_text
from flops_fit_ray.errors import EXIT_DONE, EXIT_FAILED


@click.command()
@address_option
@json_option
def selftest(address: str | None, as_json: bool) -> int:
    """Test the installation: run two small sweeps with known exponents through Ray. Exit code 1 if a fit is off."""
    from flops_fit_ray.selftest.cases import run_cases
    from flops_fit_ray.storage.paths import SCHEMA_VERSION

    out = sys.stderr if as_json else sys.stdout
    cases = run_cases(address, lambda line: put_text(line, file=out))
    passed = all(case.passed for case in cases)
    if as_json:
        content = {"schema_version": SCHEMA_VERSION, "passed": passed, "cases": [c.to_json() for c in cases]}
        echo(json.dumps(content))
    return EXIT_DONE if passed else EXIT_FAILED
