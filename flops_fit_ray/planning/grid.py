"""The static grid, every budget crossed with its sizes, and the faults and warnings of any grid."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis.diagnostics import range_warning
from flops_fit_ray.analysis.repetition import NEARLY_FRESH
from flops_fit_ray.analysis.valley import MIN_DISTINCT_SIZES
from flops_fit_ray.errors import SpecError
from flops_fit_ray.flags import Flag, warning
from flops_fit_ray.planning._ranges import feasible_range, largest_batch, least_samples, remedy_words
from flops_fit_ray.planning._sizes import TRUSTED_RATIO, auto_range, expected_centre, shared_sizes, size_label
from flops_fit_ray.planning.cells import batch_tokens, max_steps, steps_of
from flops_fit_ray.planning.experiment import AS_THEY_RUN, DataFacts, Experiment, Measurements, ModelSize
from flops_fit_ray.spec import NO_DATA, SYNTHETIC_LOSS, Budget, SweepSpec

MIN_STEPS = 300  # optimizer steps below which a cell is limited by its steps and biases the valley
GOOD_SIZES = 5
LARGEST_ROUNDING = 0.01  # relative change of C by rounding to whole batches
LONGEST_TRUNK = 100.0  # ratio of D along one trunk above which a warning is given

Cell = tuple[Budget, ModelSize]


def static_cells(spec: SweepSpec, measurements: Measurements) -> list[Cell]:
    """Cross budgets with their sizes, by increasing C, then N.

    Raises:
        SpecError: a cell cannot be run (too few sizes, less than one batch, more data than there is); all at once.
    """
    sizes = by_params(measurements)
    cells = [(budget, size) for budget in spec.budgets for size in _sizes_for(spec, budget, sizes, measurements)]
    faults = [*size_faults(spec, sizes), *_budget_faults(spec, cells, measurements)]
    faults = faults or list(_cell_faults(spec, cells, measurements))
    if faults:
        raise SpecError("spec", faults)
    return cells


def centre_of(spec: SweepSpec, measurements: Measurements, budget: float) -> float:
    """First estimate of N_opt at a budget."""
    ratio = spec.grid.tokens_per_param
    return measurements.once(
        ("centre", ratio, budget), lambda: expected_centre(ratio, measurements.by_params, budget, measurements.counting)
    )


def with_budgets_at(spec: SweepSpec, flops: Sequence[float]) -> SweepSpec:
    """Return the spec with these budgets, and no sizes of their own."""
    return spec.model_copy(update={"budgets": [Budget(flops=c) for c in sorted(flops)]})


def by_params(measurements: Measurements) -> list[ModelSize]:
    """Return the sizes by increasing N."""
    return list(measurements.by_params)


def _sizes_for(spec: SweepSpec, budget: Budget, sizes: list[ModelSize], measurements: Measurements) -> list[ModelSize]:
    named = shared_sizes(spec) if budget.sizes is None else budget.sizes
    if named is None:
        low, high = auto_range(centre_of(spec, measurements, budget.flops))
        return [s for s in sizes if low <= s.params <= high]
    wanted = {size_label(s) for s in named}
    return [s for s in sizes if s.size in wanted]


def size_faults(spec: SweepSpec, sizes: Sequence[ModelSize]) -> Iterator[str]:
    """Yield faults of sizes that give the same model, or a smaller one."""
    numbers = sorted((s.size, s.params) for s in sizes if isinstance(s.size, int))
    falls = [(a, b) for a, b in itertools.pairwise(numbers) if b[1] < a[1]]
    for (size, params), (next_size, next_params) in falls[:1]:
        yield (
            f"model.sizes: N falls from {params} at size {size} to {next_params} at size {next_size}; "
            f"check that model.size_param {spec.model.size_param} makes the model larger"
        )
    for params, same in itertools.groupby(sizes, key=lambda s: s.params):
        equal = [str(s.size) for s in same]
        if len(equal) > 1:
            shown = (
                " and ".join(equal) + " both" if len(equal) == 2 else f"{len(equal)} sizes, {equal[0]} to {equal[-1]},"
            )
            yield (
                f"model.sizes: {shown} have N = {params}; check that {spec.model.size_param or 'the size'} changes "
                "the model"
            )


def _budget_faults(spec: SweepSpec, cells: list[Cell], measurements: Measurements) -> list[str]:
    if spec.is_one_run:
        return []
    faults = []
    for budget in spec.budgets:
        sizes = [size.size for b, size in cells if b.flops == budget.flops]
        if len(sizes) < MIN_DISTINCT_SIZES["parabola"]:
            skipped = (
                f"; the model rejected {'; '.join(measurements.skipped)}" if measurements.skipped and not sizes else ""
            )
            faults.append(
                f"budgets: {fmt.flops(budget.flops)} has {fmt.counted(len(sizes), 'size')} {sizes}; a valley needs at "
                f"least {MIN_DISTINCT_SIZES['parabola']}, better {GOOD_SIZES}: give model.sizes{skipped}"
            )
    return faults


def _cell_faults(spec: SweepSpec, cells: list[Cell], measurements: Measurements) -> Iterator[str]:
    steps = {(b.flops, s.size): steps_of(spec, measurements, b.flops, s) for b, s in cells}
    for budget in spec.budgets:
        short = [s for b, s in cells if b is budget and steps[b.flops, s.size] < 1]
        if short:
            least = max(short, key=lambda s: s.flops_per_token)
            yield (
                f"budget {fmt.flops(budget.flops)}, size {least.size}: C covers less than one batch "
                f"({budget.flops / least.flops_per_token:.3g} tokens). {_remedies(spec, measurements, budget)}"
            )
    largest = max_steps(spec, measurements)
    beyond = [(budget, size) for budget, size in cells if steps[budget.flops, size.size] > largest]
    if beyond:
        budget, size = max(beyond, key=lambda cell: steps[cell[0].flops, cell[1].size])
        yield (
            f"data.train: {len(beyond)} of {len(cells)} experiments need more data than there is; the largest needs "
            f"{too_much_data(spec, measurements, budget.flops, size)}. {_remedies(spec, measurements, budget)}; "
            "or drop the smallest sizes there (repeated data biases the optimum)"
        )


def _remedies(spec: SweepSpec, measurements: Measurements, budget: Budget) -> str:
    """Say at which C the sizes of a budget can be run, and which batch or data this C would need."""

    def accepts(spec: SweepSpec, measurements: Measurements, c: float) -> bool:
        sizes = _sizes_for(spec, budget.model_copy(update={"flops": c}), by_params(measurements), measurements)
        few = 1 if spec.is_one_run else MIN_DISTINCT_SIZES["parabola"]
        steps, largest = [steps_of(spec, measurements, c, s) for s in sizes], max_steps(spec, measurements)
        return len(steps) >= few and min(steps) >= 1 and max(steps) <= largest

    possible = feasible_range(spec, measurements, lambda c: accepts(spec, measurements, c), budget.flops)
    batch = largest_batch(spec, lambda other: accepts(other, measurements, budget.flops))
    samples = least_samples(measurements, lambda other: accepts(spec, other, budget.flops))
    return remedy_words("its sizes", possible, batch, samples, measurements)


def too_much_data(spec: SweepSpec, measurements: Measurements, budget: float, size: ModelSize) -> str:
    """Describe the data that a cell needs and those that are allowed."""
    steps, per_epoch = steps_of(spec, measurements, budget, size), measurements.data.train_samples or 1
    samples = steps * spec.train.batch_size
    return (
        f"D = {steps * batch_tokens(spec, measurements):,} tokens (budget {fmt.flops(budget)}, size {size.size}), "
        f"{samples / per_epoch:.3g} epochs of {measurements.data.tokens_per_epoch:,}, where "
        f"data.max_epochs allows {spec.data.max_epochs:g}"
    )


def sweep_warnings(spec: SweepSpec, measurements: Measurements, *, lr_guarded: bool) -> Iterator[Flag]:
    """Yield warnings about the sweep as a whole."""
    span = spec.budgets[-1].flops / spec.budgets[0].flops
    if not spec.is_one_run:
        yield from range_warning(span, len(spec.budgets))
    elif len(spec.budgets) > 1:
        yield warning(
            "one_model",
            f"all {len(spec.budgets)} budgets list one and the same size: one model is trained for longer and longer, "
            "and no law is fitted",
        )
    elif len(spec.budgets[0].sizes or ()) != 1:
        yield warning("one_budget", "one budget gives no law: it can be planned, and run beside one more")
    if spec.train.lr == "auto" and not lr_guarded:
        yield warning(
            "lr_not_measured",
            "train.lr is a general rule, not measured on this model: it may bias the valleys; set grid.lr_guard",
        )
    if isinstance(spec.train.lr, float) and spec.train.optimizer == "adamw":
        yield warning(
            "one_lr",
            "train.lr is one value for all sizes: larger models usually need a lower one; use a rule or a table",
        )
    if spec.train.schedule == "constant":
        yield warning(
            "constant_schedule",
            "train.schedule is constant: without a decay at the end of a run the optimum is biased; use wsd or cosine",
        )
    yield from _data_warnings(spec, measurements.data)
    if spec.data.max_epochs > 1:
        yield warning(
            "repeated_data",
            f"data.max_epochs is {spec.data.max_epochs:g}: repeated data biases the optimum of valleys (surfaces are "
            "fitted to effective tokens); add data if you can",
        )


def _data_warnings(spec: SweepSpec, data: DataFacts) -> Iterator[Flag]:
    if spec.loss == SYNTHETIC_LOSS:
        yield warning(
            "synthetic",
            "nothing is trained: the losses are synthetic, of the surface of Besiroglu et al. 2024 at N and D",
        )
    if data.fingerprint == NO_DATA:
        yield warning(
            "no_data",
            "no data were measured: D is not limited by them, and FLOPs are 6·N·D where no flops_per_token is given",
        )
        return
    if data.train_samples is None:
        yield warning("no_length", "data.train has no length: an experiment fails if the data end before its D")
    if data.eval_samples == 0:
        yield warning(
            "no_held_out",
            "there is no held-out data: losses are training losses, the mean of the last 5 % of steps; set data.eval",
        )


def counting_warnings(measurements: Measurements, sizes: Sequence[ModelSize]) -> Iterator[Flag]:
    """Yield warnings about N and FLOPs of the sizes of a plan, and what is assumed of them."""
    frozen = next((s for s in sizes if s.params_frozen), None)
    if frozen is not None:
        counted = "N counts them too" if measurements.counting < AS_THEY_RUN else "they are not in N"
        yield warning(
            "frozen",
            f"{fmt.count(frozen.params_frozen)} of {fmt.count(frozen.params_total)} parameters are frozen at size "
            f"{frozen.size}: {counted}, and their FLOPs are counted as they run",
        )
    idle = next((s for s in sizes if s.without_gradient), None)
    if idle is not None:
        shown = ", ".join(idle.without_gradient[:3]) + (", ..." if len(idle.without_gradient) > 3 else "")
        yield warning(
            "no_gradient",
            f"{fmt.counted(len(idle.without_gradient), 'parameter')} got no gradient from a first batch ({shown}): N "
            "counts them; "
            "freeze or remove what is never used",
        )
    yield from flops_audit(sizes, unit=measurements.data.token_unit)


def flops_audit(sizes: Sequence[ModelSize], unit: str = "") -> Iterator[Flag]:
    """Yield warnings about counted FLOPs: layers that the counter did not see, and ratios to 6·N·D.

    Args:
        unit: what is counted as a token.
    """
    if any(s.flops_source == "model.flops_per_token" for s in sizes):
        return
    unseen = next((s for s in sizes if s.uncounted), None)
    if unseen is not None:
        shown = ", ".join(unseen.uncounted[:3]) + (", ..." if len(unseen.uncounted) > 3 else "")
        yield warning(
            "uncounted",
            f"no FLOPs were counted in {fmt.counted(len(unseen.uncounted), 'module')} or operations ({shown}): if they "
            "compute, give a function in model.flops_per_token",
        )
    low, high = TRUSTED_RATIO
    outside = [
        s for s in sizes if not low * 6 * s.params <= s.flops_per_token <= high * 6 * (s.params + s.params_frozen)
    ]
    if outside:
        worst = max(outside, key=lambda s: abs(s.flops_per_token / (6 * s.params) - 1))
        ratio = worst.flops_per_token / (6 * worst.params)
        remedy = "to override, set model.flops_per_token"
        if ratio > high and unit == "one sample":
            remedy = (
                f"if a sample holds many tokens (about {ratio:.0f} patches or pixels), set data.tokens_per_sample, "
                f"and D counts them; {remedy}"
            )
        yield warning(
            "flops_ratio",
            f"counted FLOPs are {ratio:.2f} times 6·N·D at size {worst.size}, outside {low:g} to {high:g}: attention "
            f"in a narrow model, shared weights, or layers not counted: {remedy}",
        )


def cell_warnings(experiments: Sequence[Experiment], *, tapers: bool = False) -> Iterator[Flag]:
    """Yield warnings about the cells of a grid; one that `tapers` has few sizes on purpose where they are dear."""
    grid = [e for e in experiments if e.role == "grid"]
    short = [e for e in grid if e.steps < MIN_STEPS]
    if short:
        shortest = min(short, key=lambda e: e.steps)
        yield warning(
            "few_steps",
            f"{len(short)} of {len(grid)} experiments have fewer than {MIN_STEPS} optimizer steps "
            f"(C = {fmt.flops(shortest.budget)}, size {shortest.size}: {shortest.steps}): lower train.batch_size or "
            "raise the budget",
        )
    if grid:
        rounded = max(grid, key=lambda e: abs(e.flops / e.budget - 1))
        if abs(rounded.flops / rounded.budget - 1) > LARGEST_ROUNDING:
            yield warning(
                "rounded_budget",
                f"rounding to whole batches changes C = {fmt.flops(rounded.budget)}, size {rounded.size} by "
                f"{100 * (rounded.flops / rounded.budget - 1):+.1f} %: lower train.batch_size or raise the budget",
            )
    one_model = len({e.size for e in grid}) == 1  # no valley is meant
    for budget in () if one_model else sorted({e.budget for e in grid}):
        count = sum(e.budget == budget for e in grid)
        if count < (MIN_DISTINCT_SIZES["parabola"] if tapers else GOOD_SIZES):
            yield warning(
                "few_sizes",
                f"C = {fmt.flops(budget)} has {count} sizes; add some: from {GOOD_SIZES} on one bad run matters less",
            )
    often = [e.epochs for e in grid if e.epochs is not None and e.epochs > NEARLY_FRESH]
    if often:
        yield warning(
            "repeated_data",
            f"{len(often)} of {len(grid)} experiments see their data more than {NEARLY_FRESH:g} times, up to "
            f"{max(often):.3g}: beyond that repeats are worth less than new data, and the answer is the surfaces'",
        )
    first = {e.key: e.tokens for e in grid}  # the smallest D on the trunk of each
    for e in grid:
        if e.parent is not None:
            first[e.key] = first.get(e.parent, e.tokens)
    longest = max(grid, key=lambda e: e.tokens / first[e.key], default=None)
    if longest is not None and longest.tokens > LONGEST_TRUNK * first[longest.key]:
        yield warning(
            "long_trunk",
            f"size {longest.size}: its trunk spans {longest.tokens / first[longest.key]:.3g}x in D, and one learning "
            "rate is unlikely to suit all of it",
        )
