"""Output of the commands, in which nothing that somebody else wrote can steer the terminal."""

from __future__ import annotations

from typing import IO, Any

import click

from flops_fit_ray.formatting import printable


def put_text(text: str = "", *, nl: bool = True, err: bool = False, file: IO[Any] | None = None) -> None:
    """Write text as `click.echo` does, with control characters made visible."""
    click.echo(printable(text), nl=nl, err=err, file=file)
