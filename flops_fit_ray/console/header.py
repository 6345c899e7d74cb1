"""Header of a run: model, data and training in three lines, from the spec and the measured sizes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.planning import ModelSize, Plan
from flops_fit_ray.spec import SweepSpec
from flops_fit_ray.spec.arguments import readable_name


def header_lines(spec: SweepSpec, plan: Plan) -> list[str]:
    """Return a line each for the model, the data and the training."""
    return [f"model: {_model(spec, plan)}", f"data: {_data(spec, plan)}", f"training: {_training(plan)}"]


def _model(spec: SweepSpec, plan: Plan) -> str:
    used = {e.size for e in plan.expected}
    sizes = sorted((s for s in plan.measurements.sizes if s.size in used), key=lambda s: s.params)
    names = dict.fromkeys(name for s in sizes for name in s.kwargs)
    parts = [str(spec.model.target), f"N {fmt.count(sizes[0].params)} to {fmt.count(sizes[-1].params)}"]
    parts += [f"{name} {_range([s.kwargs[name] for s in sizes if name in s.kwargs])}" for name in names]
    parts += [f"{name} {value}" for name, value in spec.model.kwargs.items()]
    return ", ".join([*parts, *_architecture(sizes[0], sizes[-1])])


def _architecture(smallest: ModelSize, largest: ModelSize) -> list[str]:
    """Return the numbers of modules with weights by kind, and the embedding tables as entries x width."""
    parts = []
    for kind, high in largest.modules.items():
        low = smallest.modules.get(kind, 0)
        parts.append(f"{high if low == high else f'{low} to {high}'} {kind}")
    tables = [f"{entries} x {width}" for entries, width in largest.tables]
    return [*parts, *([f"embedding tables up to {', '.join(tables)}"] if tables else [])]


def _data(spec: SweepSpec, plan: Plan) -> str:
    data = plan.measurements.data
    epoch = data.tokens_per_epoch
    length = "a stream" if data.train_samples is None else f"{data.train_samples:,} samples"
    return ", ".join(
        [
            readable_name(str(spec.data.train)),
            length,
            *([f"{fmt.count(epoch)} tokens"] if epoch is not None else []),
            f"{data.tokens_per_sample} per sample, a token is {data.token_unit}",
            f"held-out: {f'{data.eval_samples:,} samples of ' if data.eval_samples else ''}{data.eval_source}",
        ]
    )


def _training(plan: Plan) -> str:
    experiments = plan.expected
    recipes = [e.recipe for e in experiments]
    first = recipes[0]
    return ", ".join(
        [
            f"batch {_range([r.batch_size for r in recipes])} samples",
            " or ".join(dict.fromkeys(r.precision for r in recipes)) + plan.measurements.dtype_words,
            *(["compiled"] if first.compile else []),
            first.optimizer,
            f"lr {_range([r.lr for r in recipes])}",
            first.schedule + (f" with {100 * first.decay_fraction:g} % decay" if first.schedule == "wsd" else ""),
            f"{_range([e.steps for e in experiments])} steps",
        ]
    )


def _range(values: Sequence[Any]) -> str:
    """Return `smallest to largest` of numbers; other values each once, joined by `or`."""
    once = list(dict.fromkeys(values))
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in once):
        return " or ".join(map(str, once))
    low, high = min(once), max(once)
    named = [f"{v:.2g}" if isinstance(v, float) else (str(v) if v < 10_000 else fmt.count(v)) for v in (low, high)]
    return named[0] if low == high else f"{named[0]} to {named[1]}"
