"""Questions that the fit workers answer: fits, figures and reports of a sweep directory, as bytes.

Nothing is written into a sweep directory, and no user code is loaded.
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_ray.errors import DirectoryError, FitError, FlopsFitError, SpecError
from flops_fit_ray.service.state._chart_numbers import (
    answer_numbers,
    comparison,
    drawn_comparison,
    law_chart,
    valley_chart,
)
from flops_fit_ray.storage.opening import follow_no_links_in

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit_ray.sweep.directory import Sweep

NICE = 10
MAX_DRAWS = 20_000  # of the intervals of a fit
MAX_OPEN = 4  # fitted sweeps cached in the worker
PARENT_SECONDS = 2.0  # between checks that the service is alive
LIGHT_INK, DARK_INK = "#1b1f24", "#e4e8ec"  # of figures on light and on dark background

_open: OrderedDict[str, tuple[str, Sweep]] = OrderedDict()  # version and sweep by directory


def begin() -> None:
    """Begin a worker: at low priority, and no longer than the service."""
    os.nice(NICE)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(0)  # the service is gone


def answer_question(question: str, root: str, version: str, more: tuple[str, ...]) -> bytes:
    """Answer a question on the directory at `version`.

    Raises:
        FitError: there is no answer.
        DirectoryError: the directory cannot be read, or was moved a moment ago.
    """
    sweep = _opened(root, version)
    try:
        if question in FITTED:
            _check_draws(sweep)
        return QUESTIONS[question](sweep, *more)
    except FlopsFitError:
        raise
    except (ValueError, ArithmeticError, IndexError) as e:  # values that no fit can use
        raise FitError(f"{type(e).__name__}: {e}") from None


def _opened(root: str, version: str) -> Sweep:
    follow_no_links_in(Path(root))
    known = _open.pop(root, None)
    if known is None or known[0] != version:
        from flops_fit_ray.sweep.directory import open_sweep

        try:
            known = (version, open_sweep(Path(root)))
        except SpecError as e:  # the directory's own, which is no fault of the request
            raise DirectoryError(str(e)) from e
    _open[root] = known
    while len(_open) > MAX_OPEN:
        _open.popitem(last=False)
    return known[1]


def _check_draws(sweep: Sweep) -> None:
    draws = sweep.spec.fit.draws
    if draws > MAX_DRAWS:
        why = f"fit.draws: {draws} would hold up the fits of all other sweeps, and a service draws {MAX_DRAWS} at most"
        raise FitError(f"{why}; run flops-fit-ray fit {sweep.paths.root}")


def _fit(sweep: Sweep) -> bytes:
    from flops_fit_ray.sweep.validity import analysis_document, validity_card

    return json.dumps(analysis_document(sweep.analysis, validity_card(sweep.fit, sweep))).encode()


def _shown_fit(sweep: Sweep, **known: object) -> dict[str, object]:
    """Return what a page shows of a fit, as far as it is known."""
    empty: dict[str, object] = {"answer": "", "laws": [], "valleys": [], "problem": "", "warnings": [], "range": None,
                                "at": None, "confidence": None, "method": "", "law_rows": [], "validity": [],
                                "valley_rows": [], "predictions": []}  # fmt: skip
    return {"results": len(sweep.results), **empty, **known}


def _short(sweep: Sweep) -> bytes:
    """Return the answer, valleys and warnings that a page shows."""
    from flops_fit_ray.analysis import json_value, n_opt_to_json
    from flops_fit_ray.report.page import answer_sentence

    try:
        _check_draws(sweep)
    except FitError as e:
        return json.dumps(_shown_fit(sweep, problem=str(e))).encode()
    fit = sweep.fit
    has_answer = sweep.results and not sweep.spec.is_one_run
    found = _shown_fit(
        sweep,
        answer=answer_sentence(sweep.analysis, sweep.loss_name) if has_answer else "",
        laws=[f"{name} = {law.formula}" for name, law in fit.laws],
        valleys=n_opt_to_json(fit),
        problem=fit.problem,
        warnings=list(sweep.warnings),
        range=list(fit.fitted_range) if fit.params_opt is not None else None,
        **(answer_numbers(sweep) if has_answer else {}),
    )
    return json.dumps(json_value(found)).encode()


def _predict(sweep: Sweep, *given: str) -> bytes:
    """Answer a question given as NAME=NUMBER: budget, loss, unique, served, price; metric=NAME, low, high, chance."""
    from flops_fit_ray.analysis import (
        MetricOptions,
        Question,
        Serving,
        answer,
        json_value,
        metric_to_json,
        predict_metric,
        prediction_to_json,
    )
    from flops_fit_ray.sweep.recommend import recommend

    pairs = [one.split("=", 1) for one in given]
    numbers = {name: float(value) for name, value in pairs if name != "metric"}
    known = [numbers.pop(name, None) for name in ("low", "high", "chance")]
    served, price = numbers.pop("served", None), numbers.pop("price", 1.0)
    serving = None if served is None else Serving(tokens=served, price=price)
    prediction = answer(sweep.fit, Question(**numbers, serving=serving))
    content = prediction_to_json(prediction, sweep.fit.options.confidence)
    if names := [name for key, name in pairs if key == "metric"]:
        low, high, chance = known
        bounds = None if low is None or high is None else (low, high)
        options = MetricOptions(bounds=bounds, chance=chance)
        found = [predict_metric(sweep.fit, prediction, name, options) for name in names]
        content["metrics"] = [metric_to_json(one) for one in found]
    return json.dumps(json_value({**content, "run": recommend(sweep, sweep.fit, prediction).to_json()})).encode()


def _valleys(sweep: Sweep) -> bytes:
    from flops_fit_ray.report.figures import draw_valleys, to_svg, valley_curves

    return _inked(to_svg(draw_valleys(valley_curves(sweep.fit, sweep.replaced_points), sweep.loss_name)))


def _laws(sweep: Sweep) -> bytes:
    from flops_fit_ray.report.figures import draw_laws, law_bands, to_svg

    return _inked(to_svg(draw_laws(law_bands(sweep.fit))))


def _curves(sweep: Sweep) -> bytes:
    from flops_fit_ray.report.figures import draw_curves, to_svg, training_curves

    return _inked(to_svg(draw_curves(training_curves(sweep.curves))))


def _curve(sweep: Sweep, key: str, _changed: str) -> bytes:
    """Draw the training curve of one experiment; `_changed` makes a new question when the file has changed."""
    import numpy as np

    from flops_fit_ray.ledger import Ledger
    from flops_fit_ray.report.figures import draw_curves, to_svg
    from flops_fit_ray.report.figures.curves import TrainingCurve

    e = next(e for e in sweep.plan.experiments if e.key == key)
    tokens, loss = Ledger(sweep.paths).curve(key)
    good = np.isfinite(loss) & (loss > 0) & (tokens > 0)
    shown = [TrainingCurve(params=float(e.params), flops=tokens[good] * e.flops_per_token, loss=loss[good])]
    return _inked(to_svg(draw_curves(shown if good.any() else [])))


def _overlay(sweep: Sweep, keys: str, _stamp: str) -> bytes:
    """Draw the training curves of some experiments beside each other; `_stamp` changes when one of their files has."""
    from flops_fit_ray.ledger import Ledger
    from flops_fit_ray.report.figures import draw_overlay, to_svg
    from flops_fit_ray.report.figures.curves import overlaid

    ledger, wanted = Ledger(sweep.paths), set(keys.split(","))
    shown = [overlaid(e, ledger.curve_rows(e.key)) for e in sweep.plan.experiments if e.key in wanted]
    return _inked(to_svg(draw_overlay(shown)))


def _both(sweep: Sweep, root: str, version: str) -> tuple[Sweep, Sweep, tuple[str, str]]:
    other = _opened(root, version)
    _check_draws(other)
    return sweep, other, (sweep.paths.root.name, other.paths.root.name)


def _compare(sweep: Sweep, root: str, version: str, budget: str) -> bytes:
    return comparison(*_both(sweep, root, version), budget)


def _differences(sweep: Sweep, root: str, version: str, budget: str) -> bytes:
    return _inked(drawn_comparison(*_both(sweep, root, version), budget))


def _report(sweep: Sweep) -> bytes:
    from flops_fit_ray.report.write import drawn_page

    return drawn_page(sweep).encode()


def _summary(sweep: Sweep) -> bytes:
    from flops_fit_ray.analysis import json_value
    from flops_fit_ray.report.page import summary_to_json

    return json.dumps(json_value(summary_to_json(sweep))).encode()


def _table(sweep: Sweep) -> pd.DataFrame:
    from flops_fit_ray.service.http.redact import redacted

    frame = sweep.to_frame()
    frame["error"] = frame["error"].map(lambda error: redacted(error) if isinstance(error, str) else error)
    return frame


def _csv(sweep: Sweep) -> bytes:
    return bytes(_table(sweep).to_csv(index=False).encode())


def _parquet(sweep: Sweep) -> bytes:
    buffer = io.BytesIO()
    _table(sweep).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _inked(svg: str) -> bytes:
    """Return the SVG in the text colour of the page's light or dark scheme, which an <img> does not inherit."""
    from flops_fit_ray.report.figures import for_page

    style = f":root{{color:{LIGHT_INK}}}@media (prefers-color-scheme:dark){{:root{{color:{DARK_INK}}}}}"
    element = for_page(svg, "f")
    at = element.index(">") + 1
    return f"{element[:at]}<style>{style}</style>{element[at:]}".encode()


FITTED = {
    "fit",
    "predict",
    "valleys",
    "laws",
    "report",
    "summary",
    "valley_chart",
    "law_chart",
    "compare",
    "differences",
}
QUESTIONS: Mapping[str, Callable[..., bytes]] = {
    "fit": _fit,
    "short": _short,
    "predict": _predict,
    "valleys": _valleys,
    "laws": _laws,
    "curves": _curves,
    "curve": _curve,
    "report": _report,
    "summary": _summary,
    "csv": _csv,
    "parquet": _parquet,
    "valley_chart": valley_chart,
    "law_chart": law_chart,
    "compare": _compare,
    "differences": _differences,
    "overlay": _overlay,
}
