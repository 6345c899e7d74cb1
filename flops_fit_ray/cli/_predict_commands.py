"""Commands that predict from a sweep or a table of runs, and score what was predicted: predict, score."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from flops_fit_ray.cli._common import POSITIVE, LocalPath, StoragePathType, echo, json_option, open_directory
from flops_fit_ray.cli._sources import (
    FIT_OPTIONS,
    TABLE_OPTIONS,
    Opened,
    open_source,
    reading_of,
    refuse_options,
    with_options,
)
from flops_fit_ray.errors import FitError, FlopsFitError, SpecError
from flops_fit_ray.storage.storage_path import StoragePath, local_path
from flops_fit_ray.sweep.sources import is_table, path_or_law, shadowed

if TYPE_CHECKING:
    from flops_fit_ray.analysis import Prediction, PublishedLaw, Question
    from flops_fit_ray.planning import Plan
    from flops_fit_ray.sweep.recommend import Recommendation


class ServedTokens(click.ParamType[float]):
    """Tokens, or a product such as 1e9x500x4: requests, tokens of each, samples."""

    name = "tokens"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the product."""
        if isinstance(value, float):
            return value
        try:
            product = math.prod(float(factor) for factor in str(value).split("x"))
        except ValueError:
            self.fail(f"{value!r} is not a number of tokens; give for example 1e12, or 2e9x500 (requests x length)")
        if not 0 < product < math.inf:
            self.fail(f"{value!r} is not a positive number of tokens")
        return product


class BoundsType(click.ParamType[tuple[float, float]]):
    """Two numbers, the smaller first, such as 0,100."""

    name = "LOW,HIGH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[float, float]:
        """Return both."""
        if isinstance(value, tuple):
            return value
        try:
            low, high = (float(number) for number in str(value).split(","))
        except ValueError:
            self.fail(f"{value!r} is not LOW,HIGH; give for example 0,100")
        return low, high


@click.command()
@click.argument("words", nargs=-1, metavar="BUDGET [SOURCE]")
@click.option("--hours", type=POSITIVE, help="A wall-clock budget on one device instead.")
@click.option(
    "--unique",
    type=POSITIVE,
    metavar="TOKENS",
    help="Only so many distinct tokens exist: the best N and D when they are repeated, as the runs show its cost.",
)
@click.option(
    "--loss", type=POSITIVE, metavar="NATS", help="A loss to be reached for the fewest FLOPs instead of BUDGET."
)
@click.option(
    "--max-params", type=POSITIVE, metavar="N", help="The largest N that may be: the best then, and its cost."
)
@click.option(
    "--served",
    type=ServedTokens(),
    help="Tokens that the model will serve, or requests x length [x samples]: BUDGET is for training and serving.",
)
@click.option(
    "--as-good-as",
    type=POSITIVE,
    metavar="FLOPS",
    help="With --served, instead of BUDGET: the loss of so many FLOPs of training alone, for the fewest in all.",
)
@click.option(
    "--serving-price",
    type=POSITIVE,
    help="Of a FLOP in serving, in FLOPs of training: above 1 where serving uses its hardware less well. [default: 1]",
)
@click.option(
    "--metric",
    "metrics",
    multiple=True,
    metavar="NAME",
    help="Predict this metric of the runs, too (of a "
    "table: this column): from the loss, with the errors of both steps.",
)
@click.option(
    "--metric-kind",
    type=click.Choice(["share", "loss", "perplexity"]),
    help="What the metric is: a share such as an "
    "accuracy, or another loss [default: a share where all runs lie within its bounds].",
)
@click.option("--bounds", type=BoundsType(), help="Of a share: LOW,HIGH [default: 0,1].")
@click.option("--chance", type=float, help="Value of a share by guessing, such as 0.25 [default: fitted].")
@click.option("--spec", "spec_to", type=LocalPath(), help="Of a sweep: write the spec of that one run here.")
@click.option("--seal", "seal_it", is_flag=True, help="Of a sweep: keep this forecast in its directory, to be scored.")
@with_options([*TABLE_OPTIONS, *FIT_OPTIONS])
@json_option
def predict(
    words: tuple[str, ...],
    hours: float | None,
    unique: float | None,
    max_params: float | None,
    loss: float | None,
    served: float | None,
    as_good_as: float | None,
    serving_price: float | None,
    metrics: tuple[str, ...],
    metric_kind: Literal["share", "loss", "perplexity"] | None,
    bounds: tuple[float, float] | None,
    chance: float | None,
    spec_to: Path | None,
    seal_it: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Answer N, D and loss for BUDGET FLOPs, with intervals and the extrapolation factor.

    Of a sweep also the nearest size, steps, batch, learning rate and hours; with --spec as a spec that `run` takes.
    With --seal the forecast is kept with its time and sha256, and `status`, `report` and `score` say how it held once
    that budget is run. With --hours instead of BUDGET: the best model for that time, by the surface and the measured
    speed. With --served, N and D for which training and serving cost least together (Sardana et al. 2024). SOURCE may
    be the name of a published law, too (`laws` lists them), which has no intervals.
    """
    from flops_fit_ray.analysis import Question, Serving

    _check_together(
        hours=hours,
        loss=loss,
        max_params=max_params,
        unique=unique,
        served=served,
        as_good_as=as_good_as,
        serving_price=serving_price,
        seal=seal_it,
        metric=metrics or None,
        metric_kind=metric_kind,
        bounds=bounds,
        chance=chance,
    )
    instead = {"--hours": hours, "--loss": loss, "--as-good-as": as_good_as}
    budget, word = _budget_and_source(words, next((name for name, value in instead.items() if value is not None), ""))
    source, law = (None, None) if word is None else path_or_law(word)
    if law is not None:
        others = {
            "unique": unique,
            "served": served,
            "metric": metrics,
            "cap": max_params,
            "seal": seal_it,
            "spec": spec_to,
        }
        _put_published(law, budget, asked=any(others.values()), as_json=as_json, **options)
        return
    opened = open_source(source, {**options, "metrics": metrics})
    if hours is not None:
        prediction, content, text = _predicted_for_time(opened, hours)
    else:
        price = 1.0 if serving_price is None else serving_price
        serving = None if served is None else Serving(tokens=served, price=price)
        prediction, content, text = _predicted(
            opened,
            Question(
                budget=budget, loss=loss, as_good_as=as_good_as, unique=unique, serving=serving, max_params=max_params
            ),
        )
    if metrics:
        known = {"kind": metric_kind, "bounds": bounds, "chance": chance}
        text = "\n".join([text, *_metrics_of(opened, prediction, metrics, known, content)])
    hidden = shadowed(word or "")
    content["warnings"] = [*(flag.to_json() for flag in opened.assumed), *content["warnings"]]
    lines = [*([f"note: {hidden}"] if hidden else []), *(flag.line for flag in opened.assumed), text]
    _add_run(opened, prediction, spec_to, seal_it, content, lines)
    echo(json.dumps(content) if as_json else "\n".join(lines))


def _add_run(
    opened: Opened,
    prediction: Prediction,
    spec_to: Path | None,
    seal_it: bool,
    content: dict[str, Any],
    lines: list[str],
) -> None:
    """Add the run that a sweep recommends to the content and the lines; write its spec, and seal the forecast.

    Raises:
        click.UsageError: one of the two was asked of a table.
    """
    if seal_it and opened.sweep is None:
        raise click.UsageError("--seal needs a sweep directory to keep the forecast in, and this is a table")
    if opened.sweep is not None:
        from flops_fit_ray.console.fit_text import recommendation_text
        from flops_fit_ray.sweep.recommend import recommend

        advice = recommend(opened.sweep, opened.fit, prediction)
        content["run"] = advice.to_json()
        lines.append(recommendation_text(advice))
        if spec_to is not None:
            made, missing = _write_spec(advice, spec_to)
            content |= {"spec": str(spec_to), "plan": None if made is None else made.to_json(), "missing": missing}
            lines.append(f"spec: {spec_to}{_planned_words(made)}" + (f"\nnot ready yet: {missing}" if missing else ""))
    elif spec_to is not None:
        raise click.UsageError("--spec needs a sweep directory: a table does not know the model")
    if seal_it and opened.sweep is not None:  # last, so that nothing is kept of a command that is refused
        from flops_fit_ray.sweep.forecasts import seal

        try:
            content["sealed"] = seal(opened.sweep, opened.fit, prediction).to_json()
        except FlopsFitError:
            if spec_to is not None:
                spec_to.unlink()
            raise
        lines.append(f"sealed: {content['sealed']['path']}, sha256 {content['sealed']['sha256']}")


@click.command()
@click.argument("directory", required=False, type=StoragePathType())
@click.option("--runs", type=StoragePathType(), help="Runs of a forecast's C: a table, or another sweep directory.")
@with_options(TABLE_OPTIONS)
@json_option
def score(directory: StoragePath | None, runs: StoragePath | None, as_json: bool, **options: Any) -> None:
    """Score the forecasts that `predict --seal` keeps in a sweep directory by the runs of their C.

    These are the sweep's own, as `extend --budget` adds them, and those given by --runs, which are kept beside the
    forecasts.
    """
    from flops_fit_ray.storage.paths import SCHEMA_VERSION
    from flops_fit_ray.sweep.scored_runs import add_runs
    from flops_fit_ray.sweep.scores import scores_of

    sweep = open_directory(directory)
    if runs is not None:
        table = None
        if is_table(runs):
            from flops_fit_ray.tables import read_table

            table = read_table(local_path(runs), reading_of(options))
        add_runs(sweep, runs, table)
    found = scores_of(sweep)
    content = {"schema_version": SCHEMA_VERSION, **found.to_json()}
    echo(json.dumps(content) if as_json else "\n".join(found.lines) or "no forecasts; `predict C DIR --seal` makes one")


def _write_spec(advice: Recommendation, path: Path) -> tuple[Plan | None, str]:
    """Write the spec with the nearest size that the model takes. Returns its plan, or the reason why there is none."""
    from flops_fit_ray.planning import make_plan
    from flops_fit_ray.spec import read_spec
    from flops_fit_ray.training.preflight.model_size import SpecMeasurer

    if path.exists():
        raise click.UsageError(f"--spec {path}: is there already; nothing was written")
    sizes = advice.candidates or ((advice.size,) if advice.size is not None else ())
    refused: SpecError | None = None
    for size in sizes or (None,):
        advice.write(path, size)
        spec = read_spec(path)
        try:
            measurements = SpecMeasurer(path.absolute().parent).measure(spec)
        except SpecError as e:
            refused = refused or e
            continue
        try:
            return make_plan(spec, measurements), ""
        except SpecError as e:  # the model is right; the rest, such as too little data, is for its owner to mend
            return None, str(e)
    path.unlink()
    assert refused is not None
    raise SpecError(str(path), [*refused.faults, "put the spec beside the files that the sweep's spec names"])


def _planned_words(plan: Plan | None) -> str:
    if plan is None:
        return ""
    e = plan.experiments[0]
    return f": size {e.size}, N = {e.params:,}, D = {e.tokens:,}, {e.steps:,} steps, lr {e.recipe.lr:.3g}"


def _put_published(law: PublishedLaw, budget: float | None, *, asked: bool, as_json: bool, **options: Any) -> None:
    """Print the answer of a published law; `asked`: something that it does not answer was asked.

    Raises:
        click.UsageError: something else was asked than N and D for a BUDGET.
    """
    from flops_fit_ray.analysis import predict_published, published_to_json
    from flops_fit_ray.console.laws_text import published_text

    if budget is None or asked:
        raise click.UsageError(f"{law.name} is a published law, and answers for a BUDGET in FLOPs alone")
    refuse_options(options, law.name)
    answer = predict_published(law, budget)
    echo(json.dumps(published_to_json(answer)) if as_json else published_text(answer))


def _check_together(**given: Any) -> None:
    """Check that the options that were given answer one question."""
    names = {name for name, value in given.items() if value not in (None, False)}
    apart = {
        "hours": ("loss", "as_good_as", "unique", "served", "seal"),
        "loss": ("as_good_as", "unique", "seal"),
        "unique": ("as_good_as", "served", "seal"),
        "served": ("seal",),
        "max_params": ("hours", "loss", "unique", "served", "seal"),
        "metric": ("hours", "unique", "served", "max_params"),
    }
    for one, other in ((one, other) for one, others in apart.items() for other in others):
        if {one, other} <= names:
            words = " and ".join(f"--{name.replace('_', '-')}" for name in (one, other))
            raise click.UsageError(f"{words} are different questions; leave one out")
    goes = {
        "serving_price": "served",
        "as_good_as": "served",
        "metric_kind": "metric",
        "bounds": "metric",
        "chance": "metric",
    }
    for name, other in goes.items():
        if name in names and other not in names:
            raise click.UsageError(f"--{name.replace('_', '-')} goes with --{other}; give both")


def _budget_and_source(words: Sequence[str], instead: str) -> tuple[float | None, str | None]:
    """Parse BUDGET [SOURCE], or with an option `instead` of BUDGET [SOURCE] alone."""
    rest = list(words)
    budget = None
    if not instead:
        if not rest:
            raise click.UsageError("give BUDGET in FLOPs, --loss or --hours")
        first = rest.pop(0)
        try:
            budget = float(first)
        except ValueError as e:
            raise click.UsageError(f"BUDGET {first!r} is not a valid float; give FLOPs, for example 1e21") from e
        if not 0 < budget < math.inf:
            raise click.UsageError(f"BUDGET must be a positive number of FLOPs (got {first})")
    if len(rest) > 1:
        wanted = f"one SOURCE; {instead} stands for BUDGET" if instead else "BUDGET and one SOURCE"
        raise click.UsageError(f"{' '.join(words)}: too many; give {wanted}")
    return budget, rest[0] if rest else None


def _predicted(opened: Opened, question: Question) -> tuple[Prediction, dict[str, Any], str]:
    """Answer a question. Returns the prediction, its JSON and its text."""
    from flops_fit_ray.analysis import answer, prediction_to_json

    confidence, prediction = opened.fit.options.confidence, answer(opened.fit, question)
    return prediction, prediction_to_json(prediction, confidence), str(prediction)


def _metrics_of(
    opened: Opened, prediction: Prediction, names: Sequence[str], known: Mapping[str, Any], content: dict[str, Any]
) -> list[str]:
    """Predict metrics, add them to the JSON `content`, and return their texts."""
    from flops_fit_ray.analysis import MetricOptions, metric_to_json, predict_metric

    found = [predict_metric(opened.fit, prediction, name, MetricOptions(**known)) for name in names]
    content["metrics"] = [metric_to_json(one) for one in found]
    return [str(one) for one in found]


def _predicted_for_time(opened: Opened, hours: float) -> tuple[Prediction, dict[str, Any], str]:
    """Predict for a wall-clock budget."""
    from flops_fit_ray import analysis

    timed = analysis.isotime(opened.fit)
    if timed is None:
        raise FitError(
            "a wall-clock budget needs a surface, and the seconds of 3 runs of 2 sizes; "
            "--column seconds=NAME says which column of a table has them"
        )
    found = analysis.predict_for_time(timed, 3600 * hours, opened.fit.options.confidence)
    return found, analysis.timed_to_json(found, timed), str(found)
