"""The answer of a sweep, read from the files of its directory alone."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

from flops_fit_ray.analysis import Analysis, MetricPrediction, NextRuns, Prediction, Question, Serving, SweepFit, answer
from flops_fit_ray.errors import ArgumentError, ResourceError
from flops_fit_ray.planning import Plan
from flops_fit_ray.storage.atomic import write_bytes
from flops_fit_ray.storage.storage_path import StoragePath, expanded, local_path, storage_path
from flops_fit_ray.sweep.directory import Sweep
from flops_fit_ray.sweep.next_places import next_runs_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from flops_fit_ray.sweep.scores import Scores
    from flops_fit_ray.tables.chinchilla import ChinchillaTable


class Result:
    """Answer, numbers and figures of a finished or partial sweep, read from the files of its directory alone."""

    # The names that flops-fit has for these (docs/from-flops-fit.md)
    output_dir = property(attrgetter("output"))

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep

    @property
    def output(self) -> StoragePath:
        """Return the sweep directory."""
        return self._sweep.paths.root

    @property
    def plan(self) -> Plan:
        """Return the plan with every experiment."""
        return self._sweep.plan

    @property
    def fit(self) -> SweepFit:
        """Return valleys, laws, intervals and warnings."""
        return self._sweep.fit

    @property
    def complete(self) -> bool:
        """Return True if every planned experiment has a result."""
        return self._sweep.complete

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return the warnings to read before trusting the numbers."""
        return self._sweep.warnings

    @property
    def analysis(self) -> Analysis:
        """Return predictions at ten times the largest budget, their sensitivity, and hold-outs."""
        return self._sweep.analysis

    @property
    def compute_budgets(self) -> list[float]:
        """Return C of every budget, increasing."""
        return [budget.flops for budget in self._sweep.spec.budgets]

    def predict(
        self,
        budget: float | None = None,
        *,
        compute_budget: float | None = None,
        loss: float | None = None,
        unique: float | None = None,
        served: float | None = None,
        as_good_as: float | None = None,
        serving_price: float = 1.0,
        max_params: float | None = None,
    ) -> Prediction:
        """Predict N, D and loss at C = `budget` FLOPs, or for `loss`, with intervals and the extrapolation factor.

        `compute_budget` is flops-fit's name of `budget`. The prediction is a mapping, too, with flops-fit's keys.

        Args:
            loss: nats to be reached for the fewest FLOPs, instead of `budget`.
            unique: distinct tokens that there are, which are repeated where the best D is more; None: all are new.
            served: tokens that the model will serve; `budget` is then the total of training and serving, and the
                answer a `ServedPrediction`.
            as_good_as: FLOPs whose loss by training alone is to be reached with `served`, instead of `budget`.
            serving_price: of a FLOP in serving, in FLOPs of training.
            max_params: the largest N that may be, for a memory or a latency.

        Raises:
            FitError: the sweep gave no law, a number is not positive, or the runs do not tell the answer.
        """
        budget = budget if budget is not None else compute_budget
        asked = {"budget": budget, "loss": loss, "as_good_as": as_good_as}
        for name, value in {
            **asked,
            "unique": unique,
            "served": served,
            "serving_price": serving_price,
            "max_params": max_params,
        }.items():
            missing = name == "budget" and loss is None and as_good_as is None
            if not (_is_number(value) or (value is None and not missing)):
                what = "a number of FLOPs, for example 1e21" if name in ("budget", "as_good_as") else "a number"
                raise ArgumentError("predict", [f"{name}: must be {what} (got {value!r})"])
        if served is None and serving_price != 1:
            raise ArgumentError("predict", ["serving_price: goes with served; give both"])
        serving = None if served is None else Serving(tokens=float(served), price=float(serving_price))
        return answer(self.fit, Question(**asked, unique=unique, serving=serving, max_params=max_params))

    def predict_metric(
        self,
        name: str,
        budget: float,
        *,
        kind: Literal["share", "loss", "perplexity"] | None = None,
        bounds: tuple[float, float] | None = None,
        chance: float | None = None,
    ) -> MetricPrediction:
        """Predict another metric at the optimum of C = `budget` FLOPs, in two steps: C to loss, and loss to metric.

        Args:
            name: of a metric that the runs have.
            kind: "share" (accuracy, rate of errors), "loss" or "perplexity"; None: a share where all values lie within
                its bounds, and a perplexity by its name.
            bounds: of a share, by default 0 and 1.
            chance: value of a share by guessing; None: it is fitted.

        Raises:
            FitError: there is no law, or too few runs have that metric.
        """
        return self.analysis.predict_metric(name, budget, kind=kind, bounds=bounds, chance=chance)

    def seal(self, budget: float) -> Prediction:
        """Keep the prediction at C = `budget` FLOPs in the sweep directory, and return it; `scores` says how it held.

        Raises:
            FitError: the sweep gave no law.
            SpecError: the prediction has no intervals, or that budget has been run already.
        """
        from flops_fit_ray.sweep.forecasts import seal

        prediction = self.predict(budget)
        seal(self._sweep, self.fit, prediction)
        return prediction

    def scores(self, runs: str | Path | None = None) -> Scores:
        """Score the sealed forecasts by the runs of their C, and by `runs`: a table, or another sweep directory.

        `runs` are kept beside the forecasts. Read `.lines`, `.scores` and `.calibration`.

        Raises:
            SpecError: `runs` has no run of a forecast's C, or cannot be read.
        """
        from flops_fit_ray.sweep.scored_runs import add_runs
        from flops_fit_ray.sweep.scores import scores_of
        from flops_fit_ray.tables import read_table

        if runs is not None:
            path = storage_path(runs)
            add_runs(self._sweep, path, None if path.is_dir() else read_table(local_path(path)))
        return scores_of(self._sweep)

    def next_runs(self, count: int = 5, target: float | None = None, *, at_most: float | None = None) -> NextRuns:
        """Choose the runs that narrow the interval of N_opt at C = `target` most for the FLOPs that they execute.

        Args:
            target: FLOPs, beyond the data; None: ten times the largest budget.
            at_most: FLOPs of all of them; None: twice what the sweep executed so far.

        Raises:
            SpecError: a number is out of range.
            FitError: there is no interval to narrow, and which runs would give one.
        """
        return next_runs_of(self._sweep, self.fit, count, target, at_most)

    def chinchilla_table(
        self, budgets: Sequence[float] | float | None = None, *, compute_budgets: Sequence[float] | float | None = None
    ) -> ChinchillaTable:
        """Return one row per budget with N, D, D/N, loss, intervals and extrapolation factor; `print` shows Markdown.

        Without `budgets` (or `compute_budgets`, its name in flops-fit): those of the sweep, and 10 and 100 times the
        largest.

        Raises:
            FitError: the sweep gave no law, or a budget is not a positive number.
        """
        from flops_fit_ray.tables.chinchilla import chinchilla_table

        wanted = budgets if budgets is not None else compute_budgets
        if wanted is None:
            own = self.compute_budgets
            wanted = [*own, 10 * own[-1], 100 * own[-1]]
        several = [wanted] if isinstance(wanted, float | int) else wanted
        return chinchilla_table([self.predict(budget) for budget in several])

    def metrics_at_minima(self) -> pd.DataFrame:
        """Return one row per budget with a minimum: N_opt, L_opt and each metric there."""
        import pandas as pd

        from flops_fit_ray.sweep.minima import metrics_at_minima

        rows = metrics_at_minima(self._sweep)
        return pd.DataFrame([{"budget": m.budget, "params": m.params, "loss": m.loss, **m.metrics} for m in rows])

    @overload
    def plot(self, path: str | Path | None = ...) -> Figure: ...

    @overload
    def plot(self, path: str | Path | None = ..., *, show: bool) -> list[Figure]: ...

    @overload
    def plot(self, path: bool) -> list[Figure]: ...

    def plot(self, path: str | Path | bool | None = None, *, show: bool | None = None) -> Figure | list[Figure]:
        """Draw the valleys with their minima on a matplotlib Figure; save it to `path` (.svg, .png, .pdf) if given.

        With `show`, False or True, draw the laws too, save both as plots/*.png of the sweep directory and return the
        list; True also opens them in windows (or the notebook).

        Raises:
            ResourceError: the installed matplotlib cannot show them.
        """
        from flops_fit_ray.report.figures import draw_laws, draw_valleys, law_bands, to_png, valley_curves

        if isinstance(path, bool):  # flops-fit's only argument is `show`
            path, show = None, path
        valleys = draw_valleys(valley_curves(self.fit, self._sweep.replaced_points), self._sweep.loss_name)
        if path is not None:
            valleys.savefig(Path(expanded(str(path), "path")))
        if show is None:
            return valleys
        drawn = {"valleys": valleys, "laws": draw_laws(law_bands(self.fit))}
        for name, figure in drawn.items():
            write_bytes(self._sweep.paths.plot(name), to_png(figure))
        if show:
            _show(list(drawn.values()))
        return list(drawn.values())

    def _repr_html_(self) -> str:
        """Return the summary that a notebook shows."""
        from flops_fit_ray.report.page import render_short

        return render_short(self._sweep)

    def report(self) -> StoragePath:
        """Write report.html, tables and figures again, and return the path of the page."""
        from flops_fit_ray.report import write_report

        return write_report(self._sweep)

    def to_frame(self) -> pd.DataFrame:
        """Return one row per planned experiment: plan, tokens seen, result or failure."""
        return self._sweep.to_frame()

    def __repr__(self) -> str:
        done, total = len(self._sweep.results), len(self.plan.experiments)
        return f"Result({str(self.output)!r}, {done} of {total} experiments)"


def _is_number(value: object) -> bool:
    try:
        return not isinstance(value, bool) and isinstance(value, numbers.Real) and math.isfinite(float(value))
    except OverflowError:  # an integer beyond any float
        return False


def _show(figures: Sequence[Figure]) -> None:
    from matplotlib import pyplot

    try:
        for figure in figures:
            pyplot.figure(figure)
    except ValueError as e:
        raise ResourceError("show=True needs matplotlib 3.11 or later; the figures are in plots/") from e
    pyplot.show()
