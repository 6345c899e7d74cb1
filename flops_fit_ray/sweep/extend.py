"""A sweep with more in it: budgets, sizes, seeds. What was planned before keeps its keys."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flops_fit_ray import formatting as fmt
from flops_fit_ray.errors import SpecError
from flops_fit_ray.spec import Budget, SizeValue, SweepSpec, make_spec
from flops_fit_ray.sweep.stopping import with_budgets

SOURCE = "extend"


def extended(
    spec: SweepSpec, *, budgets: Sequence[float] = (), sizes: Sequence[int] = (), seeds: int | None = None
) -> SweepSpec:
    """The spec with further budgets, sizes (of the new budgets, else of all) and seeds.

    Raises:
        SpecError: an addition has no meaning for this sweep.
    """
    faults = list(_faults(spec, budgets, sizes))
    if faults:
        raise SpecError(SOURCE, faults)
    own: list[SizeValue] | None = list(sizes) if sizes and budgets else None
    wider = with_budgets(spec, [Budget(flops=c, sizes=own) for c in budgets])
    if sizes and not budgets:
        wider = _with_sizes(wider, sizes)
    if seeds is not None:
        wider = wider.model_copy(update={"grid": wider.grid.model_copy(update={"seeds": seeds})})
    return make_spec(wider.model_dump(mode="json"), SOURCE)  # checked again as a whole


def _faults(spec: SweepSpec, budgets: Sequence[float], sizes: Sequence[int]) -> list[str]:
    faults = []
    known, smallest = {b.flops for b in spec.budgets}, spec.budgets[0].flops
    for c in budgets:
        if not (math.isfinite(c) and c > 0):
            faults.append(f"--budget: must be a positive, finite number (got {c:g})")
        elif c in known:
            faults.append(f"--budget: C = {fmt.flops(c)} is in this sweep already")
        elif c < smallest and spec.is_adaptive:
            faults.append(
                f"--budget: C = {fmt.flops(c)} is below the smallest, {fmt.flops(smallest)}, where the learning rate "
                "was measured and the first valley lies; that is another sweep: take another --output"
            )
    if sizes and spec.is_adaptive:
        faults.append("--size: an adaptive grid chooses its sizes itself; add budgets or seeds")
    if budgets and not sizes and not spec.is_adaptive and spec.model.sizes == "auto":
        faults.append("--budget: this sweep lists the sizes of each budget; give those of the new one with --size")
    return faults


def _with_sizes(spec: SweepSpec, sizes: Sequence[int]) -> SweepSpec:
    """These sizes in every list of sizes that lacks them."""

    def more(listed: list[SizeValue]) -> list[SizeValue]:
        return [*listed, *(s for s in sizes if s not in listed)]

    budgets = [b if b.sizes is None else b.model_copy(update={"sizes": more(b.sizes)}) for b in spec.budgets]
    model = spec.model
    if isinstance(model.sizes, list):
        model = model.model_copy(update={"sizes": more(model.sizes)})
    return spec.model_copy(update={"budgets": budgets, "model": model})
