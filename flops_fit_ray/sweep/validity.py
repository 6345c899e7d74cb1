"""Validity card of a sweep: fifteen checks of its design, data and fit, each with a verdict and its number.

Ordered by how far each moved the exponent in published sweeps, the largest effect first (Porian et al. 2024; Hoffmann
et al. 2022, appendix B). A table of runs cannot answer all of them; those are UNKNOWN.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis import TARGET, Analysis, SweepFit, analysis_to_json, rate_part
from flops_fit_ray.analysis.diagnostics import ROUNDING, TRUSTED_BUDGETS, TRUSTED_RANGE
from flops_fit_ray.analysis.outliers import EXACT, OUTLIER, deviations
from flops_fit_ray.planning import TRUSTED_RATIO, Experiment
from flops_fit_ray.planning.cells import WARMUP_SHARE
from flops_fit_ray.planning.grid import GOOD_SIZES
from flops_fit_ray.spec import LrRule, LrTable
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.tables import Setting, Table

CardVerdict = Literal["PASS", "WARN", "FAIL", "UNKNOWN"]

QUESTIONS = (
    "schedule ends at D", "warmup", "learning rate", "batch and steps", "N definition", "FLOPs", "data",
    "evaluation", "noise", "grid", "bracketing", "lack of fit", "outliers", "shape", "provenance",
)  # fmt: skip
STEPS_PASS, STEPS_FAIL = 300, 110  # of the shortest run
EPOCHS_PASS, EPOCHS_FAIL = 1.0, 4.0
TAPERED_SIZES = 4.5  # mean over the budgets, where some have fewer than `GOOD_SIZES`
WINDOW = (2.5, 8.0)  # factors from the smallest and the largest size to the optimum
COARSE_ERROR = 0.01  # of the loss: the standard error of the held-out set
TAKEN_FOR_BEST = "each run's learning rate is taken as the best one; nothing in the table tests it"
AS_NO_THREE = "each run's learning rate is taken as the best one, as no (N, D) has losses at three rates"
MIN_DF = 6  # degrees of freedom behind the noise


@dataclass(frozen=True, kw_only=True)
class CardItem:
    """One check of the card."""

    item: str
    verdict: CardVerdict
    words: str  # the key in analysis.json

    def to_json(self) -> dict[str, str]:
        """Return plain values for JSON."""
        return asdict(self)


def validity_card(fit: SweepFit, sweep: Sweep | None = None, table: Table | None = None) -> tuple[CardItem, ...]:
    """Return all fifteen checks; without `sweep`, those that neither the points nor the `table` answer are UNKNOWN."""
    of_sweep = dict(_of_sweep(sweep, fit)) if sweep is not None and sweep.plan.experiments else {}
    if table is not None:
        of_sweep |= dict(_of_table(table, fit))
    of_fit = dict(_of_fit(fit))
    unknown: tuple[CardVerdict, str] = ("UNKNOWN", "a table of runs does not say")
    items = []
    for name in QUESTIONS:
        verdict, message = of_sweep.get(name) or of_fit.get(name) or unknown
        items.append(CardItem(item=name, verdict=verdict, words=message))
    return tuple(items)


_Check = tuple[str, tuple[CardVerdict, str]]  # name, verdict, message


def _of_sweep(sweep: Sweep, fit: SweepFit) -> Iterator[_Check]:
    spec, data = sweep.spec.train, sweep.plan.measurements.data
    experiments = [e for e in sweep.plan.experiments if e.axis is None]
    yield "schedule ends at D", _schedule(spec.schedule)
    smallest = min(e.tokens for e in experiments)
    worst = max(_warmup_tokens(e) / min(e.params, WARMUP_SHARE * smallest) for e in experiments)
    # Rounded up to whole steps, a warmup may pass its bound by a step
    yield (
        "warmup",
        (
            "PASS" if worst <= 1.1 else "WARN",
            f"at most {worst:.2g} times the limit, the smaller of N tokens and {100 * WARMUP_SHARE:g} % of the "
            "smallest D",
        ),
    )
    yield "learning rate", _learning_rate(sweep, fit)
    yield "batch and steps", _batch(sweep, min(e.steps for e in experiments if e.role != "batch_check"))
    epochs = [e.epochs for e in experiments if e.epochs is not None]
    if epochs:
        yield "data", _epochs(max(epochs), fit)
    else:
        yield "data", ("UNKNOWN", "the training data are a stream, whose length is not known")
    yield "evaluation", _evaluation(sweep)
    one_rule = len({tuple(sorted(e.size_kwargs)) for e in experiments}) == 1
    single = sweep.spec.model.size_param is not None and all(isinstance(e.size, int) for e in experiments)
    message = f"sizes differ in {sweep.spec.model.size_param} alone" if single else "sizes differ in several arguments"
    yield "shape", ("PASS" if single else "WARN" if one_rule else "FAIL", message)
    if sweep.results:
        versions = {tuple(sorted(r.versions.items())) for r in sweep.results}
        devices = {r.device for r in sweep.results}
        same = len(versions) == 1 and len(devices) == 1 and sweep.mixed_code is None
        yield (
            "provenance",
            (
                "PASS" if same else "WARN",
                f"spec, plan, seeds, data fingerprint {data.fingerprint[:23]}; {fmt.counted(len(versions), 'set')} of "
                f"versions, {fmt.counted(len(devices), 'kind')} of device"
                + (f"; {sweep.mixed_code}" if sweep.mixed_code else ""),
            ),
        )


def _epochs(most: float, fit: SweepFit) -> tuple[CardVerdict, str]:
    verdict: CardVerdict = "PASS" if most <= EPOCHS_PASS else "WARN" if most <= EPOCHS_FAIL else "FAIL"
    cost = "repeated data overfit and shift the optimum" if fit.repetition is None else fit.repetition.words
    return verdict, f"at most {most:.3g} epochs; {cost}"


def _warmup_tokens(experiment: Experiment) -> float:
    return experiment.recipe.warmup_steps * experiment.tokens / experiment.steps


def _schedule(schedule: str) -> tuple[CardVerdict, str]:
    if schedule == "constant":
        return "FAIL", "constant: the learning rate never decays, which biases the optimum"
    if ":" in schedule:
        return "WARN", f"{schedule} is your own function; check that it decays fully by the last step"
    return "PASS", f"{schedule}, decayed over the steps of each experiment's own D"


def _learning_rate(sweep: Sweep, fit: SweepFit) -> tuple[CardVerdict, str]:
    lr, found, checks = sweep.spec.train.lr, sweep.plan.lr, sweep.lr_checks
    if sweep.lr_limited:
        return "FAIL", sweep.lr_limited[0]
    if checks:
        highest = max(check.gain for check in checks)
        checked = f"; {len(checks)} checks with other rates at minima gain {highest:+.2g} nats at most"
    else:
        checked = "; no other rates were tried at the minima"
    if found is not None:
        sizes = ", ".join(dict.fromkeys(f"N = {n:,}" for n, _ in found.optima))
        within = "" if found.exponent_sd is None else f" ± {found.exponent_sd:.2f}"
        held = "" if not found.held else f", held there, because the probes ask for N^{found.found_exponent:+.2f}"
        verdict: CardVerdict = "PASS" if checks and not held else "WARN"
        return verdict, f"measured at {sizes}: lr ~ N^{found.exponent:.2f}{within}{held}{checked}{_rate_part(fit)}"
    if sweep.lr_again is not None:
        rule = f"the rates that the checks of the sweep before asked for: lr ~ N^{sweep.lr_again.exponent:.2f}"
        return ("PASS" if checks else "WARN"), f"{rule}{checked}{_rate_part(fit)}"
    if isinstance(lr, LrRule | LrTable) or (isinstance(lr, str) and ":" in lr):
        return "PASS", f"your own rule{checked}"
    if lr == "auto":
        return "WARN", "a general rule, not measured on this model"
    return ("PASS" if checks else "WARN"), f"one rate for all sizes: larger models usually need a lower one{checked}"


def _batch(sweep: Sweep, min_steps: int) -> tuple[CardVerdict, str]:
    if sweep.batch_limited:
        return "FAIL", sweep.batch_limited[0]
    verdict: CardVerdict = "PASS" if min_steps >= STEPS_PASS else "WARN" if min_steps >= STEPS_FAIL else "FAIL"
    batch, checks = sweep.spec.train.batch_size, sweep.batch_checks
    words = f"batches of {batch} samples; {min_steps} steps in the shortest run, {STEPS_PASS} are enough"
    if checks:
        highest = max(check.gain for check in checks)
        words += f"; {len(checks)} checks with other batch sizes at minima gain {highest:+.2g} nats at most"
    return verdict, words


def _rate_part(fit: SweepFit) -> str:
    """Say what part of the interval of N_opt comes from rates that were measured."""
    if fit.points.tried is None:
        return "; intervals take the rates for the best ones, as no (N, D) has losses of three"
    part = None if fit.params_opt is None else rate_part(fit, TARGET * fit.fitted_range[1])
    return "" if part is None else f"; {part.words}"


def _evaluation(sweep: Sweep) -> tuple[CardVerdict, str]:
    samples = sweep.plan.measurements.data.eval_samples
    if not samples:
        return "WARN", "no held-out data: losses are smoothed training losses"
    results = [r for r in sweep.results if r.axis is None]
    errors = [r.loss_stderr for r in results if r.loss_stderr is not None]
    error = f", standard error up to {max(errors):.2g}, shared by all models" if errors else ""
    relative = max((r.loss_stderr / abs(r.loss) for r in results if r.loss_stderr and r.loss), default=0.0)
    coarse = f"; {100 * relative:.1f} % of the loss: hold out more" if relative > COARSE_ERROR else ""
    return "WARN" if coarse else "PASS", f"one held-out set of {samples:,} samples for all models{error}{coarse}"


def _of_table(table: Table, fit: SweepFit) -> Iterator[_Check]:
    for name, kind in (("learning rate", "learning rate"), ("batch and steps", "batch")):
        found = [setting for setting in table.settings if setting.kind == kind]
        verdict: CardVerdict = "UNKNOWN"
        words = "the table has no number for it"
        if found:
            verdict, words = _of_setting(max(found, key=lambda s: s.swept))
        if kind == "learning rate" and any(setting.swept for setting in found) and fit.points.tried is None:
            words += f"; {AS_NO_THREE}"
        elif kind == "learning rate":
            words += f"; {TAKEN_FOR_BEST}" if fit.points.tried is None else _rate_part(fit)
        if found or kind == "learning rate":
            yield name, (verdict, words)


def _of_setting(setting: Setting) -> tuple[CardVerdict, str]:
    low, high = setting.values
    values = f"{setting.column!r} {low:g}" if low == high else f"{setting.column!r} from {low:g} to {high:g}"
    if not setting.swept:
        one = "one value for all runs" if low == high else "one value at each (N, D)"
        return "WARN", f"{values}, {one}"
    where = f"{setting.at_edge} of {setting.swept} (N, D) where it was swept have their best at the edge of its values"
    return "PASS" if not setting.at_edge else "WARN", f"{values}; {where}{': widen them' if setting.at_edge else ''}"


def _of_fit(fit: SweepFit) -> Iterator[_Check]:
    points = fit.points
    others = len(points.params_as)
    yield (
        "N definition",
        (
            "PASS" if others else "WARN",
            f"{1 + others} counts of parameters; the sensitivity panel shows the answer under each"
            if others
            else "one count of parameters only",
        ),
    )
    if len(points):
        ratio = points.flops / (6 * points.params * points.tokens)
        low, high = float(ratio.min()), float(ratio.max())
        inside = low >= TRUSTED_RATIO[0] and high <= TRUSTED_RATIO[1]
        yield "FLOPs", ("PASS" if inside else "WARN", f"{low:.2f} to {high:.2f} times 6·N·D")
    if points.unique is not None and len(points):
        yield "data", _epochs(float((points.tokens / points.unique).max()), fit)
    yield "noise", _noise(fit)
    yield "grid", _grid(fit)
    labelled = [v for v in fit.valleys if points.labelled or v.status != "too_few"]
    if labelled:
        number = len(fit.optima)
        share = number / len(labelled)
        verdict: CardVerdict = "PASS" if share == 1 else "WARN" if number >= 2 else "FAIL"
        yield "bracketing", (verdict, f"{number} of {len(labelled)} budgets have their minimum between their sizes")
    yield from _lack_of_fit(fit)
    worst = worst_residual(fit)
    if worst is not None:
        yield (
            "outliers",
            (
                "PASS" if worst <= OUTLIER else "WARN",
                f"the farthest run lies {worst:.1f} standard deviations from its curve; more than {OUTLIER:g} is an "
                "outlier",
            ),
        )


def _lack_of_fit(fit: SweepFit) -> Iterator[_Check]:
    """Yield the test of the answer's method that fits least."""
    tests = [test for test in fit.lack_of_fit if test.method == fit.default]
    if not tests:
        return
    worst = min(tests, key=lambda test: test.p)
    if worst.verdict == "fits":
        what = {"minima": "minima about their law", "curves": "losses about their curves", "top": "losses at the top"}
        name = what.get(worst.name, "residuals of a budget")
        message = f"{name} lie {worst.ratio**0.5:.2g} times as far off as noise puts them (p = {worst.p:.2g})"
        yield "lack of fit", ("PASS", message)
    else:
        yield "lack of fit", ("FAIL" if worst.verdict == "does_not_fit" else "WARN", worst.words)


def _noise(fit: SweepFit) -> tuple[CardVerdict, str]:
    if fit.seeds is not None:
        message = f"{fit.seeds.sigma:.2g} between seeds ({fit.seeds.df} degrees of freedom)"
        if fit.noise is not None:
            message += f", {fit.noise.pooled:.2g} about the curves ({fit.noise.pooled_df})"
        return "PASS", message + _shared(fit)
    if fit.noise is None:
        return "FAIL", "not measured: no seeds, and every curve goes through all of its points"
    message = (
        f"{fit.noise.pooled:.2g} about the curves ({fit.noise.pooled_df} degrees of freedom); no seeds were repeated"
    )
    return ("PASS" if fit.noise.pooled_df >= MIN_DF else "WARN"), message + _shared(fit)


def _shared(fit: SweepFit) -> str:
    if fit.noise is None or fit.points.num_runs == len(fit.points):
        return ""
    return f"; {100 * fit.noise.shared:.0f} % of the variance is shared along trunks"


def _grid(fit: SweepFit) -> tuple[CardVerdict, str]:
    optima = [v for v, _ in fit.optima]
    if len(optima) < 2:
        return "FAIL", f"{fmt.counted(len(optima), 'budget')} with an optimum; a power law needs 2"
    span = optima[-1].flops / optima[0].flops
    sizes = [len(np.unique(v.params)) for v in optima]
    reach = [min(v.params_opt / v.params[0], v.params[-1] / v.params_opt) for v in optima]
    wide = [max(v.params_opt / v.params[0], v.params[-1] / v.params_opt) for v in optima]
    good = (
        len(optima) >= TRUSTED_BUDGETS
        and span >= ROUNDING * TRUSTED_RANGE
        and (min(sizes) >= GOOD_SIZES or float(np.mean(sizes)) >= TAPERED_SIZES)
        and float(np.median(reach)) >= WINDOW[0]
        and float(np.median(wide)) <= WINDOW[1]
    )
    return (
        "PASS" if good else "WARN",
        f"{len(optima)} budgets over {span:.3g}x, at least {min(sizes)} sizes each, which end x{np.median(reach):.2g} "
        f"to x{np.median(wide):.2g} from the optimum; recommended: {TRUSTED_BUDGETS} over {TRUSTED_RANGE:g}x, "
        f"{GOOD_SIZES} sizes (or from 7 at the smallest down to 3), x{WINDOW[0]:g} to x{WINDOW[1]:g}",
    )


def analysis_document(analysis: Analysis, card: Sequence[CardItem], table: Table | None = None) -> dict[str, Any]:
    """Return the content of `analysis.json` and `fit --json`: the analysis, the card, and a table's columns."""
    content = analysis_to_json(analysis) | {"validity": [item.to_json() for item in card]}
    if table is not None:
        content["table"] = table.to_json()
        content["warnings"] = [flag.to_json() for flag in table.flags] + content["warnings"]
    return content


def worst_residual(fit: SweepFit) -> float | None:
    """Return the largest leave-one-out residual of the valleys, in its own standard deviations; None without noise."""
    if fit.noise is None or fit.noise.pooled_df < 2:
        return None
    worst = 0.0
    fitted = [v for v in fit.valleys if v.smooth is not None]
    for valley, sigma, df in zip(fitted, fit.noise.sigma, fit.noise.df, strict=True):
        assert valley.smooth is not None
        if sigma < EXACT * float(np.mean(valley.loss)):
            continue  # residuals of an exact curve are rounding errors
        off = np.abs(deviations(valley.smooth, float(sigma), float(df)))
        if np.isfinite(off).any():
            worst = max(worst, float(np.nanmax(off)))
    return worst
