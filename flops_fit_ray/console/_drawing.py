"""Drawing of the live state as lines of rich Text that fit the terminal. Unknown values are left out.

Lines are cut and counted here, before rich prints them, because the view must never be higher than the terminal. So
bars and columns are Text, and not rich's ProgressBar and Table, whose height and width only rich knows when it prints.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.text import Text

from flops_fit_ray import formatting as fmt
from flops_fit_ray.console._valley_plot import law_text, letter, optimum_text, plot_valleys
from flops_fit_ray.console.live_state import GpuUse, LiveState, NodeUse, tokens_left_seconds
from flops_fit_ray.ledger import Progress
from flops_fit_ray.planning import Experiment

COLOURS = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_magenta")
WARM, HOT = 75.0, 85.0  # °C
FULL, FULLEST = 0.85, 0.95  # share of a GPU's memory
PLOT_ROWS = (6, 16)  # at least and at most
MAX_GPU_LINES = 16  # GPUs; with more, each node is one line
MIN_RESULTS = 3  # of one budget, before the valleys are plotted
BAR = 24  # characters
EIGHTHS = " ▏▎▍▌▋▊▉█"
HEIGHTS = "▁▂▃▄▅▆▇█"


def draw(state: LiveState, width: int, height: int) -> list[Text]:
    """Draw the whole view in at most `height` lines of at most `width` characters.

    The sweep's line comes first; running experiments, valleys and devices share the rest.
    """
    head = [_sweep_line(state, width)]
    room = height - len(head)
    devices = device_lines(state)
    running = running_lines(state, width, max(2, room - PLOT_ROWS[0] - min(len(devices), room // 4) - 2))
    room -= len(running)
    plot = valley_lines(state, width, min(PLOT_ROWS[1], room - min(len(devices), max(1, room // 3))))
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
    """Draw a bar in eighths of a character."""
    eighths = round(max(0.0, min(1.0, share)) * width * 8)
    whole, rest = divmod(eighths, 8)
    filled = "█" * whole + (EIGHTHS[rest] if rest else "")
    return Text.assemble((filled, style), ("·" * (width - len(filled)), "dim"))


def _sweep_line(state: LiveState, width: int) -> Text:
    pace = state.pace
    done = f"{state.completed}/{state.total}{'' if state.final else '+'}"
    parts: list[str | tuple[str, str] | Text] = [
        (f"{state.name} ", "bold"),
        bar(pace.share, max(8, min(BAR, width // 5))),
        f" {100 * pace.share:.0f} %  ",
        f"{fmt.flops(pace.flops_done)}/{fmt.flops(pace.flops_planned)} FLOPs  " if pace.flops_done else "",
        f"{done} done",
        (f", {state.failed} failed", "red") if state.failed else "",
        f"  {clock(pace.elapsed)}",
    ]
    if pace.seconds_left is not None and pace.share < 1:
        parts.append((f"  ETA {clock(pace.seconds_left)}", "bold"))
    if pace.flops_per_second and width >= 120:
        parts.append((f"  {fmt.flops(pace.flops_per_second)} FLOP/s", "dim"))
    return Text.assemble(*parts)


def clock(seconds: float) -> str:
    """Format seconds as h:mm:ss: 75 -> 1:15."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


@dataclass(frozen=True)
class _Column:
    """A column of the running experiments."""

    head: str
    rank: int  # columns of low rank are kept when the terminal is narrow
    cell: Callable[[LiveState, Experiment, Progress], str]


def _loss(state: LiveState, e: Experiment, p: Progress) -> str:
    return "" if p.train_loss is None else f"{p.train_loss:.4f}"


def _perplexity(state: LiveState, e: Experiment, p: Progress) -> str:
    value = None if p.train_loss is None else state.perplexity(p.train_loss)
    return "" if value is None else f"{value:.4g}"


def _steps_per_second(state: LiveState, e: Experiment, p: Progress) -> str:
    steps, _ = e.rates(p.tokens_per_second)
    return "" if steps is None else f"{steps:.3g}"


def _left(state: LiveState, e: Experiment, p: Progress) -> str:
    seconds = tokens_left_seconds(p)
    return "" if seconds is None else clock(seconds)


RUNNING_COLUMNS = (
    _Column("loss", 0, _loss),
    _Column("ppl", 3, _perplexity),
    _Column("lr", 4, lambda s, e, p: "" if p.lr is None else f"{p.lr:.1e}"),
    _Column("grad", 5, lambda s, e, p: "" if p.grad_norm is None else f"{p.grad_norm:.3g}"),
    _Column("tokens", 7, lambda s, e, p: f"{fmt.count(p.tokens_seen)}/{fmt.count(p.tokens)}"),
    _Column("/s", 2, lambda s, e, p: "" if p.tokens_per_second is None else fmt.count(p.tokens_per_second)),
    _Column("steps/s", 8, _steps_per_second),
    _Column("MFU", 3, lambda s, e, p: "" if p.mfu is None else f"{100 * p.mfu:.0f} %"),
    _Column("left", 1, _left),
    _Column("where", 6, lambda s, e, p: f"{p.host}:{p.pid}"),
)


def running_lines(state: LiveState, width: int, room: int) -> list[Text]:
    """Draw one line per running experiment under a line of column names."""
    if not state.running or room < 2:
        return []
    shown = state.running if len(state.running) < room else state.running[: max(1, room - 2)]
    names = [f"C {fmt.flops(e.budget)} · {e.size}{_role(e)}" for e, _ in shown]
    first = min(max(map(len, names)), max(12, width // 4))
    bars = 10 if width < 120 else 20
    cells = {column: [column.cell(state, e, p) for e, p in shown] for column in RUNNING_COLUMNS}
    widths = {c: max([len(c.head), *map(len, cells[c])]) for c in RUNNING_COLUMNS if any(cells[c])}
    kept, used = set(), first + 1 + bars + 6
    for column in sorted(widths, key=lambda c: c.rank):
        if used + widths[column] + 2 > width:
            break
        kept.add(column)
        used += widths[column] + 2
    order = [column for column in RUNNING_COLUMNS if column in kept]
    head = " " * (first + 1 + bars + 6) + "".join(f"  {c.head.rjust(widths[c])}" for c in order)
    lines = [Text(head, style="dim")]
    for i, (e, p) in enumerate(shown):
        share = p.tokens_seen / p.tokens
        figures = "".join(f"  {cells[c][i].rjust(widths[c])}" for c in order)
        name = names[i][:first].ljust(first + 1)
        lines.append(Text.assemble(name, bar(share, bars, _colour_of(state, e)), f" {100 * share:3.0f} %", figures))
    if len(shown) < len(state.running):
        lines.append(Text(f"... and {len(state.running) - len(shown)} more", style="dim"))
    return lines[:room]


def _role(e: Experiment) -> str:
    if e.role in ("probe", "lr_check"):
        return f" lr {e.recipe.lr:.1e}"
    if e.role == "batch_check":
        return f" batch {e.recipe.batch_size}"
    return "" if e.role == "grid" else f" {e.role}"


def _colour_of(state: LiveState, e: Experiment) -> str:
    budgets = [] if state.fit is None else [v.budget for v in state.fit.valleys]
    return COLOURS[budgets.index(e.budget) % len(COLOURS)] if e.budget in budgets else "white"


def device_lines(state: LiveState) -> list[Text]:
    """Draw one line per GPU, or one per node if there are many; of a node without GPUs, its cores and memory."""
    fold = sum(len(node.gpus) for node in state.nodes) > MAX_GPU_LINES
    lines = []
    for node in state.nodes:
        if not node.gpus:
            lines.append(_cpu_line(node))
        elif fold:
            lines.append(_folded_line(node))
        else:
            lines += [_gpu_line(node, use, alone=len(state.nodes) == 1) for use in node.gpus]
    return lines


def _cpu_line(node: NodeUse) -> Text:
    m, parts = node.machine, []
    if m.cpu_share is not None:
        parts.append(f"CPU {100 * m.cpu_share:.0f} %" + (f" of {fmt.counted(m.cpus, 'core')}" if m.cpus else ""))
    elif m.cpus:
        parts.append(fmt.counted(m.cpus, "core"))
    if m.memory_used is not None and m.memory_total:
        parts.append(f"memory {fmt.size(m.memory_used)} of {fmt.size(m.memory_total)}")
    parts.append(f"{node.running} running")
    return Text.assemble((f"{m.host}  ", "bold"), "  ".join(parts))


def _gpu_line(node: NodeUse, use: GpuUse, *, alone: bool) -> Text:
    gpu = use.gpu
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
    names = ", ".join(f"C {fmt.flops(e.budget)} · {e.size}" for e in use.experiments)
    parts.append((names or "idle", "" if names else "dim"))
    return Text.assemble(*parts)


def _folded_line(node: NodeUse) -> Text:
    """Draw a node's GPUs as one character each: its height is utilisation, its colour temperature and memory."""
    cells: list[tuple[str, str]] = []
    for use in node.gpus:
        gpu = use.gpu
        if gpu.utilisation is None:
            cells.append(("·", "dim"))
            continue
        glyph = HEIGHTS[min(7, int(gpu.utilisation * 8))]
        worst = max(_level(gpu.temperature or 0.0, WARM, HOT), _level(gpu.memory_share or 0.0, FULL, FULLEST))
        cells.append((glyph, ("green", "yellow", "bold red")[worst]))
    gpus = [use.gpu for use in node.gpus]
    utilisation = [g.utilisation for g in gpus if g.utilisation is not None]
    temperature = [g.temperature for g in gpus if g.temperature is not None]
    power = [g.power for g in gpus if g.power is not None]
    memory = [g.memory_share for g in gpus if g.memory_share is not None]
    parts = [
        f"{len(gpus)} x {gpus[0].name}",
        f"{100 * sum(utilisation) / len(utilisation):.0f} %" if utilisation else "",
        f"memory max {100 * max(memory):.0f} %" if memory else "",
        f"max {max(temperature):.0f} °C" if temperature else "",
        f"{sum(power) / 1000:.1f} kW" if power else "",
        f"{node.running} running",
    ]
    totals = "  ".join(part for part in parts if part)
    return Text.assemble((f"{node.machine.host} ", "bold"), *cells, f"  {totals}")


def _level(value: float, warm: float, hot: float) -> int:
    return (value >= warm) + (value >= hot)


def _heat(value: float, warm: float, hot: float) -> str:
    return ("", "yellow", "bold red")[_level(value, warm, hot)]


def valley_lines(state: LiveState, width: int, height: int) -> list[Text]:
    """Draw the plot of the valleys, the optimum of each budget beside it, and the law below."""
    fit = state.fit
    if fit is None or height < PLOT_ROWS[0] or max((len(v.loss) for v in fit.valleys), default=0) < MIN_RESULTS:
        return []
    beside = [
        Text(f"{letter(i)} C {fmt.flops(v.budget)}  {optimum_text(v, within)}", style=COLOURS[i % len(COLOURS)])
        for i, (v, within) in enumerate(zip(fit.valleys, fit.intervals, strict=True))
    ]
    rows = height - 2  # of the plot; the others are the axis of N and the law
    if len(beside) > rows:
        beside = [
            Text(f"... and {fmt.counted(len(beside) - rows + 1, 'budget')} below", style="dim"),
            *beside[-(rows - 1) :],
        ]
    widest = max((len(line) for line in beside), default=0)
    columns = min(72, width - widest - 12)
    plot = plot_valleys(fit, columns, rows) if columns >= 20 else None
    if plot is None:
        return [*beside, Text(law_text(fit), style="bold")]
    lines = []
    for i, row in enumerate(plot.rows):
        edge = {0: f"{plot.loss[1]:.3f}", rows - 1: f"{plot.loss[0]:.3f}"}.get(i, "")
        line = Text.assemble((f"{edge:>7} │", "dim"))
        for cell in row:
            line.append(
                " " if cell is None else cell.glyph, None if cell is None else COLOURS[cell.budget % len(COLOURS)]
            )
        line.append("  ")
        if i < len(beside):
            line.append_text(beside[i])
        lines.append(line)
    low, high = (fmt.count(n) for n in plot.params)
    axis = f"{'loss':>7} └ N {low}".ljust(8 + columns - len(high)) + f" {high}"
    return [*lines, Text(axis, style="dim"), Text(law_text(fit), style="bold")]
