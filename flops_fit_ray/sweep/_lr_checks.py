"""Learning rates tried beside the minima of a sweep, and the rule that they and the probes ask for."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from flops_fit_ray.ledger import ExperimentResult
from flops_fit_ray.planning import MeasuredLr
from flops_fit_ray.planning.lr_probes import Optimum, lr_law, optimum_factor
from flops_fit_ray.spec import LrRule

CLEARLY = 2.0  # standard deviations of a difference of two runs


@dataclass(frozen=True, kw_only=True)
class Beside:
    """A run beside a minimum, trained in another way than the grid is."""

    budget: float
    size: int | str
    gain: float  # nats by which its loss is lower
    sigma: float | None  # of one run's loss; None where it is not known

    @property
    def better(self) -> bool:
        """Return True if it is clearly better: then the valleys are limited by what differs."""
        return self.gain > CLEARLY * math.sqrt(2) * (self.sigma or 0.0)


@dataclass(frozen=True, kw_only=True)
class LrCheck(Beside):
    """Another learning rate beside one minimum."""

    factor: float  # of the rate that the grid has there

    def words(self, rule: LrRule | None, *, from_python: bool = False) -> str:
        """Return the sentence that reports show; `rule`: the one to take instead."""
        remedy = ""
        if rule is not None:
            way = (
                f"lr={_mapping(rule, quoted=True)}"
                if from_python
                else f"`extend --lr-again` or train.lr: {_mapping(rule)}"
            )
            remedy = f"; to train it with the rates found, {way}"
        return (
            f"LR-limited: at C = {self.budget:g}, size {self.size}, {self.factor:g} times the learning rate is better "
            f"by {self.gain:.3g}: the valleys are not those of well tuned models{remedy}"
        )


def lr_checks(results: Sequence[ExperimentResult], sigma: float | None) -> tuple[LrCheck, ...]:
    """Return the checks both of whose runs are there; `sigma` is the standard deviation of one run's loss."""
    by_key = {r.key: r for r in results}
    return tuple(
        LrCheck(
            budget=r.budget,
            size=r.size,
            factor=r.lr / by_key[r.of].lr,
            gain=by_key[r.of].loss - r.loss,
            sigma=sigma,
        )
        for r in results
        if r.role == "lr_check" and r.of in by_key
    )


def found_rule(results: Sequence[ExperimentResult], probed: MeasuredLr | None) -> LrRule | None:
    """Return the rule through the best rates at the checked minima and of the probes; None without a check."""
    checked = list(_checked(results))
    if not checked:
        return None
    optima = list(checked)
    if probed is not None and len(probed.optima_tokens) == len(probed.optima):
        optima += [(n, d, lr) for (n, lr), d in zip(probed.optima, probed.optima_tokens, strict=True)]
    ratio = math.exp(sum(math.log(d / n) for n, d, _ in checked) / len(checked))
    law = lr_law(optima, ratio)
    return LrRule(base=float(f"{law.coefficient:.3g}"), at=float(f"{law.at:.3g}"), exponent=round(law.exponent, 3))


def _checked(results: Sequence[ExperimentResult]) -> Iterable[Optimum]:
    """Yield the best rate at every checked minimum."""
    by_key = {r.key: r for r in results}
    losses: dict[str, dict[float, float]] = {}
    for r in results:
        if r.role == "lr_check" and r.of in by_key:
            losses.setdefault(r.of, {1.0: by_key[r.of].loss})[r.lr / by_key[r.of].lr] = r.loss
    for key, of in losses.items():
        yield by_key[key].params, by_key[key].tokens, by_key[key].lr * optimum_factor(of)


def _mapping(rule: LrRule, *, quoted: bool = False) -> str:
    """Return a rule as YAML writes it, or Python."""
    values = {name: f"{getattr(rule, name):g}" for name in ("base", "at", "exponent")}
    return "{" + ", ".join(f"{name!r}: {v}" if quoted else f"{name}: {v}" for name, v in values.items()) + "}"
