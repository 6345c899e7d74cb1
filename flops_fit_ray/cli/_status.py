"""The command that shows and follows a sweep: status."""

from __future__ import annotations

import json
import os
import sys
import time
import zlib
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from flops_fit_ray.cli._common import directory_argument, echo, json_option, open_directory, output_options
from flops_fit_ray.cli._put import put_text
from flops_fit_ray.errors import FlopsFitError, first_line
from flops_fit_ray.storage.storage_path import StoragePath

if TYPE_CHECKING:
    from flops_fit_ray.console.select import OutputStyle
    from flops_fit_ray.sweep.directory import Sweep

WATCH_SECONDS, REMOTE_WATCH_SECONDS = 2.0, 30.0  # between two reads of the plan


@click.command()
@directory_argument
@click.option("--watch", is_flag=True, help="Follow the sweep, as `run` shows it, until it is done or Ctrl-C.")
@output_options
@json_option
def status(directory: StoragePath | None, watch: bool, style: OutputStyle | None, as_json: bool) -> None:
    """Show the progress of a sweep from its files, on any machine that can read them."""
    # Else pydantic looks through all packages that are installed for plugins, a tenth of the time of all this
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from flops_fit_ray.console.status_text import status_text

    sweep = open_directory(directory)
    if watch:
        _watch(sweep, style or "")
        return
    if as_json:
        from flops_fit_ray.storage.paths import SCHEMA_VERSION
        from flops_fit_ray.sweep.scores import scores_of

        content = {
            "schema_version": SCHEMA_VERSION,
            "output": str(sweep.paths.root),
            "status": sweep.counts,
            "flops_planned": sweep.plan.flops,
            "flops_spent": sweep.flops_spent,
            "results_sha256": sweep.results_sha256,
            "writer": sweep.writer,
            "deaths": sweep.num_deaths,
            "running": [
                {"budget": e.budget, "size": e.size, "seconds": p.seconds, **asdict(p)} for e, p in sweep.running
            ],
            "failures": [asdict(f) for f in sweep.failures],
            "mixed_code": sweep.mixed_code,
            "forecasts": scores_of(sweep).to_json(),
            "command": sweep.command,
        }
        echo(json.dumps(content))
        return
    put_text(status_text(sweep))


def _watch(sweep: Sweep, style: OutputStyle) -> None:
    """Follow a sweep directory; its files are only read."""
    from flops_fit_ray.console.select import console_for
    from flops_fit_ray.console.status_text import counts_text
    from flops_fit_ray.ledger import Ledger
    from flops_fit_ray.ledger.watch import Watcher
    from flops_fit_ray.storage.atomic import read_file
    from flops_fit_ray.storage.storage_path import is_remote
    from flops_fit_ray.sweep.directory import open_sweep

    console = console_for(style, sweep.paths, sweep.spec, sys.stdout)
    watcher = Watcher(console, say=console.say)
    watcher.take(Ledger(sweep.paths))
    console.header(sweep.spec, sweep.plan)
    watcher.on_plan(sweep.plan)
    watcher.on_cluster()
    rest = REMOTE_WATCH_SECONDS if is_remote(sweep.paths.root) else WATCH_SECONDS
    seen, trouble = zlib.crc32(read_file(sweep.paths.plan)), ""
    try:
        with watcher.following():
            while trouble or not (sweep.plan.final and watcher.all_told and sweep.writer is None):
                time.sleep(rest)
                try:
                    now = zlib.crc32(read_file(sweep.paths.plan))
                    if now != seen or trouble:
                        sweep = open_sweep(sweep.paths.root)
                        watcher.on_plan(sweep.plan)
                    seen, trouble = now, ""
                except (OSError, FlopsFitError) as e:  # the directory is being made anew, or its files are on their way
                    if trouble != first_line(e):
                        trouble = first_line(e)
                        console.say(f"{trouble}; looking again every {rest:g} s until it is there (Ctrl-C ends)")
    except KeyboardInterrupt:
        return
    console.say(counts_text(open_sweep(sweep.paths.root)))
