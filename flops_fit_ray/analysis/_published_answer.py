"""Answers of published laws: N, D and loss at one C, and how far a sweep is from the law of Chinchilla's runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flops_fit_ray import formatting as fmt
from flops_fit_ray.analysis._distance import Distance, distance
from flops_fit_ray.analysis._sweep_fit import SweepFit
from flops_fit_ray.analysis.diagnostics import extrapolation_warning
from flops_fit_ray.analysis.prediction import check_budget
from flops_fit_ray.analysis.published import REFERENCE, PublishedLaw
from flops_fit_ray.flags import Flag


@dataclass(frozen=True, kw_only=True)
class PublishedAnswer:
    """Optimal N and D of a published law at one C, and the loss where it has one; no intervals, for none follow."""

    law: PublishedLaw
    budget: float
    params: float
    tokens: float
    loss: float | None  # nats per token
    distances: tuple[Distance, ...]  # beyond the runs, of those of C, N and D whose range the paper says
    warnings: tuple[Flag, ...]

    @property
    def extrapolation(self) -> float | None:
        """Factor of C beyond the paper's budgets, 1 inside; None where the paper does not say their range."""
        return next((one.factor for one in self.distances if one.quantity == "C"), None)


def predict_published(law: PublishedLaw, budget: float) -> PublishedAnswer:
    """Return N, D and loss at C = `budget` FLOPs by a published law.

    Raises:
        FitError: the budget is not a positive number.
    """
    check_budget(budget)
    params, tokens, loss = law.optimum(budget)
    ranges = (("C", budget, law.budgets), ("N", params, law.params), ("D", tokens, law.tokens))
    distances = tuple(distance(name, value, *span) for name, value, span in ranges if span is not None)  # type: ignore[arg-type] # C, N and D
    return PublishedAnswer(
        law=law,
        budget=budget,
        params=params,
        tokens=tokens,
        loss=loss,
        distances=distances,
        warnings=(_without_interval(law), *(extrapolation_warning(*distances) if distances else ())),
    )


def _without_interval(law: PublishedLaw) -> Flag:
    if law.stderr:
        reason = "its standard errors come without their correlations, so no interval of N, D or the loss follows"
    else:
        reason = "no interval: the paper gives none that holds at another C"
    return Flag("published_law", "info", f"{law.name}: {reason}")


@dataclass(frozen=True, kw_only=True)
class PublishedDistance:
    """A sweep's optimum at its largest fitted budget beside that of a published law."""

    law: PublishedLaw
    budget: float
    params_ratio: float  # N_opt of the sweep over that of the law
    tokens_per_param: float  # D_opt / N_opt of the sweep
    law_tokens_per_param: float
    extrapolation: float | None  # of the law, as `PublishedAnswer.extrapolation`

    @property
    def words(self) -> str:
        """The distance in one line."""
        beyond = self.extrapolation or 1.0
        far = f", {beyond:.2g}x outside the budgets of its runs" if beyond > 1 else ""
        return (
            f"{self.law.label} at C = {fmt.flops(self.budget)}{far}: N_opt x{self.params_ratio:.2g} of theirs, D/N "
            f"{self.tokens_per_param:.3g} against {self.law_tokens_per_param:.3g}; their data and tokenizer are others"
        )

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "law": self.law.name,
            "budget": self.budget,
            "params_ratio": self.params_ratio,
            "tokens_per_param": self.tokens_per_param,
            "law_tokens_per_param": self.law_tokens_per_param,
            "extrapolation": self.extrapolation,
            "message": self.words,
        }


def published_distance(fit: SweepFit, law: PublishedLaw = REFERENCE) -> PublishedDistance | None:
    """Hold N_opt and D_opt of a fit at its largest fitted C against a published law; None without laws."""
    if fit.params_opt is None or fit.tokens_opt is None:
        return None
    budget = fit.fitted_range[1]
    n, d = fit.params_opt.at(budget), fit.tokens_opt.at(budget)
    theirs = predict_published(law, budget)
    return PublishedDistance(law=law, budget=budget, params_ratio=n / theirs.params, tokens_per_param=d / n,
                             law_tokens_per_param=theirs.tokens / theirs.params,
                             extrapolation=theirs.extrapolation)  # fmt: skip
