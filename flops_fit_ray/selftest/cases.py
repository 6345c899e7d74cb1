"""The self-test: real sweeps of a task with a known exponent, by the same code as any sweep, Ray included."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ALPHAS = (0.5, 0.75)  # N_opt ~ C^0.5 and C^0.4
BUDGETS = (4e5 / 3, 4.2e5, 4e6 / 3, 12.8e6 / 3)  # a sample costs 4·N: one layer, and no gradient of its inputs
SAMPLES = 40_000


@dataclass(frozen=True, kw_only=True)
class Case:
    """One sweep, compared with the known exponent."""

    alpha: float
    truth: float
    exponent: float | None
    exponent_ci95: tuple[float, float] | None
    experiments: int
    seconds: float

    @property
    def passed(self) -> bool:
        """True if the interval contains the known exponent."""
        return self.exponent_ci95 is not None and self.exponent_ci95[0] <= self.truth <= self.exponent_ci95[1]

    def to_json(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {**asdict(self), "passed": self.passed}


def run_cases(address: str | None, say: Callable[[str], None], alphas: Sequence[float] = ALPHAS) -> tuple[Case, ...]:
    """Run all cases one after the other in a temporary directory.

    Raises:
        ResourceError: the cluster cannot be used.
    """
    from flops_fit_ray.engine.cluster import ray_session

    with ray_session(address), tempfile.TemporaryDirectory(prefix="flops-fit-") as directory:
        return tuple(_case(alpha, Path(directory), say) for alpha in alphas)


def _case(alpha: float, root: Path, say: Callable[[str], None]) -> Case:
    from flops_fit_ray.api import find_optimal
    from flops_fit_ray.selftest.task import TruncatedRegression, reference_data, reference_risk

    started = time.perf_counter()
    truth = 1 / (1 + 2 * alpha)
    result = find_optimal(
        TruncatedRegression,
        "features",
        {"alpha": alpha},
        dataset=reference_data(SAMPLES, alpha),
        loss_fn=reference_risk,
        compute_budgets=list(BUDGETS),
        output_dir=root / f"alpha-{alpha:g}",
        batch_size=8,
        optimizer="sgd",
        lr=0.15,
        grad_clip=None,
        warmup_tokens=0,
        eval_samples=8,
        grid={"tokens_per_param": 50 / 3, "seeds": 0},
        resources_per_trial={"cpu": 1},
        quiet=True,
    )
    law = result.fit.methods["valley"].params_opt
    ci95 = None if law is None else law.exponent_interval(0.95)
    case = Case(
        alpha=alpha,
        truth=truth,
        exponent=None if law is None else law.exponent,
        exponent_ci95=None if ci95 is None else (ci95.low, ci95.high),
        experiments=len(result.plan.experiments),
        seconds=time.perf_counter() - started,
    )
    shown = "none" if law is None else f"{law.exponent:.3f}"
    interval = "" if ci95 is None else f" [{ci95.low:.3f}, {ci95.high:.3f}]"
    say(
        f"{'PASS' if case.passed else 'FAIL'}  N_opt ~ C^{truth:.3g}: found {shown}{interval} from {case.experiments} "
        f"experiments in {case.seconds:.0f} s"
    )
    return case
