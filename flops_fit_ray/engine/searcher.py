"""Tune's view of the dispatcher: an experiment for every free slot, and patience while all of them wait."""

from __future__ import annotations

from typing import Any

from ray.tune.search import Searcher

from flops_fit_ray.engine.dispatch import Dispatcher
from flops_fit_ray.engine.trainable import STORAGE_ERROR


class ExperimentSearcher(Searcher):
    """Suggests what the dispatcher hands out. Tune's snapshots of it are empty: the ledger holds what matters."""

    def __init__(self, dispatcher: Dispatcher | None = None) -> None:
        super().__init__()
        self._dispatcher = dispatcher
        self._keys: dict[str, str] = {}  # by trial

    def __reduce__(self) -> tuple[Any, ...]:
        return ExperimentSearcher, ()

    def suggest(self, trial_id: str) -> Any:
        """The configuration of a trial; None where it must wait."""
        assert self._dispatcher is not None
        experiment = self._dispatcher.next()
        if experiment is not None:
            self._keys[trial_id] = experiment.key
            return {"key": experiment.key}
        return Searcher.FINISHED if self._dispatcher.finished() else None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """A slot is free."""
        assert self._dispatcher is not None
        key = self._keys.pop(trial_id, None)
        if key is not None:
            self._dispatcher.ended(key, died=error)
        words = (result or {}).get(STORAGE_ERROR)
        if words:
            self._dispatcher.stop_for(str(words))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the plan follows from the ledger."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing."""

    def get_state(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Nothing."""
