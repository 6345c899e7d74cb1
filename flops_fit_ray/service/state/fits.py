"""Fits, figures and pages, made in one process of low priority, so that no reader waits for them.

Nothing is written into a sweep directory, and no code of its owner is loaded.
"""

from __future__ import annotations

import asyncio
import io
import json
import multiprocessing
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING

from flops_fit_ray.errors import FitError, FlopsFitError
from flops_fit_ray.storage.storage_path import StoragePath

if TYPE_CHECKING:
    import pandas as pd

    from flops_fit_ray.sweep.directory import Sweep

NICE = 10
MAX_OPEN = 4  # fitted sweeps that are kept in the process
MAX_ANSWERS = 500  # that are kept in the service
SHARE = 0.1  # of a core that fits may take which nobody has asked for
PARENT_SECONDS = 2.0  # between looks at whether the service still lives
INK = "#1b1f24", "#e4e8ec"  # of figures on light and on dark ground

_open: OrderedDict[str, tuple[str, Sweep]] = OrderedDict()  # in the process: by directory, with the version


class FitWorker:
    """Questions to the process. Equal ones at the same time are one, and answers are kept."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ProcessPoolExecutor | None = None
        self._asked: OrderedDict[tuple[str, ...], Future[bytes]] = OrderedDict()
        self._newest: dict[tuple[str, ...], tuple[str, bytes]] = {}
        self._rest: dict[tuple[str, ...], float] = {}  # until when nobody asks by himself again

    def ask(self, question: str, root: StoragePath, version: str, *more: str) -> Future[bytes]:
        """An answer to be, of the directory as it was at `version`.

        The future raises what the question raises: FitError where there is no law.
        """
        at = (question, str(root), version, *more)
        with self._lock:
            known = self._asked.get(at)
            if known is not None and not _was_lost(known):
                self._asked.move_to_end(at)
                return known
            began = time.monotonic()
            try:
                future = self._started().submit(_answer, question, str(root), version, more)
            except BrokenProcessPool:  # it was killed, for example for want of memory
                self._pool = None
                future = self._started().submit(_answer, question, str(root), version, more)
            self._asked[at] = future
            while len(self._asked) > MAX_ANSWERS:
                self._asked.popitem(last=False)
        future.add_done_callback(lambda done: self._keep(at, done, time.monotonic() - began))
        return future

    async def answer(self, seconds: float, question: str, root: StoragePath, version: str, *more: str) -> bytes:
        """The same, waited for.

        Raises:
            TimeoutError: it takes longer; it is being worked on still.
            FitError: there is no answer, or the process was killed twice.
        """
        for _ in range(2):
            asked = asyncio.wrap_future(self.ask(question, root, version, *more))
            try:
                return await asyncio.wait_for(asyncio.shield(asked), seconds)
            except BrokenProcessPool:
                continue
        raise FitError("the process that fits and draws was killed twice; is there memory enough?")

    def newest(self, question: str, root: StoragePath, version: str, *more: str) -> tuple[str, bytes] | None:
        """The last answer there is, with its version; a newer one is asked for, as seldom as it takes to stay cheap."""
        of = (question, str(root), *more)
        known = self._newest.get(of)
        if (known is None or known[0] != version) and time.monotonic() >= self._rest.get(of, 0.0):
            with self._lock:
                busy = any((at[0], at[1], *at[3:]) == of and not f.done() for at, f in self._asked.items())
            if not busy:
                self.ask(question, root, version, *more)
        return self._newest.get(of)

    def close(self) -> None:
        """End the process."""
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()

    def _keep(self, at: tuple[str, ...], done: Future[bytes], took: float) -> None:
        of = (at[0], at[1], *at[3:])
        self._rest[of] = time.monotonic() + took / SHARE
        if not done.cancelled() and done.exception() is None:
            self._newest[of] = (at[2], done.result())
            while len(self._newest) > MAX_ANSWERS:
                self._newest.pop(next(iter(self._newest)))

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(1, mp_context=context, initializer=_begin)
        return self._pool


def _was_lost(asked: Future[bytes]) -> bool:
    """Whether the process died over it; any other failure would only come again."""
    return asked.done() and (asked.cancelled() or isinstance(asked.exception(), BrokenProcessPool))


def _begin() -> None:
    os.nice(NICE)
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PARENT_SECONDS)
    os._exit(0)  # the service was killed


def _answer(question: str, root: str, version: str, more: tuple[str, ...]) -> bytes:
    known = _open.pop(root, None)
    if known is None or known[0] != version:
        from flops_fit_ray.sweep.directory import open_sweep

        known = (version, open_sweep(Path(root)))
    _open[root] = known
    while len(_open) > MAX_OPEN:
        _open.popitem(last=False)
    try:
        return QUESTIONS[question](known[1], *more)
    except FlopsFitError:
        raise
    except (ValueError, ArithmeticError, IndexError) as e:  # numbers that no fit bears
        raise FitError(f"{type(e).__name__}: {e}") from None


def _fit(sweep: Sweep) -> bytes:
    from flops_fit_ray.sweep.validity import analysis_document, validity_card

    return json.dumps(analysis_document(sweep.analysis, validity_card(sweep.fit, sweep))).encode()


def _short(sweep: Sweep) -> bytes:
    """What a page says of the valleys."""
    from flops_fit_ray.analysis import json_value, n_opt_to_json
    from flops_fit_ray.report.page import answer

    fit = sweep.fit
    found = {
        "results": len(sweep.results),
        "answer": "" if not sweep.results or sweep.spec.is_one_run else answer(sweep.analysis, sweep.loss_name),
        "laws": [f"{name} = {law.formula}" for name, law in fit.laws],
        "valleys": n_opt_to_json(fit),
        "problem": fit.problem,
        "warnings": list(sweep.warnings),
        "range": list(fit.fitted_range) if fit.params_opt is not None else None,
    }
    return json.dumps(json_value(found)).encode()


def _predict(sweep: Sweep, budget: str) -> bytes:
    from flops_fit_ray.analysis import json_value, predict, prediction_to_json
    from flops_fit_ray.sweep.recommend import recommend

    prediction = predict(sweep.fit, float(budget))
    content = prediction_to_json(prediction, sweep.fit.options.confidence)
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
    """The figure of one experiment, as its curve was when it was last written."""
    import numpy as np

    from flops_fit_ray.ledger import Ledger
    from flops_fit_ray.report.figures import draw_curves, to_svg
    from flops_fit_ray.report.figures.curves import TrainingCurve

    e = next(e for e in sweep.plan.experiments if e.key == key)
    tokens, loss = Ledger(sweep.paths).curve(key)
    good = np.isfinite(loss) & (loss > 0) & (tokens > 0)
    shown = [TrainingCurve(params=float(e.params), flops=tokens[good] * e.flops_per_token, loss=loss[good])]
    return _inked(to_svg(draw_curves(shown if good.any() else [])))


def _report(sweep: Sweep) -> bytes:
    from flops_fit_ray.report.write import drawn_page

    return drawn_page(sweep).encode()


def _summary(sweep: Sweep) -> bytes:
    from flops_fit_ray.analysis import json_value
    from flops_fit_ray.report.page import summary

    return json.dumps(json_value(summary(sweep))).encode()


def _table(sweep: Sweep) -> pd.DataFrame:
    from flops_fit_ray.service.http.redact import redacted

    frame = sweep.to_frame()
    frame["error"] = frame["error"].map(lambda words: redacted(words) if isinstance(words, str) else words)
    return frame


def _csv(sweep: Sweep) -> bytes:
    return bytes(_table(sweep).to_csv(index=False).encode())


def _parquet(sweep: Sweep) -> bytes:
    buffer = io.BytesIO()
    _table(sweep).to_parquet(buffer, index=False)
    return buffer.getvalue()


def _inked(svg: str) -> bytes:
    """In the colour of the page's text, light or dark, though it stands in a picture of its own."""
    from flops_fit_ray.report.figures import for_page

    light, dark = INK
    style = f":root{{color:{light}}}@media (prefers-color-scheme:dark){{:root{{color:{dark}}}}}"
    element = for_page(svg, "f")
    at = element.index(">") + 1
    return f"{element[:at]}<style>{style}</style>{element[at:]}".encode()


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
}
