"""Tune's view of the dispatcher: an experiment for every free slot, None while all wait, and how each trial ended."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from ray.exceptions import RayError
from ray.tune.experiment import Trial
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from flops_fit_ray.engine._crash import fetch_stacks
from flops_fit_ray.engine._dispatch import Dispatcher
from flops_fit_ray.engine._trainable import ENDS_SWEEP, UNFIT_FAULT, UNFIT_NODE
from flops_fit_ray.errors import StorageError

_errors: dict[str, str] = {}  # Ray's words on trials that have just ended, by trial; between the two classes below


class ErrorReader(FIFOScheduler):
    """Starts trials in the order in which they come, as Tune does by default, and reads why one died.

    A scheduler is the only one that Tune shows the trial itself to, just before the searcher hears of its end.
    """

    def on_trial_error(self, tune_controller: Any, trial: Trial) -> None:
        """Keep Ray's words for the searcher."""
        with contextlib.suppress(OSError, TypeError):  # without a file there are none
            text = Path(trial.error_file).read_text(errors="replace")
            _errors[trial.trial_id] = text.rpartition("Failure # ")[2].partition("\n")[2].strip()


class ExperimentSearcher(Searcher):
    """Suggests the experiments of a dispatcher. Its state maps trials to experiments; the ledger has the rest.

    Tune pickles searchers and creates another one to restore: both use the dispatcher of the enclosing `serving`.
    """

    _served: ClassVar[Dispatcher | None] = None

    def __init__(self) -> None:
        super().__init__()
        assert ExperimentSearcher._served is not None
        self._dispatcher = ExperimentSearcher._served
        self._keys: dict[str, str] = {}  # by trial
        _errors.clear()

    @staticmethod
    @contextlib.contextmanager
    def serving(dispatcher: Dispatcher) -> Iterator[None]:
        """Make searchers that are constructed in the block serve this dispatcher."""
        before, ExperimentSearcher._served = ExperimentSearcher._served, dispatcher
        try:
            yield
        finally:
            ExperimentSearcher._served = before

    def __reduce__(self) -> tuple[Any, ...]:
        return ExperimentSearcher, ()

    def suggest(self, trial_id: str) -> Any:
        """Return the configuration of a trial; None while it must wait."""
        experiment = self._dispatcher.next() if self._dispatcher.has_room else None
        if experiment is not None:
            self._keys[trial_id] = experiment.key
            config: dict[str, Any] = {"key": experiment.key}  # Tune copies it again and again
            if self._dispatcher.slots.shares:
                config["share"] = self._dispatcher.slots.share(experiment.params)
            if self._dispatcher.left_out:
                config["avoid"] = sorted(self._dispatcher.left_out)
            return config
        return Searcher.FINISHED if self._dispatcher.finished() else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell the dispatcher that a slot is free."""
        for name, kind in ENDS_SWEEP.items():
            message = (result or {}).get(name)
            if message:
                self._dispatcher.stop_for(kind(str(message)))
        node, fault = (str((result or {}).get(name) or "") for name in (UNFIT_NODE, UNFIT_FAULT))
        if node:
            self._dispatcher.leave_out(node, fault)
        key = self._keys.pop(trial_id, None)
        if key is not None:
            if error:
                with contextlib.suppress(OSError, StorageError, RayError):  # then the cause is not known
                    fetch_stacks(self._dispatcher.paths, key, self._dispatcher.slots.workers)
            self._dispatcher.ended(key, died=error, said=_errors.pop(trial_id, ""), refused=bool(node))

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Tell Tune that the dispatcher limits how many run at a time: nodes come and go."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Write the experiment of each trial."""
        Path(checkpoint_path).write_text(json.dumps(self._keys))

    def restore(self, checkpoint_path: str) -> None:
        """Take over the trials that Tune is about to resume, with the experiments that they run."""
        self._keys = dict(json.loads(Path(checkpoint_path).read_text()))
        self._dispatcher.adopt(self._keys.values())

    def get_state(self) -> dict[str, Any]:
        """Return no state: `save` writes it."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Ignore the state: `restore` reads it."""
