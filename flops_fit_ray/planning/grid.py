"""The static grid: every budget crossed with its sizes, D worked out for each cell."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from dataclasses import asdict
from typing import Any

from flops_fit_ray.analysis.doubts import range_warning
from flops_fit_ray.analysis.valley import FEWEST
from flops_fit_ray.errors import SpecError
from flops_fit_ray.planning.disk import disk_need
from flops_fit_ray.planning.experiment import Experiment, ModelSize, Plan, Recipe, Survey, content_key
from flops_fit_ray.planning.sizes import auto_range, shared_sizes, size_label
from flops_fit_ray.spec import Budget, LrRule, LrTable, SweepSpec

ENGINE_VERSION = 2  # raised whenever the same recipe would give other bits, so that old results are never mistaken
MIN_STEPS = 300  # below this cells are limited by steps and bend the valley
GOOD_SIZES = 5
WARMUP_SHARE = 0.1  # of the smallest D of the sweep
HARMLESS_DATA_KEYS = {"max_epochs", "timeout_seconds", "eval_every_tokens", "bytes_per_token"}  # change no result
LARGEST_ROUNDING = 0.01  # of a budget, through whole batches


def next_experiments(plan: Plan, settled: Collection[str]) -> tuple[Experiment, ...]:
    """What to run now: the planned experiments that have no outcome yet, longest first.

    Longest first keeps the makespan within a few percent of its lower bound.
    """
    open_ones = (e for e in plan.experiments if e.key not in settled)
    return tuple(sorted(open_ones, key=lambda e: -e.flops))


def make_plan(spec: SweepSpec, survey: Survey) -> Plan:
    """Work out every experiment of a static grid.

    Raises:
        SpecError: a cell has no meaning (too few sizes, less than one batch, more data than there is); all at once.
    """
    sizes = sorted(survey.sizes, key=lambda s: s.params)
    faults = list(_size_faults(spec, sizes))
    cells = [(budget, size) for budget in spec.budgets for size in _sizes_for(spec, budget, sizes)]
    faults += _budget_faults(spec, cells, survey)
    if faults:
        raise SpecError("spec", faults)
    batch_tokens = spec.train.batch_size * survey.data.tokens_per_sample
    # 1) steps = C / (FLOPs per token × tokens per batch), rounded: whole batches, and the rounding is in `flops`
    steps = {(b.flops, s.size): round(b.flops / (s.flops_per_token * batch_tokens)) for b, s in cells}
    faults = list(_cell_faults(spec, cells, steps, survey))
    if faults:
        raise SpecError("spec", faults)
    # 2) warmup is counted in tokens, and bounded by the smallest D of the sweep
    smallest_tokens = min(steps.values()) * batch_tokens
    experiments = tuple(
        _experiment(spec, survey, budget, size, steps[budget.flops, size.size], smallest_tokens)
        for budget, size in cells
    )
    warnings = (*_grid_warnings(spec, survey), *_cell_warnings(experiments))
    return Plan(
        name=spec.name,
        experiments=experiments,
        survey=survey,
        warnings=warnings,
        disk=disk_need(experiments, spec.checkpoint),
    )


def _sizes_for(spec: SweepSpec, budget: Budget, sizes: list[ModelSize]) -> list[ModelSize]:
    named = shared_sizes(spec) if budget.sizes is None else budget.sizes
    if named is None:
        low, high = auto_range(budget.flops)
        return [s for s in sizes if low <= s.params <= high]
    wanted = {size_label(s) for s in named}
    return [s for s in sizes if s.size in wanted]


def _size_faults(spec: SweepSpec, sizes: list[ModelSize]) -> Iterator[str]:
    for smaller, larger in itertools.pairwise(sizes):
        if smaller.params == larger.params:
            yield (
                f"model.sizes: {smaller.size} and {larger.size} both have N = {smaller.params}; "
                f"does {spec.model.size_param or 'the size'} really change the model?"
            )


def _budget_faults(spec: SweepSpec, cells: list[tuple[Budget, ModelSize]], survey: Survey) -> list[str]:
    if spec.is_one_run:
        return []
    faults = []
    for budget in spec.budgets:
        found = [size.size for b, size in cells if b.flops == budget.flops]
        if len(found) < FEWEST["parabola"]:
            skipped = f"; the model refused {'; '.join(survey.skipped)}" if survey.skipped and not found else ""
            faults.append(
                f"budgets: {budget.flops:g} has {len(found)} size(s) {found}; a valley needs at least "
                f"{FEWEST['parabola']}, better {GOOD_SIZES}: give model.sizes{skipped}"
            )
    return faults


def _cell_faults(
    spec: SweepSpec, cells: list[tuple[Budget, ModelSize]], steps: dict[tuple[float, int | str], int], survey: Survey
) -> Iterator[str]:
    for budget, size in cells:
        if steps[budget.flops, size.size] < 1:
            yield (
                f"budget {budget.flops:g}, size {size.size}: C pays for less than one batch "
                f"({budget.flops / size.flops_per_token:.3g} tokens); raise the budget or lower train.batch_size"
            )
    per_epoch = survey.data.train_samples
    if per_epoch is None:  # it ends when it ends; then the experiment fails with the numbers
        return
    largest = spec.data.max_epochs * per_epoch / spec.train.batch_size  # steps that the data allow
    beyond = [(budget, size) for budget, size in cells if steps[budget.flops, size.size] > largest]
    if beyond:
        budget, size = max(beyond, key=lambda cell: steps[cell[0].flops, cell[1].size])
        samples = steps[budget.flops, size.size] * spec.train.batch_size
        yield (
            f"data.train: {len(beyond)} of {len(cells)} experiments need more data than there is; the most is "
            f"D = {samples * survey.data.tokens_per_sample:,} tokens (budget {budget.flops:g}, size {size.size}), "
            f"{samples / per_epoch:.3g} epochs of {survey.data.tokens_per_epoch:,}, where "
            f"data.max_epochs allows {spec.data.max_epochs:g}. Bring more data, drop the smallest sizes there, "
            "or raise data.max_epochs and know that repeats bend the valley"
        )


def _experiment(
    spec: SweepSpec, survey: Survey, budget: Budget, size: ModelSize, steps: int, smallest_tokens: int
) -> Experiment:
    batch_tokens = spec.train.batch_size * survey.data.tokens_per_sample
    tokens = steps * batch_tokens
    per_epoch = survey.data.train_samples
    recipe = Recipe(
        batch_size=spec.train.batch_size,
        micro_batch_size=spec.train.micro_batch_size or spec.train.batch_size,
        optimizer=spec.train.optimizer,
        lr=resolve_lr(spec, size),
        betas=spec.train.betas,
        momentum=spec.train.momentum,
        weight_decay=spec.train.weight_decay,
        grad_clip=spec.train.grad_clip,
        schedule=spec.train.schedule,
        warmup_steps=min(_warmup_tokens(spec, size, smallest_tokens) // batch_tokens, steps - 1),
        decay_fraction=spec.train.decay_fraction,
        decay_shape=spec.train.decay_shape,
        final_lr_fraction=spec.train.final_lr_fraction,
        seed=spec.train.seed,
        precision=spec.train.precision,
        compile=spec.train.compile is True,
        cuda_graph=spec.train.cuda_graph,
    )
    return Experiment(
        key=content_key(_identity(spec, survey, budget, size, tokens, recipe)),
        budget=budget.flops,
        size=size.size,
        size_kwargs=size.kwargs,
        params=size.params,
        params_total=size.params_total,
        tokens=tokens,
        tokens_per_sample=spec.data.tokens_per_sample,
        steps=steps,
        flops=tokens * size.flops_per_token,
        flops_per_token=size.flops_per_token,
        epochs=None if per_epoch is None else steps * spec.train.batch_size / per_epoch,
        recipe=recipe,
    )


def _identity(
    spec: SweepSpec, survey: Survey, budget: Budget, size: ModelSize, tokens: int, recipe: Recipe
) -> dict[str, Any]:
    """All that changes an experiment's result. What only changes how it is run (resources, output) stays out."""
    data = spec.data.model_dump(mode="json", exclude=HARMLESS_DATA_KEYS)
    return {
        "engine": ENGINE_VERSION,
        "model": {"target": spec.model.target, "kwargs": spec.model.kwargs, "size": dict(size.kwargs)},
        "data": {**data, "fingerprint": survey.data.fingerprint},
        "loss": spec.loss,
        "budget": budget.flops,
        "tokens": tokens,
        "recipe": asdict(recipe),
        "parent": None,
    }


def resolve_lr(spec: SweepSpec, size: ModelSize) -> float:
    """The peak learning rate of one size.

    `auto` is lr = 1e-3 · (N / 1e7)^-0.25: about what is published for AdamW from 1e5 to 1e9 parameters, and low rather
    than high where it errs, because half the best rate costs less than twice the best. It is a rule, not a measurement.
    """
    lr = spec.train.lr
    if size.lr is not None:
        return size.lr
    if isinstance(lr, LrTable):
        if size.size not in lr.table:
            raise SpecError("spec", [f"train.lr.table: has no rate for size {size.size}; it has {list(lr.table)}"])
        return lr.table[size.size]
    if isinstance(lr, LrRule):
        x = size.params if lr.of == "params" else size.size
        if isinstance(x, str):
            raise SpecError("spec", ["train.lr.of: 'size' needs sizes that are numbers; use 'params'"])
        return float(lr.base * (x / lr.at) ** lr.exponent)
    if isinstance(lr, str):
        return float(1e-3 * (size.params / 1e7) ** -0.25)
    return lr


def _warmup_tokens(spec: SweepSpec, size: ModelSize, smallest_tokens: int) -> int:
    """At most N tokens and a tenth of the sweep's smallest D (Porian et al. 2024, section 3.3): never fixed steps."""
    if spec.train.warmup_tokens != "auto":
        return spec.train.warmup_tokens
    if spec.train.schedule == "constant" or ":" in spec.train.schedule:  # a user's schedule does its own
        return 0
    return int(min(size.params, WARMUP_SHARE * smallest_tokens))


def _grid_warnings(spec: SweepSpec, survey: Survey) -> Iterator[str]:
    span = spec.budgets[-1].flops / spec.budgets[0].flops
    if not spec.is_one_run:
        yield from map(str, range_warning(span, len(spec.budgets)))
    if spec.train.lr == "auto":
        yield "train.lr is a general rule, not measured on this model: the valleys may be limited by the learning rate"
    if isinstance(spec.train.lr, float) and spec.train.optimizer == "adamw":
        yield "train.lr is one value for all sizes: larger models usually need a lower one"
    if spec.train.schedule == "constant":
        yield "train.schedule is constant: the learning rate does not end at D, which biases the optimum"
    if survey.data.train_samples is None:
        yield "data.train cannot say how long it is: an experiment fails if it ends before D"
    if survey.data.eval_samples == 0:
        yield "there is no held-out data: losses are training losses, smoothed over the last 5 % of the steps"
    if spec.data.max_epochs > 1:
        yield f"data.max_epochs is {spec.data.max_epochs:g}: repeated data bends the valley towards smaller models"


def _cell_warnings(experiments: tuple[Experiment, ...]) -> Iterator[str]:
    short = [e for e in experiments if e.steps < MIN_STEPS]
    if short:
        fewest = min(short, key=lambda e: e.steps)
        yield (
            f"{len(short)} of {len(experiments)} experiments have fewer than {MIN_STEPS} optimizer steps "
            f"(C = {fewest.budget:g}, size {fewest.size}: {fewest.steps}): lower train.batch_size or raise the budget"
        )
    rounded = max(experiments, key=lambda e: abs(e.flops / e.budget - 1))
    if abs(rounded.flops / rounded.budget - 1) > LARGEST_ROUNDING:
        yield (
            f"whole batches move C = {rounded.budget:g}, size {rounded.size} by "
            f"{100 * (rounded.flops / rounded.budget - 1):+.1f} %"
        )
    for budget in sorted({e.budget for e in experiments}):
        count = sum(e.budget == budget for e in experiments)
        if count < GOOD_SIZES:
            yield f"C = {budget:g} has {count} sizes; {GOOD_SIZES} give a valley that one bad run cannot bend"
