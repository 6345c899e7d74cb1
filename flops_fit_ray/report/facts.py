"""Facts that every form of the report shows: cost, advice for failures, provenance."""

from __future__ import annotations

from dataclasses import dataclass

from flops_fit_ray import formatting as fmt
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.ledger.hardware import Cluster
from flops_fit_ray.planning import DataFacts
from flops_fit_ray.sweep.directory import Sweep

ADVICE = {
    "diverged": "Lower train.lr at this size, or warm up for longer; it is not retried with the same settings. "
    "If its loss is finite and this is no divergence, stop_diverged: false goes on with it.",
    "out_of_memory": "The micro-batch was halved as far as possible: use precision: bf16, fewer experiments per GPU "
    "(resources_per_trial), or a larger GPU.",
    "stalled": "The traceback shows where it hangs; raise data.timeout_seconds if data or code only are slow.",
    "failed": "The traceback shows where in your code; fix it, then the same command tries it again.",
    "infrastructure": "Its worker or node died repeatedly without progress: check the node's log and memory; the same "
    "command tries it again.",
}


@dataclass(frozen=True, kw_only=True)
class Cost:
    """A line of the cost table."""

    what: str
    planned: str
    real: str


def costs(sweep: Sweep) -> list[Cost]:
    """Return the planned and the real number of experiments, FLOPs and hours."""
    plan, price = sweep.plan, sweep.plan.price
    planned = None if price is None else price.device_seconds
    follow = f", about {len(plan.forecast)} more expected" if plan.forecast else ""
    return [
        Cost(what="experiments", planned=f"{len(plan.experiments)}{follow}", real=f"{len(sweep.results)} completed"),
        Cost(what="FLOPs", planned=fmt.flops(plan.flops), real=fmt.flops(sweep.flops_spent)),
        Cost(
            what="training, sum over devices",
            planned="not known (`check` measures it)" if planned is None else fmt.duration(planned),
            real=fmt.duration(sweep.device_seconds),
        ),
    ]


def provenance(sweep: Sweep) -> list[tuple[str, str]]:
    """Return versions, devices, data and settings behind the results, by name."""
    devices = sorted({f"{r.device} ({r.host})" for r in sweep.results})
    versions = sorted({", ".join(f"{k} {v}" for k, v in r.versions.items()) for r in sweep.results})
    size, data = sweep.plan.measurements.sizes[0], sweep.plan.measurements.data
    return [
        ("versions", "; ".join(versions) or "no results yet"),
        ("devices", "; ".join(devices) or "no results yet"),
        ("cluster", _cluster(Ledger(sweep.paths).cluster())),
        ("seed", str(sweep.spec.train.seed)),
        ("N is", size.params_source),
        ("FLOPs are", f"{size.flops_source}, forward and backward"),
        ("one token is", data.token_unit),
        ("training data", f"{_length(data)}, {data.fingerprint}"),
        ("held-out data", f"{f'{data.eval_samples:,} samples of ' if data.eval_samples else ''}{data.eval_source}"),
        ("precision", ", ".join(sorted({f"{r.precision}, {r.attention} attention" for r in sweep.results})) or "-"),
        ("MFU is of", "; ".join(sorted({r.peak_source for r in sweep.results})) or "-"),
        ("results", f"sha256 {sweep.results_sha256}"),
    ]


def _cluster(cluster: Cluster | None) -> str:
    if cluster is None:
        return "not recorded"
    gpus = [gpu.name for machine in cluster.machines for gpu in machine.gpus]
    named = ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    libraries = {library for machine in cluster.machines for library in machine.libraries}
    parts = [
        fmt.counted(len(cluster.machines), "node"),
        named,
        *sorted(libraries),
        f"{fmt.counted(cluster.slots, 'experiment')} at a time",
    ]
    return ", ".join(part for part in parts if part)


def _length(data: DataFacts) -> str:
    if data.train_samples is None:
        return "a stream of unknown length"
    return f"{data.train_samples:,} samples, {data.tokens_per_epoch:,} tokens"
