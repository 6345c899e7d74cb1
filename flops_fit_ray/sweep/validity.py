"""The validity card: fourteen questions that decide whether a sweep means anything, each with its number.

The largest effects come first, by how far each moved the exponent in published sweeps (Porian et al. 2024; Hoffmann et
al. 2022, appendix B). A table of runs cannot answer all of them; what it does not know is UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from flops_fit_ray.analysis import Analysis, SweepFit, analysis_to_json
from flops_fit_ray.analysis.doubts import TRUSTED_BUDGETS, TRUSTED_RANGE
from flops_fit_ray.analysis.outliers import EXACT, OUTLIER, deviations
from flops_fit_ray.planning import Experiment
from flops_fit_ray.planning.grid import TRUSTED_RATIO
from flops_fit_ray.spec import LrRule, LrTable
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.tables import Table

Verdict = Literal["PASS", "WARN", "FAIL", "UNKNOWN"]

WARMUP_SHARE = 0.1  # of the smallest D
STEPS_PASS, STEPS_FAIL = 300, 110  # in the cell with the fewest
EPOCHS_PASS, EPOCHS_FAIL = 1.0, 4.0
GOOD_SIZES = 5
WINDOW = (2.5, 8.0)  # from the smallest and the largest size to the optimum
MIN_DF = 6  # degrees of freedom behind the noise


@dataclass(frozen=True, kw_only=True)
class Line:
    """One question."""

    item: str
    verdict: Verdict
    words: str

    def to_json(self) -> dict[str, str]:
        """Plain values."""
        return asdict(self)


def validity_card(fit: SweepFit, sweep: Sweep | None = None) -> tuple[Line, ...]:
    """All fourteen lines; without `sweep` those that the points alone can answer."""
    of_sweep = dict(_of_sweep(sweep)) if sweep is not None and sweep.plan.experiments else {}
    of_fit = dict(_of_fit(fit))
    names = (
        "schedule ends at D", "warmup", "learning rate", "batch and steps", "N definition", "FLOPs", "data",
        "evaluation", "noise", "grid", "bracketing", "outliers", "shape", "provenance",
    )  # fmt: skip
    unknown: tuple[Verdict, str] = ("UNKNOWN", "a table of runs does not say")
    lines = []
    for name in names:
        verdict, words = of_sweep.get(name) or of_fit.get(name) or unknown
        lines.append(Line(item=name, verdict=verdict, words=words))
    return tuple(lines)


_Answer = tuple[str, tuple[Verdict, str]]


def _of_sweep(sweep: Sweep) -> Iterator[_Answer]:
    spec, experiments, data = sweep.spec.train, sweep.plan.experiments, sweep.plan.measurements.data
    yield "schedule ends at D", _schedule(spec.schedule)
    smallest = min(e.tokens for e in experiments)
    worst = max(_warmup_tokens(e) / min(e.params, WARMUP_SHARE * smallest) for e in experiments)
    # Rounded up to whole steps, a warmup may pass its bound by a step
    yield (
        "warmup",
        (
            "PASS" if worst <= 1.1 else "WARN",
            f"at most {worst:.2g} of what is allowed: N tokens, and {100 * WARMUP_SHARE:g} % of the smallest D",
        ),
    )
    yield "learning rate", _learning_rate(sweep)
    fewest = min(e.steps for e in experiments)
    verdict: Verdict = "PASS" if fewest >= STEPS_PASS else "WARN" if fewest >= STEPS_FAIL else "FAIL"
    yield (
        "batch and steps",
        (
            verdict,
            f"one batch of {spec.batch_size} samples; {fewest} steps in the shortest run, {STEPS_PASS} are enough",
        ),
    )
    epochs = [e.epochs for e in experiments if e.epochs is not None]
    if epochs:
        most = max(epochs)
        verdict = "PASS" if most <= EPOCHS_PASS else "WARN" if most <= EPOCHS_FAIL else "FAIL"
        yield "data", (verdict, f"at most {most:.3g} epochs; repeats turn a valley into an overfitting curve")
    else:
        yield "data", ("UNKNOWN", "a stream does not say when it repeats")
    yield "evaluation", _evaluation(sweep)
    one_rule = len({tuple(sorted(e.size_kwargs)) for e in experiments}) == 1
    single = sweep.spec.model.size_param is not None and all(isinstance(e.size, int) for e in experiments)
    words = f"sizes differ in {sweep.spec.model.size_param} alone" if single else "several arguments make the sizes"
    yield "shape", ("PASS" if single else "WARN" if one_rule else "FAIL", words)
    if sweep.results:
        versions = {tuple(sorted(r.versions.items())) for r in sweep.results}
        devices = {r.device for r in sweep.results}
        same = len(versions) == 1 and len(devices) == 1
        yield (
            "provenance",
            (
                "PASS" if same else "WARN",
                f"spec, plan, seeds, data fingerprint {data.fingerprint[:23]}; {len(versions)} set(s) of versions, "
                f"{len(devices)} kind(s) of device",
            ),
        )


def _warmup_tokens(experiment: Experiment) -> float:
    return experiment.recipe.warmup_steps * experiment.tokens / experiment.steps


def _schedule(schedule: str) -> tuple[Verdict, str]:
    if schedule == "constant":
        return "FAIL", "constant: the learning rate never reaches its end, which biases the optimum"
    if ":" in schedule:
        return "WARN", f"{schedule} is your own; it must end at its last step"
    return "PASS", f"{schedule}, over the steps of each experiment's own D"


def _learning_rate(sweep: Sweep) -> tuple[Verdict, str]:
    lr, found, checks = sweep.spec.train.lr, sweep.plan.lr, sweep.lr_checks
    limited = [check for check in checks if check.better]
    if limited:
        return "FAIL", limited[0].words
    if checks:
        highest = max(check.gain for check in checks)
        checked = f"; {len(checks)} checks with other rates at minima gain {highest:+.2g} nats at most"
    else:
        checked = "; nothing checks other rates at the minima"
    if found is not None:
        sizes = ", ".join(f"N = {n:,}" for n, _ in found.optima)
        return ("PASS" if checks else "WARN"), f"measured at {sizes}: lr ~ N^{found.exponent:.2f}{checked}"
    if isinstance(lr, LrRule | LrTable) or (isinstance(lr, str) and ":" in lr):
        return "PASS", f"a rule of your own{checked}"
    if lr == "auto":
        return "WARN", "a general rule, not measured on this model"
    return ("PASS" if checks else "WARN"), f"one rate for all sizes: larger models usually need a lower one{checked}"


def _evaluation(sweep: Sweep) -> tuple[Verdict, str]:
    samples = sweep.plan.measurements.data.eval_samples
    if not samples:
        return "WARN", "no held-out data: losses are training losses, smoothed"
    errors = [r.loss_stderr for r in sweep.results if r.loss_stderr is not None]
    error = f", standard error up to {max(errors):.2g}, shared by all models" if errors else ""
    return "PASS", f"one held-out set of {samples:,} samples for all models{error}"


def _of_fit(fit: SweepFit) -> Iterator[_Answer]:
    points = fit.points
    others = len(points.params_as)
    yield (
        "N definition",
        (
            "PASS" if others else "WARN",
            f"{1 + others} kept; the sensitivity panel shows the answer under each" if others else "one only",
        ),
    )
    if len(points):
        ratio = points.flops / (6 * points.params * points.tokens)
        low, high = float(ratio.min()), float(ratio.max())
        inside = low >= TRUSTED_RATIO[0] and high <= TRUSTED_RATIO[1]
        yield "FLOPs", ("PASS" if inside else "WARN", f"{low:.2f} to {high:.2f} times 6·N·D")
    yield "noise", _noise(fit)
    yield "grid", _grid(fit)
    labelled = [v for v in fit.valleys if points.labelled or v.status != "too_few"]
    if labelled:
        number = len(fit.optima)
        share = number / len(labelled)
        verdict: Verdict = "PASS" if share == 1 else "WARN" if number >= 2 else "FAIL"
        yield "bracketing", (verdict, f"{number} of {len(labelled)} budgets have their minimum between their sizes")
    worst = worst_residual(fit)
    if worst is not None:
        yield (
            "outliers",
            (
                "PASS" if worst <= OUTLIER else "WARN",
                f"the farthest run lies {worst:.1f} standard deviations from its curve; {OUTLIER:g} are too many",
            ),
        )


def _noise(fit: SweepFit) -> tuple[Verdict, str]:
    if fit.seeds is not None:
        words = f"{fit.seeds.sigma:.2g} between seeds ({fit.seeds.df} degrees of freedom)"
        if fit.noise is not None:
            words += f", {fit.noise.pooled:.2g} about the curves ({fit.noise.pooled_df})"
        return "PASS", words + _shared(fit)
    if fit.noise is None:
        return "FAIL", "not measured: no seeds, and every curve goes through all of its points"
    words = (
        f"{fit.noise.pooled:.2g} about the curves ({fit.noise.pooled_df} degrees of freedom); no seeds were repeated"
    )
    return ("PASS" if fit.noise.pooled_df >= MIN_DF else "WARN"), words + _shared(fit)


def _shared(fit: SweepFit) -> str:
    if fit.noise is None or fit.points.num_runs == len(fit.points):
        return ""
    return f"; {100 * fit.noise.shared:.0f} % of the variance is shared along trunks"


def _grid(fit: SweepFit) -> tuple[Verdict, str]:
    optima = [v for v, _ in fit.optima]
    if len(optima) < 2:
        return "FAIL", f"{len(optima)} budget(s) with an optimum"
    span = optima[-1].flops / optima[0].flops
    fewest = min(len(np.unique(v.params)) for v in optima)
    reach = [min(v.params_opt / v.params[0], v.params[-1] / v.params_opt) for v in optima]
    wide = [max(v.params_opt / v.params[0], v.params[-1] / v.params_opt) for v in optima]
    good = (
        len(optima) >= TRUSTED_BUDGETS
        and span >= TRUSTED_RANGE
        and fewest >= GOOD_SIZES
        and float(np.median(reach)) >= WINDOW[0]
        and float(np.median(wide)) <= WINDOW[1]
    )
    return (
        "PASS" if good else "WARN",
        f"{len(optima)} budgets over {span:.3g}x, at least {fewest} sizes each, from x/{np.median(wide):.2g} to "
        f"x{np.median(reach):.2g} around the optimum; {TRUSTED_BUDGETS} over {TRUSTED_RANGE:g}x, {GOOD_SIZES} sizes, "
        f"x{WINDOW[0]:g} to x{WINDOW[1]:g} are wanted",
    )


def document(analysis: Analysis, card: Sequence[Line], table: Table | None = None) -> dict[str, Any]:
    """`analysis.json`, and what `fit --json` prints: the analysis, the card, and how a table was read."""
    content = analysis_to_json(analysis) | {"validity": [line.to_json() for line in card]}
    if table is not None:
        content["table"] = table.to_json()
        content["warnings"] = [flag.to_json() for flag in table.flags] + content["warnings"]
    return content


def worst_residual(fit: SweepFit) -> float | None:
    """The largest leave-one-out residual of the valleys in its own standard deviations; None without noise."""
    if fit.noise is None or fit.noise.pooled_df < 2:
        return None
    worst = 0.0
    fitted = [v for v in fit.valleys if v.smooth is not None]
    for valley, sigma, df in zip(fitted, fit.noise.sigma, fit.noise.df, strict=True):
        assert valley.smooth is not None
        if sigma < EXACT * float(np.mean(valley.loss)):
            continue  # what lies off an exact curve is rounding
        off = np.abs(deviations(valley.smooth, float(sigma), float(df)))
        if np.isfinite(off).any():
            worst = max(worst, float(np.nanmax(off)))
    return worst
