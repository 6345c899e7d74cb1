"""Command that serves sweeps over HTTP: serve."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path

import click

from flops_fit_ray.cli._common import LocalPath
from flops_fit_ray.cli._put import put_text
from flops_fit_ray.errors import ResourceError


@click.command()
@click.option(
    "--root",
    type=LocalPath(file_okay=False),
    default="runs",
    show_default=True,
    help="Directory of the sweep directories.",
)
@click.option(
    "--code",
    type=LocalPath(file_okay=False, exists=True),
    multiple=True,
    help="Directory of Python code that specs may load; may be repeated. Without one no sweep can be started.",
)
@click.option(
    "--address", help="URL of a Ray dashboard, to run sweeps as jobs there [default: run as processes on this machine]."
)
@click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Address to listen on; any other than loopback exposes the token and the sweeps without TLS.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8400,
    show_default=True,
    help="Port to listen on; 0 for any free one, which the first line names.",
)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Further host name accepted in requests, e.g. that of a reverse proxy; may be repeated.",
)
@click.option(
    "--tracker-host",
    "tracker_hosts",
    multiple=True,
    metavar="HOST[:PORT]",
    help="Server that specs may name as tracking_uri of MLflow; may be repeated [default: none].",
)
@click.option(
    "--at-once",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Sweeps that run at a time; further ones are queued.",
)
@click.option("--queue", type=click.IntRange(min=0), default=20, show_default=True, help="Maximum length of the queue.")
def serve(
    root: Path,
    code: tuple[Path, ...],
    address: str | None,
    host: str,
    port: int,
    names: tuple[str, ...],
    tracker_hosts: tuple[str, ...],
    at_once: int,
    queue: int,
) -> None:
    """Serve sweeps over HTTP: web pages, and a REST API at /api/v1. Ctrl-C ends the server; sweeps keep running.

    Every request needs the token in ROOT/.service/token. Only code in the --code directories is run.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ResourceError(f"serving needs {' and '.join(missing)}: pip install 'flops-fit-ray[serve]'")
    from flops_fit_ray.service.app import Settings
    from flops_fit_ray.service.app import serve as run

    settings = Settings(
        root=root.resolve(), code=tuple(c.resolve() for c in code), host=host, port=port, names=names,
        tracker_hosts=tracker_hosts, address=address, at_once=at_once, max_queued=queue,
    )  # fmt: skip
    with contextlib.suppress(KeyboardInterrupt):
        run(settings, put_text)
    put_text("server ended; sweeps keep running")
