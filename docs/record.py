"""Record the live view of a sweep while it runs, as a moving SVG: `python -m docs.record DIRECTORY [OUT.svg]`.

Start it beside `run`. It follows the directory as `status --watch` does, keeps the pictures that the view drew, and
writes a few of them when the sweep is done, or at Ctrl-C.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
import time
from pathlib import Path

from rich.console import Console, Group
from rich.text import Text

from flops_fit_ray.console._drawing import draw
from flops_fit_ray.console._live import LiveConsole
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.ledger.watch import Watcher
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import storage_path
from flops_fit_ray.sweep.directory import open_sweep

WIDTH, HEIGHT = 100, 22  # of the terminal
FRAMES, SECONDS_EACH = 6, 2.0


class Recorder(LiveConsole):
    """A live view that keeps each picture which differs from the one before."""

    def __init__(self, paths: SweepPaths, spec: SweepSpec) -> None:
        super().__init__(paths, spec, Console(file=io.StringIO(), width=WIDTH, height=HEIGHT))
        self.pictures: list[list[Text]] = []

    def _draw(self) -> None:
        super()._draw()
        if self._plan is not None and self._live is not None:
            lines = draw(self.state(), WIDTH, HEIGHT)
            if not self.pictures or [str(line) for line in lines] != [str(line) for line in self.pictures[-1]]:
                self.pictures.append(lines)


def record(directory: str) -> list[list[Text]]:
    """Return the pictures of a sweep from now until it is done or Ctrl-C."""
    sweep = open_sweep(storage_path(directory))
    view = Recorder(sweep.paths, sweep.spec)
    watcher = Watcher(view, say=lambda line: None)
    watcher.take(Ledger(sweep.paths))
    watcher.on_plan(sweep.plan)
    watcher.on_cluster()
    with contextlib.suppress(KeyboardInterrupt), watcher.following():
        while not (sweep.plan.final and watcher.all_told):
            time.sleep(1)
            newest = open_sweep(sweep.paths.root)
            if newest.plan != sweep.plan:
                watcher.on_plan(newest.plan)
            sweep = newest
    return view.pictures


def moving(pictures: list[list[Text]], title: str) -> str:
    """Return pictures as one SVG that shows them in turn; rich draws each."""
    chosen = [pictures[i * (len(pictures) - 1) // max(1, FRAMES - 1)] for i in range(min(FRAMES, len(pictures)))]
    total, frames, whole = SECONDS_EACH * len(chosen), [], ""
    for number, lines in enumerate(chosen):
        console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True, color_system="truecolor")
        padded = [*lines, *([Text("")] * (HEIGHT - len(lines)))]
        console.print(Group(*padded[:HEIGHT]))
        whole = console.export_svg(title=title, unique_id=f"f{number}")
        inner = re.search(rf'<g class="f{number}-matrix">.*?</g>', whole, flags=re.DOTALL)
        styles = re.findall(rf"\.f{number}-r\d+ {{[^}}]*}}", whole)
        assert inner is not None
        frames.append((re.sub(r' clip-path="[^"]*"', "", inner[0]), styles))
    screen = f'<rect width="{12.2 * WIDTH:g}" height="{24.4 * HEIGHT:g}" fill="#292929"/>'  # covers the one before
    shown = "".join(
        f'<g class="frame" style="animation-delay:{number * SECONDS_EACH:g}s">{screen}{body}</g>'
        for number, (body, _) in enumerate(frames)
    )
    last = len(frames) - 1
    whole = re.sub(rf'<g class="f{last}-matrix">.*?</g>', lambda _: shown, whole, flags=re.DOTALL)
    rules = [rule for _, styles in frames[:-1] for rule in styles]
    font = "font-family: Fira Code, monospace; font-size: 20px; line-height: 24.4px"
    rules += [f".f{number}-matrix {{ {font} }}" for number in range(last)]
    rules += [
        f".frame {{ visibility: hidden; animation: turn {total:g}s infinite step-end }}",
        f"@keyframes turn {{ 0% {{ visibility: visible }} {100 / len(frames):.3f}% {{ visibility: hidden }} }}",
    ]
    whole = re.sub(r"@font-face \{.*?\}\s*", "", whole, flags=re.DOTALL)  # a picture in a page may load none
    whole = re.sub(r"<clipPath id=\"f\d+-line-\d+\">.*?</clipPath>\s*", "", whole, flags=re.DOTALL)
    return whole.replace("</style>", "\n".join(rules) + "\n</style>", 1)


if __name__ == "__main__":
    where, out = sys.argv[1], Path(sys.argv[2] if len(sys.argv) > 2 else "docs/live.svg")
    out.write_text(moving(record(where), f"flops-fit-ray run {where.rpartition('/')[2]}"))
