"""The learning rate guard: probes of the smallest budgets, one after the other, until the rule of the grid follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.flags import Flag, warning
from flops_fit_ray.planning import lr_probes
from flops_fit_ray.planning.cells import Cells, max_steps, resolve_lr, steps_of, tokens_of
from flops_fit_ray.planning.experiment import Experiment, MeasuredLr, ModelSize


class LrGuard:
    """The probes of one replay.

    Args:
        add: adds an experiment to the plan.
        loss: of an experiment; NaN while it is open, infinite if it failed.
        assume: take rates that are not known yet to be those of the general rule, for the forecast.
    """

    def __init__(
        self,
        cells: Cells,
        add: Callable[[Experiment], bool],
        loss: Callable[[Experiment], float],
        *,
        assume: bool,
    ) -> None:
        self.notes: list[str] = []
        self.warnings: list[Flag] = []
        self._cells, self._add, self._loss, self._assume = cells, add, loss, assume
        self._spec, self._measurements = cells.spec, cells.measurements

    def law(self, first: Sequence[ModelSize]) -> MeasuredLr | None:
        """Return the rule, from probes of the `first` valley's sizes; None while probes are open."""
        constants = self._cells.constants
        sizes = lr_probes.probed_sizes(first)
        best = [self._probe(constants.base_budget, size) for size in sizes]
        if None in best and not self._assume:
            return None
        optima = [self._optimum(constants.base_budget, s, factor) for s, factor in zip(sizes, best, strict=True)]
        if not constants.probe_budgets:  # a sweep of an earlier version
            law = lr_probes.lr_law_at_one_budget([(n, lr) for n, _, lr in optima])
        else:
            for longer in constants.probe_budgets[1:]:
                if self._fed(longer, sizes[-1]):
                    factor = self._probe(longer, sizes[-1], lr_probes.factors_near(best[-1] or 1.0))
                    if factor is None and not self._assume:
                        return None
                    optima.append(self._optimum(longer, sizes[-1], factor))
            law = lr_probes.lr_law(optima, self._spec.grid.tokens_per_param)
        self.notes += lr_probes.notes(law, optima)
        return law

    def _fed(self, budget: float, size: ModelSize) -> bool:
        """True if the data suffice for a size at a budget."""
        return steps_of(self._spec, self._measurements, budget, size) <= max_steps(self._spec, self._measurements)

    def _optimum(self, budget: float, size: ModelSize, factor: float | None) -> lr_probes.Optimum:
        tokens = tokens_of(self._spec, self._measurements, budget, size)
        return size.params, tokens, resolve_lr(self._spec, size, budget) * (1.0 if factor is None else factor)

    def _probe(self, budget: float, size: ModelSize, first: Sequence[float] = lr_probes.FACTORS) -> float | None:
        """Best factor over the general rule at one size; None while its probes are open.

        Args:
            first: factors to begin with.
        """
        losses: dict[float, float] = {}
        while factors := lr_probes.missing_factors(losses, first):
            for factor in factors:
                lr = resolve_lr(self._spec, size, budget) * factor
                reason = f"learning rate {factor:g} times the general rule"
                probe = self._cells.make(budget, size, lr, role="probe", reason=reason)
                self._add(probe)
                losses[factor] = self._loss(probe)
            if any(map(math.isnan, losses.values())):
                return None
        if not math.isfinite(losses[lr_probes.best_factor(losses)]):
            self.notes.append(f"every probed learning rate failed at size {size.size}: it keeps the general rule")
            return 1.0
        if lr_probes.is_flat(losses):
            message = (
                f"learning rates {min(losses):g} to {max(losses):g} times the general rule give losses equal to "
                f"{100 * lr_probes.FLAT:g} % (C = {fmt.flops(budget)}, size {size.size}): the model may not learn at "
                "this budget, and the best rate is chance; raise the smallest budget, or set train.lr"
            )
            self.warnings.append(warning("flat_rates", message))
        return lr_probes.optimum_factor(losses)
