"""A scene as lines of a terminal, as many and as long as there is room for. What is not known is not shown."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from flops_fit_ray import formatting as fmt
from flops_fit_ray.console.scene import Holder, Node, Scene, tokens_left_seconds
from flops_fit_ray.console.valley_plot import law_text, letter, optimum_text, picture
from flops_fit_ray.ledger import Progress
from flops_fit_ray.planning import Experiment

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")
WARM, HOT = 75.0, 85.0  # °C
FULL, FULLEST = 0.85, 0.95  # of a GPU's memory
PLOT_ROWS = (6, 16)  # at least and at most
FOLDED = 16  # GPUs; of more, each node is one line
MIN_SHOWN = 3  # results of a budget
BAR = 24  # characters
EIGHTHS = " ▏▎▍▌▋▊▉█"
LEVELS = "▁▂▃▄▅▆▇█"


def draw(scene: Scene, width: int, height: int) -> list[Text]:
    """The whole view in at most `height` lines of at most `width` characters.

    The sweep's own line is always there. What runs comes next, then the valleys, then the devices, each as far as the
    room goes.
    """
    head = [_sweep_line(scene, width)]
    room = height - len(head)
    devices = device_lines(scene)
    running = running_lines(scene, width, max(2, room - PLOT_ROWS[0] - min(len(devices), room // 4) - 2))
    room -= len(running)
    plot = valley_lines(scene, width, min(PLOT_ROWS[1], room - min(len(devices), max(1, room // 3))))
    room -= len(plot)
    return [_cut(line, width) for line in [*head, *running, *_some(devices, room), *plot]][:height]


def _cut(line: Text, width: int) -> Text:
    line.no_wrap = True
    line.truncate(width, overflow="ellipsis")
    return line


def _some(lines: Sequence[Text], room: int) -> list[Text]:
    if len(lines) <= room:
        return list(lines)
    more = Text(f"  ... and {len(lines) - room + 1} more lines of devices", style="dim")
    return [*lines[: room - 1], more] if room > 0 else []


def bar(share: float, width: int, style: str = "cyan") -> Text:
    """A bar in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    filled = "█" * whole + (EIGHTHS[rest] if rest else "")
    return Text.assemble((filled, style), ("·" * (width - len(filled)), "dim"))


def _sweep_line(scene: Scene, width: int) -> Text:
    pace = scene.pace
    done = f"{scene.completed}/{scene.total}{'' if scene.final else '+'}"
    words: list[str | tuple[str, str] | Text] = [
        (f"{scene.name} ", "bold"),
        bar(pace.share, max(8, min(BAR, width // 5))),
        f" {100 * pace.share:.0f} %  ",
        f"{fmt.flops(pace.flops_done)}/{fmt.flops(pace.flops_planned)} FLOPs  " if pace.flops_done else "",
        f"{done} done",
        (f", {scene.failed} failed", "red") if scene.failed else "",
        f"  {clock(pace.elapsed)}",
    ]
    if pace.seconds_left is not None and pace.share < 1:
        words.append((f"  ETA {clock(pace.seconds_left)}", "bold"))
    if pace.flops_per_second and width >= 120:
        words.append((f"  {fmt.flops(pace.flops_per_second)} FLOP/s", "dim"))
    return Text.assemble(*words)


def clock(seconds: float) -> str:
    """75 -> 1:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class _Column:
    """A figure of what runs. The wider the terminal, the more of them."""

    head: str
    rank: int  # the smaller, the sooner
    cell: Callable[[Scene, Experiment, Progress], str]


def _loss(scene: Scene, e: Experiment, p: Progress) -> str:
    return "" if p.train_loss is None else f"{p.train_loss:.4f}"


def _perplexity(scene: Scene, e: Experiment, p: Progress) -> str:
    known = scene.perplexity and p.train_loss is not None and p.train_loss < 700
    return f"{math.exp(p.train_loss or 0):.4g}" if known else ""


def _left(scene: Scene, e: Experiment, p: Progress) -> str:
    seconds = tokens_left_seconds(p)
    return "" if seconds is None else clock(seconds)


COLUMNS = (
    _Column("loss", 0, _loss),
    _Column("ppl", 3, _perplexity),
    _Column("lr", 4, lambda s, e, p: "" if p.lr is None else f"{p.lr:.1e}"),
    _Column("grad", 5, lambda s, e, p: "" if p.grad_norm is None else f"{p.grad_norm:.3g}"),
    _Column("tokens", 7, lambda s, e, p: f"{fmt.count(p.tokens_seen)}/{fmt.count(p.tokens)}"),
    _Column("/s", 2, lambda s, e, p: "" if p.tokens_per_second is None else fmt.count(p.tokens_per_second)),
    _Column("MFU", 3, lambda s, e, p: "" if p.mfu is None else f"{100 * p.mfu:.0f} %"),
    _Column("left", 1, _left),
    _Column("where", 6, lambda s, e, p: f"{p.host}:{p.pid}"),
)


def running_lines(scene: Scene, width: int, room: int) -> list[Text]:
    """One line for each experiment that runs, under the names of its figures."""
    if not scene.running or room < 2:
        return []
    shown = scene.running if len(scene.running) < room else scene.running[: max(1, room - 2)]
    names = [f"C {fmt.flops(e.budget)} · {e.size}{_role(e)}" for e, _ in shown]
    first = min(max(map(len, names)), max(12, width // 4))
    bars = 10 if width < 120 else 20
    cells = {column: [column.cell(scene, e, p) for e, p in shown] for column in COLUMNS}
    widths = {c: max([len(c.head), *map(len, cells[c])]) for c in COLUMNS if any(cells[c])}
    kept, used = set(), first + 1 + bars + 6
    for column in sorted(widths, key=lambda c: c.rank):
        if used + widths[column] + 2 > width:
            break
        kept.add(column)
        used += widths[column] + 2
    order = [column for column in COLUMNS if column in kept]
    head = " " * (first + 1 + bars + 6) + "".join(f"  {c.head.rjust(widths[c])}" for c in order)
    lines = [Text(head, style="dim")]
    for i, (e, p) in enumerate(shown):
        share = p.tokens_seen / p.tokens
        figures = "".join(f"  {cells[c][i].rjust(widths[c])}" for c in order)
        name = names[i][:first].ljust(first + 1)
        lines.append(Text.assemble(name, bar(share, bars, _colour_of(scene, e)), f" {100 * share:3.0f} %", figures))
    if len(shown) < len(scene.running):
        lines.append(Text(f"... and {len(scene.running) - len(shown)} more", style="dim"))
    return lines[:room]


def _role(e: Experiment) -> str:
    if e.role in ("probe", "lr_check"):
        return f" lr {e.recipe.lr:.1e}"
    return "" if e.role == "grid" else f" {e.role}"


def _colour_of(scene: Scene, e: Experiment) -> str:
    budgets = [] if scene.fit is None else [v.budget for v in scene.fit.valleys]
    return COLOURS[budgets.index(e.budget) % len(COLOURS)] if e.budget in budgets else "white"


def device_lines(scene: Scene) -> list[Text]:
    """One line per GPU; of many, one per node; of a node without, its cores and memory."""
    fold = sum(len(node.gpus) for node in scene.nodes) > FOLDED
    lines = []
    for node in scene.nodes:
        if not node.gpus:
            lines.append(_cpu_line(node))
        elif fold:
            lines.append(_folded_line(node))
        else:
            lines += [_gpu_line(node, holder, alone=len(scene.nodes) == 1) for holder in node.gpus]
    return lines


def _cpu_line(node: Node) -> Text:
    m, words = node.machine, []
    if m.cpu_share is not None:
        words.append(f"CPU {100 * m.cpu_share:.0f} %" + (f" of {m.cpus} cores" if m.cpus else ""))
    elif m.cpus:
        words.append(f"{m.cpus} cores")
    if m.memory_used is not None and m.memory_total:
        words.append(f"memory {fmt.size(m.memory_used)} of {fmt.size(m.memory_total)}")
    words.append(f"{node.running} running")
    return Text.assemble((f"{m.host}  ", "bold"), "  ".join(words))


def _gpu_line(node: Node, holder: Holder, *, alone: bool) -> Text:
    gpu = holder.gpu
    parts: list[str | tuple[str, str] | Text] = [
        (f"{'' if alone else node.machine.host + ' '}GPU {gpu.index} ", "bold"),
        f"{gpu.name}  ",
    ]
    if gpu.utilisation is not None:
        parts += [bar(gpu.utilisation, 8, "green"), f" {100 * gpu.utilisation:3.0f} %  "]
    if gpu.memory_share is not None and gpu.memory_total is not None:
        used = gpu.memory_share * gpu.memory_total / 2**30
        parts.append((f"{used:3.0f}/{gpu.memory_total / 2**30:.0f} GiB  ", _heat(gpu.memory_share, FULL, FULLEST)))
    if gpu.temperature is not None:
        parts.append((f"{gpu.temperature:.0f} °C  ", _heat(gpu.temperature, WARM, HOT)))
    if gpu.power is not None:
        limit = f"/{gpu.power_limit:.0f}" if gpu.power_limit else ""
        parts.append(f"{gpu.power:.0f}{limit} W  ")
    held = ", ".join(f"C {fmt.flops(e.budget)} · {e.size}" for e in holder.experiments)
    parts.append((held or "idle", "" if held else "dim"))
    return Text.assemble(*parts)


def _folded_line(node: Node) -> Text:
    """A node's GPUs as one character each, as high as it is busy and as red as it is hot or full."""
    cells: list[tuple[str, str]] = []
    for holder in node.gpus:
        gpu = holder.gpu
        if gpu.utilisation is None:
            cells.append(("·", "dim"))
            continue
        glyph = LEVELS[min(7, int(gpu.utilisation * 8))]
        worst = max(_level(gpu.temperature or 0.0, WARM, HOT), _level(gpu.memory_share or 0.0, FULL, FULLEST))
        cells.append((glyph, ("green", "yellow", "bold red")[worst]))
    gpus = [holder.gpu for holder in node.gpus]
    busy = [g.utilisation for g in gpus if g.utilisation is not None]
    warmth = [g.temperature for g in gpus if g.temperature is not None]
    power = [g.power for g in gpus if g.power is not None]
    fullest = [g.memory_share for g in gpus if g.memory_share is not None]
    words = [
        f"{len(gpus)} x {gpus[0].name}",
        f"{100 * sum(busy) / len(busy):.0f} %" if busy else "",
        f"memory max {100 * max(fullest):.0f} %" if fullest else "",
        f"max {max(warmth):.0f} °C" if warmth else "",
        f"{sum(power) / 1000:.1f} kW" if power else "",
        f"{node.running} running",
    ]
    said = "  ".join(word for word in words if word)
    return Text.assemble((f"{node.machine.host} ", "bold"), *cells, f"  {said}")


def _level(value: float, warm: float, hot: float) -> int:
    return (value >= warm) + (value >= hot)


def _heat(value: float, warm: float, hot: float) -> str:
    return ("", "yellow", "bold red")[_level(value, warm, hot)]


def valley_lines(scene: Scene, width: int, height: int) -> list[Text]:
    """The valleys as far as results go, and beside them the optimum of each budget; under them the law."""
    fit = scene.fit
    if fit is None or height < PLOT_ROWS[0] or max(len(v.loss) for v in fit.valleys) < MIN_SHOWN:
        return []
    beside = [
        Text(f"{letter(i)} C {fmt.flops(v.budget)}  {optimum_text(v, within)}", style=COLOURS[i % len(COLOURS)])
        for i, (v, within) in enumerate(zip(fit.valleys, fit.intervals, strict=True))
    ]
    rows = height - 2  # the edges of N, and the law
    if len(beside) > rows:
        beside = [Text(f"... and {len(beside) - rows + 1} budgets below", style="dim"), *beside[-(rows - 1) :]]
    widest = max((len(line) for line in beside), default=0)
    plot = min(72, width - widest - 12)
    drawn = picture(fit, plot, rows) if plot >= 20 else None
    if drawn is None:
        return [*beside, Text(law_text(fit), style="bold")]
    lines = []
    for i, row in enumerate(drawn.rows):
        edge = {0: f"{drawn.loss[1]:.3f}", rows - 1: f"{drawn.loss[0]:.3f}"}.get(i, "")
        line = Text.assemble((f"{edge:>7} │", "dim"))
        for cell in row:
            line.append(
                " " if cell is None else cell.glyph, None if cell is None else COLOURS[cell.budget % len(COLOURS)]
            )
        line.append("  ")
        if i < len(beside):
            line.append_text(beside[i])
        lines.append(line)
    low, high = (fmt.count(n) for n in drawn.params)
    axis = f"{'loss':>7} └ N {low}".ljust(8 + plot - len(high)) + f" {high}"
    return [*lines, Text(axis, style="dim"), Text(law_text(fit), style="bold")]
