"""The plan of a sweep that is running: it grows as outcomes arrive. Knows no Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from flops_fit_ray.errors import is_finite_divergence
from flops_fit_ray.ledger import RETRY_ON_NEXT_RUN, Failure, Ledger, observations
from flops_fit_ray.planning import Experiment, Observation, Plan, Planner


class LivePlan:
    """A plan and its known outcomes. Whenever it grows, `on_plan` is told before anything new begins."""

    def __init__(self, planner: Planner, ledger: Ledger, on_plan: Callable[[Plan], None]) -> None:
        self.planner, self.ledger = planner, ledger
        self.observed: dict[str, Observation] = {}
        self.version = 0  # how often it was planned again
        self.plan = planner.plan()
        self._on_plan = on_plan
        self._seen: set[str] = set()
        self._grow({})

    def done(self) -> bool:
        """Return True if every experiment has an outcome, and none will be added."""
        return self.plan.final and all(e.key in self.observed for e in self.plan.experiments)

    def open(self) -> list[Experiment]:
        """Return the experiments without an outcome."""
        return [e for e in self.plan.experiments if e.key not in self.observed]

    def look(self, keys: Iterable[str] | None, running: Mapping[str, Experiment]) -> set[str]:
        """Take in the outcomes of `keys`, of all open experiments by default; plan again where there are new ones.

        Args:
            running: experiments that have begun, by key: they stay as they began.

        Returns:
            The keys of the new outcomes.
        """
        found = self.ledger.observed([e.key for e in self.open()] if keys is None else keys)
        new = found.keys() - self.observed.keys()
        if not new:
            return set()
        self.observed |= found
        self._note_ends(new)
        before = self.plan
        self._plan_again(running)
        if len(self.plan.experiments) > len(before.experiments) or self.plan.final != before.final:
            self._grow(running)
        return new

    def begin_at(self, chosen: Iterable[Experiment]) -> None:
        """Replace experiments by those of the same keys with another start."""
        before, self.plan = self.plan, self.plan.with_experiments({e.key: e for e in chosen})
        if self.plan != before:  # so that the plan on disk says who waits for whom
            self._on_plan(self.plan)

    def _grow(self, running: Mapping[str, Experiment]) -> None:
        """Plan again until what is recorded adds nothing. A failure that may be tried again is put aside first."""
        while fresh := [e.key for e in self.plan.experiments if e.key not in self._seen]:
            outcomes = self.ledger.outcomes(fresh)
            again = [o for o in outcomes if isinstance(o, Failure) and self._tries_again(o)]
            for failure in again:
                self.ledger.retry(failure.key)
            self._seen.update(fresh)
            self.observed |= observations(o for o in outcomes if o not in again)
            self._plan_again(running)
        self._note_ends(self.observed)
        self._on_plan(self.plan)

    def _note_ends(self, keys: Iterable[str]) -> None:
        self.ledger.note_ends({key: "failed" if self.observed[key].loss is None else "completed" for key in keys})

    def _tries_again(self, failure: Failure) -> bool:
        """Return True for what may end otherwise, and a divergence of finite losses where the spec accepts such."""
        if failure.status in RETRY_ON_NEXT_RUN:
            return True
        stops = self.planner.spec.stop_diverged
        return not stops and failure.status == "diverged" and is_finite_divergence(failure.error)

    def _plan_again(self, running: Mapping[str, Experiment]) -> None:
        if self.plan.final:
            return
        self.version += 1
        self.plan = self.planner.plan(self.observed).with_experiments(running)
