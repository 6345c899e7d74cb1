"""The minima of the valleys: their noise, their errors, and their bootstrap draws, through which laws are fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from flops_fit_ray.analysis._law import Interval, Law, central_interval, fit_power_law
from flops_fit_ray.analysis._loss_law import fit_loss_law
from flops_fit_ray.analysis._skew import Skew, common_skew, noise_about_cubics
from flops_fit_ray.analysis._valley_cost import BentLaw, Correction, bent_law
from flops_fit_ray.analysis.arrays import Floats, Ints
from flops_fit_ray.analysis.noise import Noise, draw_scatter, group_noise
from flops_fit_ray.analysis.points import Points
from flops_fit_ray.analysis.random_effects import EffectSource, effect_source, line_evidence, random_effects
from flops_fit_ray.analysis.valley import Curve, Polynomial, Valley
from flops_fit_ray.fit_options import LawWeights

LEAST_VARIANCE = 1e-12  # decades², of a minimum that weighs in a law


@dataclass(frozen=True, kw_only=True, eq=False)
class MinimaErrors:
    """Covariances (valleys, valleys) of the optima by the noise of the losses; infinite where there is no optimum."""

    log10_params: Floats
    log10_tokens: Floats
    loss: Floats

    def of(self, indices: Sequence[int]) -> MinimaErrors:
        """The covariances of some of the valleys."""
        square = np.ix_(indices, indices)
        return MinimaErrors(
            log10_params=self.log10_params[square], log10_tokens=self.log10_tokens[square], loss=self.loss[square]
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Minima:
    """The optima of the valleys in every bootstrap draw: arrays (draws, valleys), NaN where a draw has no minimum."""

    log10_params: Floats
    log10_tokens: Floats
    loss: Floats
    source: EffectSource  # random numbers of what the budgets do beyond the noise of their losses

    def of(self, indices: Sequence[int]) -> Minima:
        """The draws of some of the valleys."""
        return Minima(
            log10_params=self.log10_params[:, indices],
            log10_tokens=self.log10_tokens[:, indices],
            loss=self.loss[:, indices],
            source=self.source.of(indices),
        )

    @property
    def params(self) -> LawSource:
        """The draws that a law of N_opt is fitted to."""
        return LawSource(values=self.log10_params, source=self.source)

    @property
    def tokens(self) -> LawSource:
        """The draws that a law of D_opt is fitted to."""
        return LawSource(values=self.log10_tokens, source=self.source.mirrored)


@dataclass(frozen=True, kw_only=True, eq=False)
class LawSource:
    """Draws of minima in decades (draws, budgets), and the random numbers of their budgets' effects."""

    values: Floats
    source: EffectSource


@dataclass(frozen=True, kw_only=True)
class ValleyIntervals:
    """Intervals of one interior valley's minimum."""

    params_opt: Interval
    tokens_opt: Interval
    loss_opt: Interval


def interior(valleys: Sequence[Valley]) -> list[int]:
    """Indices of the valleys that have an optimum."""
    return [i for i, valley in enumerate(valleys) if valley.status == "interior"]


def fitted(valleys: Sequence[Valley]) -> list[tuple[int, Polynomial, Ints]]:
    """Index, curve and point indices of every valley with a polynomial, about which the noise is measured."""
    return [(i, v.smooth, v.index[v.used]) for i, v in enumerate(valleys) if v.smooth is not None]


def valley_noise(valleys: Sequence[Valley], points: Points) -> Noise | None:
    """Estimate the noise about the curves, one group per valley; None where every curve interpolates its points."""
    groups = fitted(valleys)
    if not groups:
        return None
    terms = [valleys[i].noise_terms for i, _, _ in groups]
    return group_noise(
        [term.residuals * np.sqrt(points.weights[group[2]]) for term, group in zip(terms, groups, strict=True)],
        [term.df for term in terms],
        [term.leverage for term in terms],
        points.runs[np.concatenate([members for _, _, members in groups])],
        [float(points.loss[members].min()) for _, _, members in groups],
    )


def minima_errors(valleys: Sequence[Valley], points: Points, noise: Noise) -> MinimaErrors:
    """Propagate the noise of the losses to the optima: a loss is raised by its sigma, and the optimum moves by delta.

    cov = (1 - shared)·sum of delta·delta' over the points + shared·sum over the runs of their summed deltas. Where a
    raised loss leaves no minimum, the optimum is taken as moved by the whole range of sizes.
    """
    moved = np.zeros((3, len(valleys), len(points)))  # log10 N, log10 D, loss
    for number, (i, _, members) in enumerate(fitted(valleys)):
        valley = valleys[i]
        if valley.status != "interior" or valley.over_params is None or valley.over_tokens is None:
            continue
        raised = np.diag(noise.sigma[number] / np.sqrt(points.weights[members]))
        moved[0, i, members], moved[2, i, members] = _moves(valley.over_params, raised)
        moved[1, i, members], _ = _moves(valley.over_tokens, raised)
    covariances = []
    for delta in moved:
        runs = np.array([np.bincount(points.runs, weights=row, minlength=points.num_runs) for row in delta])
        covariances.append((1 - noise.shared) * delta @ delta.T + noise.shared * runs @ runs.T)
    return MinimaErrors(log10_params=covariances[0], log10_tokens=covariances[1], loss=covariances[2])


def _moves(curve: Curve, raised: Floats) -> tuple[Floats, Floats]:
    """Moves (points,) of x and loss of a curve's minimum by each row of noise (points, points)."""
    x, loss = curve.minima(np.concatenate([np.zeros_like(raised[:1]), raised]))
    low, high = curve.x_range
    by_x = np.where(np.isnan(x[1:]), high - low, np.clip(x[1:] - x[0], low - high, high - low))
    return by_x, np.where(np.isnan(loss[1:]), raised.diagonal(), loss[1:] - loss[0])


def draw_minima(
    valleys: Sequence[Valley],
    points: Points,
    noise: Noise,
    draws: int,
    rng: np.random.Generator,
    seed: int,
    excess: Floats | None = None,
) -> Minima:
    """Bootstrap the minima: add new noise to all points of a draw at once, and find the minimum of every valley again.

    Laws fitted to these draws carry the noise of the losses through both stages, minima and power law. Parabolas are
    drawn with the skew that all of them leave possible (`_skew`).

    Args:
        rng: source of the noise.
        seed: of everything else that is drawn.
        excess: of the losses for their learning rates (draws, points), which is taken off.
    """
    groups = fitted(valleys)
    members = np.concatenate([index for _, _, index in groups])
    group = np.repeat(np.arange(len(groups)), [len(index) for _, _, index in groups])
    scatter = draw_scatter(rng, draws, noise, group, points.runs[members], points.num_runs)
    scatter /= np.sqrt(points.weights[members])
    if excess is not None:
        scatter -= excess[:, members]
    more = np.random.default_rng([seed, 2])
    choice, normal = more.random(draws), more.standard_normal(draws)
    minima = np.full((3, draws, len(valleys)), np.nan)  # log10 N, log10 D, loss
    interiors = [n for n, (i, _, _) in enumerate(groups) if valleys[i].status == "interior"]
    for over, sign in enumerate((1, -1)):  # a valley that leans to small N leans to large D
        curves = [_over(valleys[groups[n][0]])[over] for n in interiors]
        skew = _skew_of(curves, interiors, groups, points, noise)
        rho = None if skew is None else skew.draw(choice, sign * normal)
        for n, curve in zip(interiors, curves, strict=True):
            here = scatter[:, group == n]
            x, loss = curve.minima(here, rho) if isinstance(curve, Polynomial) else curve.minima(here)
            minima[over, :, groups[n][0]] = x
            if not over:
                minima[2, :, groups[n][0]] = loss
    minima[:, ~np.isfinite(minima).all(axis=0) | (minima[2] <= 0)] = np.nan  # a loss <= 0 has no logarithm
    source = effect_source(draws, len(valleys), seed)
    return Minima(log10_params=minima[0], log10_tokens=minima[1], loss=minima[2], source=source)


def _skew_of(
    curves: Sequence[Curve],
    interiors: Sequence[int],
    groups: Sequence[tuple[int, Polynomial, Ints]],
    points: Points,
    noise: Noise,
) -> Skew | None:
    """Return the skew that the curves of the valleys with these places among `groups` have in common."""
    parabolas = [c for c in curves if isinstance(c, Polynomial)]
    if len(parabolas) < len(curves):
        return None
    weights = [points.weights[groups[n][2]] for n in interiors]
    return common_skew(parabolas, [float(noise.sigma[n]) for n in interiors], weights)


@dataclass(frozen=True, kw_only=True)
class ValleySkew:
    """The skew over N that valleys with parabolas have in common, as far as intervals hold it."""

    rho: float  # per decade of N, as in `_skew`
    rho_sd: float
    params_factor: float  # N_opt with it over that of the curves, geometric mean over the budgets

    @property
    def words(self) -> str:
        """The assumption in one sentence."""
        return (
            f"intervals allow for a skew that all valleys have in common ({self.rho:+.3f} ± {self.rho_sd:.3f} per "
            f"decade of N; with it N_opt is x{self.params_factor:.3f}), and lie about half of it; the laws do not"
        )

    def to_json(self) -> dict[str, float]:
        """Return plain values for JSON."""
        return asdict(self)


def valley_skew(valleys: Sequence[Valley], points: Points, noise: Noise) -> ValleySkew | None:
    """Return the skew that `draw_minima` draws about; None where the curves cannot show one."""
    groups = fitted(valleys)
    interiors = [n for n, (i, _, _) in enumerate(groups) if valleys[i].status == "interior"]
    curves = [_over(valleys[groups[n][0]])[0] for n in interiors]
    skew = _skew_of(curves, interiors, groups, points, noise)
    if skew is None:
        return None
    moved = [
        float(c.minima(np.zeros((1, len(c.residuals))), np.array([skew.estimate]))[0][0]) - c.vertex
        for c in curves
        if isinstance(c, Polynomial)
    ]
    known = [one for one in moved if np.isfinite(one)]
    factor = float(10 ** np.mean(known)) if known else float("nan")
    return ValleySkew(rho=skew.estimate, rho_sd=skew.spread, params_factor=factor)


def likely_excess(excess: Floats, valleys: Sequence[Valley], errors: MinimaErrors, seed: int) -> Floats:
    """Draw again among the draws of `excess` (draws, points), by how well the minima that each leaves make a law."""
    used = interior(valleys)
    if len(used) < 2:
        return excess
    minima = np.stack([_over(valleys[i])[0].minima(-excess[:, valleys[i].index[valleys[i].used]])[0] for i in used], 1)
    whole = np.isfinite(minima).all(axis=1)
    if not whole.any():
        return excess
    x = np.log10([valleys[i].flops for i in used])
    log = line_evidence(x, minima[whole], errors.of(used).log10_params)
    weights = np.zeros(len(excess))
    weights[whole] = np.exp(log - log.max())
    rng = np.random.default_rng([seed, 5])
    places = (np.arange(len(excess)) + rng.random()) / len(excess)  # evenly: no draw is lost by chance
    chosen = np.searchsorted(np.cumsum(weights) / weights.sum(), places)
    return np.asarray(excess[rng.permutation(np.minimum(chosen, len(excess) - 1))])


def shared_skew(valleys: Sequence[Valley], points: Points) -> float:
    """Return the skew over N that the valleys' parabolas have in common, as their noise leaves it probable; else 0."""
    noise, used = valley_noise(valleys, points), set(interior(valleys))
    if noise is None:
        return 0.0
    groups = [(n, smooth, members) for n, (i, smooth, members) in enumerate(fitted(valleys)) if i in used]
    shown = [smooth for _, smooth, _ in groups if float(smooth.cubic @ smooth.cubic) > 0]
    about_cubics = noise_about_cubics(shown)  # the noise about parabolas has the skew in it
    share = 1.0 if about_cubics is None or noise.pooled == 0 else min(about_cubics / noise.pooled, 1.0)
    skew = common_skew(
        [smooth for _, smooth, _ in groups],
        [float(noise.sigma[n]) * share for n, _, _ in groups],
        [points.weights[members] for _, _, members in groups],
    )
    return 0.0 if skew is None else skew.estimate


def _over(valley: Valley) -> tuple[Curve, Curve]:
    assert valley.over_params is not None and valley.over_tokens is not None  # of every valley with an optimum
    return valley.over_params, valley.over_tokens


def fit_laws(
    flops: Floats,
    optima: tuple[Floats, Floats, Floats],
    errors: MinimaErrors | None,
    minima: Minima | None,
    weights: LawWeights,
) -> tuple[Law, Law, Law]:
    """Fit the laws of N, D and L through optima (budgets,), with what budgets do beyond the noise of their losses."""
    n, d, loss = optima
    of_n, of_d = (None, None) if errors is None else (errors.log10_params, errors.log10_tokens)
    spread = np.zeros(len(loss)) if errors is None else np.sqrt(np.diag(errors.loss))
    drawn_n, drawn_d = (None, None) if minima is None else (minima.params, minima.tokens)
    drawn_loss, source = (None, None) if minima is None else (minima.loss, minima.source)
    return (
        minima_law(flops, n, of_n, drawn_n, weights),
        minima_law(flops, d, of_d, drawn_d, weights),
        fit_loss_law(flops, loss, spread, drawn_loss, source),
    )


def minima_law(
    flops: Floats,
    value: Floats,
    covariance: Floats | None,
    drawn: LawSource | None,
    weights: LawWeights = "precision",
    correction: Correction | None = None,
) -> Law:
    """Fit a power law through minima (budgets,), with what they do beyond the noise of their losses.

    Args:
        covariance: of log10 value by that noise (budgets, budgets); None where it is not known.
        drawn: bootstrap draws; None for a law without intervals.
        weights: "precision" weighs a minimum by 1 / (variance + tau²), once its variance is known.
        correction: where the cost bends the law of N_opt: it is straight in the corrected N.
    """
    line = _line(flops, value, covariance, drawn, weights)
    if correction is None:
        return line
    return bent_minima_law(line, flops, value, covariance, drawn, weights, correction) or line


def bent_minima_law(
    line: Law,
    flops: Floats,
    params: Floats,
    covariance: Floats | None,
    drawn: LawSource | None,
    weights: LawWeights,
    correction: Correction,
) -> BentLaw | None:
    """Fit the law of N_opt in the corrected N, as `minima_law`; None where no sensible correction makes it straight."""
    log10 = np.log10(params)
    own = correction.through(flops, log10)
    if own is None:
        return None
    slope = own.slope(log10)
    within = None if covariance is None else covariance * np.outer(slope, slope)
    source = None if drawn is None else LawSource(values=own.straight(drawn.values), source=drawn.source)
    return bent_law(line, _line(flops, 10 ** own.straight(log10), within, source, weights), own, flops)


def _line(flops: Floats, value: Floats, covariance: Floats | None, drawn: LawSource | None, weights: LawWeights) -> Law:
    effects, w = None, None
    if covariance is not None:
        effects = random_effects(np.log10(flops), np.log10(value), covariance)
        if weights == "precision":
            w = 1 / np.maximum(np.diag(covariance) + effects.tau**2, LEAST_VARIANCE)
            w = w / w.max()
    if drawn is None:
        return fit_power_law(flops, value, w, effects=effects)
    return fit_power_law(flops, value, w, drawn.values, effects, None if effects is None else drawn.source)


def valley_intervals(
    valleys: Sequence[Valley], minima: Minima | None, confidence: float
) -> list[ValleyIntervals | None]:
    """Intervals of the minima, one entry per valley; None without a minimum or without measured noise."""
    intervals: list[ValleyIntervals | None] = []
    for i, valley in enumerate(valleys):
        n = d = loss = None
        if minima is not None and valley.status == "interior":
            drawn = (minima.log10_params, minima.log10_tokens, minima.loss)
            n, d, loss = (central_interval(values[:, i], confidence) for values in drawn)
        known = None
        if n is not None and d is not None and loss is not None:
            known = ValleyIntervals(params_opt=_power(n), tokens_opt=_power(d), loss_opt=loss)
        intervals.append(known)
    return intervals


def _power(log10: Interval) -> Interval:
    return Interval(10**log10.low, 10**log10.high)
