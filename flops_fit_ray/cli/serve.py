"""The command that serves sweeps over HTTP: serve."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import click

from flops_fit_ray.errors import DirectoryError, ResourceError


@click.command()
@click.option(
    "--root",
    type=click.Path(path_type=Path, file_okay=False),
    default="runs",
    show_default=True,
    help="Where the sweep directories are.",
)
@click.option(
    "--code",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    multiple=True,
    help="A directory whose code specs may name; may be repeated. Without one nothing can be started.",
)
@click.option(
    "--address", help="Start sweeps as jobs of the Ray cluster with this dashboard [default: as processes here]."
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen; anything else is on your head.")
@click.option("--port", type=click.IntRange(1, 65535), default=8400, show_default=True)
@click.option(
    "--name",
    "names",
    multiple=True,
    metavar="HOST[:PORT]",
    help="A name that browsers reach it by, as through a proxy.",
)
@click.option(
    "--at-once", type=click.IntRange(min=1), default=1, show_default=True, help="Sweeps side by side; more wait."
)
@click.option("--queue", type=click.IntRange(min=0), default=20, show_default=True, help="How many may wait.")
def serve(
    root: Path,
    code: tuple[Path, ...],
    address: str | None,
    host: str,
    port: int,
    names: tuple[str, ...],
    at_once: int,
    queue: int,
) -> None:
    """Serve sweeps over HTTP: a page for people, /api/v1 for programs. Ctrl-C ends it; sweeps go on.

    Whoever asks shows the token in ROOT/.service/token. It runs the code of --code, and none besides.
    """
    missing = [name for name in ("fastapi", "uvicorn") if importlib.util.find_spec(name) is None]
    if missing:
        raise ResourceError(f"serving needs {' and '.join(missing)}: pip install 'flops-fit-ray[serve]'")
    from flops_fit_ray.service.app import Settings
    from flops_fit_ray.service.app import serve as run

    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise DirectoryError(f"{root}: cannot be written: {e.strerror}; choose another --root") from e
    settings = Settings(
        root=root.resolve(), code=tuple(c.resolve() for c in code), host=host, port=port, names=names,
        address=address, at_once=at_once, most_waiting=queue,
    )  # fmt: skip
    try:
        run(settings, click.echo)
    except KeyboardInterrupt:
        click.echo("ended; sweeps go on")
