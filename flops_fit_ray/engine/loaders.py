"""Loaders of the user's parts in workers: by import or as pickled objects, with data shared per node.

Datasets of tensors go into Ray's object store, where all workers of a node read the same memory. Token files are read
from disk by every worker, and any other dataset is loaded by every worker.
"""

from __future__ import annotations

import io
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from flops_fit_ray.engine._references import import_fault
from flops_fit_ray.engine._surroundings import Surroundings, surroundings_of_driver
from flops_fit_ray.engine._torch_settings import changed_words
from flops_fit_ray.engine.jobs import upload_of
from flops_fit_ray.engine.planned_code import PlannedCode
from flops_fit_ray.engine.resources import live_nodes
from flops_fit_ray.errors import SpecError
from flops_fit_ray.storage.storage_path import expanded
from flops_fit_ray.training.user.user_code import NO_ARGUMENTS

if TYPE_CHECKING:
    from flops_fit_ray.planning import DataProbe, FirstLoss, LossFacts, Measurements
    from flops_fit_ray.spec import SweepSpec
    from flops_fit_ray.training.data import PreparedData
    from flops_fit_ray.training.data.packed import PackedData
    from flops_fit_ray.training.user.parts import UserParts

MIN_SHARED_BYTES = 32 * 2**20  # below this, a copy per worker is cheaper than sharing
MAX_STORE_SHARE = 0.5  # of a node's object store
LARGE_BYTES = 2**20  # of an array; smaller ones are pickled as they are


class Loader(Protocol):
    """Loads the user's parts in a worker."""

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Return the user's parts, with `prepared` in place of their own data."""


@dataclass(frozen=True)
class CodeLoader:
    """Imports what a spec names. A relative `base` is resolved in the working directory of the Ray job."""

    here: Surroundings = field(default_factory=surroundings_of_driver, kw_only=True)  # first: unpickled before the rest
    spec: SweepSpec
    base: Path
    code: PlannedCode | None = field(default=None, kw_only=True)

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Import the user's parts.

        Raises:
            NodeUnfitError: this machine has other code than the plan.
        """
        from flops_fit_ray.training.user.parts import load_user_parts

        if self.code is not None:
            self.code.refuse_other()
        return load_user_parts(self.spec, self.base if self.base.is_absolute() else Path.cwd() / self.base, prepared)


@dataclass(frozen=True)
class ObjectLoader:
    """Carries the user's objects, pickled."""

    here: Surroundings = field(default_factory=surroundings_of_driver, kw_only=True)  # as above
    user: UserParts
    code: PlannedCode | None = field(default=None, kw_only=True)

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Return the objects.

        Raises:
            NodeUnfitError: this machine has other code than the plan.
        """
        if self.code is not None:
            self.code.refuse_other()
        if prepared is None:
            return self.user
        return replace(self.user, train_data=prepared.train, eval_data=prepared.held_out)

    def without_data(self) -> ObjectLoader:
        """Return a loader without the data, to be called with `prepared` only."""
        nothing: Any = None
        return replace(self, user=replace(self.user, train_data=nothing, eval_data=nothing))


@dataclass(frozen=True)
class SharedLoader:
    """A loader with its data in Ray's object store."""

    loader: Loader
    data: Any  # ObjectRef of PackedData

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Load all but the data, and map the data from the object store."""
        import ray

        from flops_fit_ray.training.data.packed import unpack_data

        return self.loader(unpack_data(ray.get(self.data)))


@dataclass(frozen=True)
class ComparingLoader:
    """A loader that compares what it loads with the data, the model and the loss of the plan."""

    loader: Loader
    planned: DataProbe | None
    first_loss: FirstLoss | None
    seconds: float  # to wait for samples

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Load the user's parts.

        Raises:
            DataDiffersError: this process has other data, or makes another model or loss.
        """
        from flops_fit_ray.training.data import compare_data
        from flops_fit_ray.training.user.first_loss import compare_first_loss

        user = self.loader(prepared)
        if self.planned is not None:
            compare_data(user.prepared_data, self.planned, self.seconds)
        if self.first_loss is not None:
            compare_first_loss(user, self.first_loss)
        return user


def comparing_loader(loader: Loader, spec: SweepSpec, measurements: Measurements) -> Loader:
    """Return a loader for the processes that train: each compares its data and model with those of the plan once.

    It adds what planning has learnt about the losses.
    """
    informed = InformedLoader(loader, measurements.loss)
    return ComparingLoader(informed, measurements.probe, measurements.first_loss, spec.data.timeout_seconds)


@dataclass(frozen=True)
class InformedLoader:
    """A loader that adds what planning has learnt about the losses, so that all workers go by the same."""

    loader: Loader
    facts: LossFacts

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Load the user's parts, and add the facts."""
        return replace(self.loader(prepared), loss_facts=self.facts)


def code_loader(spec: SweepSpec, base: Path) -> CodeLoader:
    """Create a loader that works on any node, where the directory of a job's upload may have another name."""
    upload = upload_of(base)
    named = {name: getattr(spec.data, name) for name in ("train", "eval")}
    files = {name: expanded(path, f"data.{name}") for name, path in named.items() if path and path.endswith(".bin")}
    if files:  # `~` and variables as they are here; of a worker they may be others
        spec = spec.model_copy(update={"data": spec.data.model_copy(update=files)})
    # The arguments of our own command are nothing to the user's code
    here = replace(surroundings_of_driver(), arguments=(str(base), NO_ARGUMENTS))
    return CodeLoader(spec, base if upload is None else base.relative_to(upload), here=here)


def with_planned_code(loader: Loader, base: Path | None) -> tuple[Loader, PlannedCode | None]:
    """Return a loader that refuses other code than that of this process, and this code; None where it is not known.

    Args:
        base: the directory that a spec's targets were imported from.
    """
    from flops_fit_ray.training.user.source_code import code_of_objects, code_of_spec

    if isinstance(loader, CodeLoader) and base is not None:
        code = PlannedCode(code_of_spec(loader.spec, base), loader.base)
        return replace(loader, code=code), code
    if isinstance(loader, ObjectLoader):
        code = PlannedCode(code_of_objects(loader.user), None)
        return replace(loader, code=code), code
    return loader, None


def refuse_unpicklable(loader: Loader) -> None:
    """Check that the user's objects, if a loader carries them, can be sent to a worker.

    Raises:
        SpecError: an object cannot be pickled, or a worker would not import its module; the fault names it.
    """
    if not isinstance(loader, ObjectLoader):
        return
    user = loader.user
    for name in (f.name for f in fields(user)):
        named: set[str] = set()
        try:
            _try_pickling(getattr(user, name), named)
        except Exception as e:
            raise SpecError(
                "find_optimal",
                [
                    f"{name} cannot be sent to a worker: {type(e).__name__}: {e}; open files, locks and "
                    "connections when they are first used, not in a constructor"
                ],
            ) from e
        fault = next(filter(None, map(import_fault, sorted(named))), None)
        if fault is not None:
            raise SpecError("find_optimal", [f"{name} cannot be sent to a worker: {fault}"])


def settings_words(loader: Loader) -> str:
    """Return the settings of torch that workers take over from this program, where they are not torch's defaults."""
    return changed_words(loader.here.torch) if isinstance(loader, ObjectLoader | CodeLoader) else ""


def _try_pickling(value: Any, named: set[str]) -> int:
    """Pickle a value and keep nothing of it; large arrays and tensors, which can be, are left out.

    Args:
        named: gets the modules of all that is pickled by its name.

    Returns:
        The bytes that were written.
    """
    from ray import cloudpickle

    untyped: Any = cloudpickle.CloudPickler

    class Pickler(untyped):  # type: ignore[misc] # Ray leaves it untyped
        def reducer_override(self, obj: Any) -> Any:
            kind = f"{type(obj).__module__}.{type(obj).__name__}"
            if kind in ("numpy.ndarray", "torch.Tensor") and obj.nbytes > LARGE_BYTES and obj.dtype != object:
                return bytes, ()
            reduced = super().reducer_override(obj)
            if reduced is NotImplemented and isinstance(obj, type | FunctionType | ModuleType):
                named.add(str(obj.__name__ if isinstance(obj, ModuleType) else obj.__module__))
            return reduced

    class Nowhere(io.RawIOBase):
        written = 0

        def write(self, part: Any, /) -> int:
            size = memoryview(part).nbytes
            self.written += size
            return size

    nowhere = Nowhere()
    untyped_pickler: Any = Pickler
    untyped_pickler(nowhere, protocol=5).dump(value)
    return nowhere.written


def share_data(loader: Loader, tensor_bytes: int) -> Loader:
    """Return a loader that shares its data per node, if that is possible and pays off. Ray is running.

    Args:
        tensor_bytes: of datasets of tensors; 0 for any other.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if tensor_bytes < MIN_SHARED_BYTES or tensor_bytes > MAX_STORE_SHARE * _smallest_store():
        return loader
    if isinstance(loader, ObjectLoader):
        return SharedLoader(loader.without_data(), ray.put(_packed(loader)))
    # On the driver's own node, which has the code and the data of the plan: others may have joined without
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(_packed).options(num_cpus=0, scheduling_strategy=here)
    return SharedLoader(loader, task.remote(loader))


def _packed(loader: Loader) -> PackedData:
    from flops_fit_ray.training.data.packed import pack_data

    packed = pack_data(loader().prepared_data)
    assert packed is not None  # tensor_bytes > 0 means that it can be packed
    return packed


def _smallest_store() -> float:
    return min(node.get("object_store_memory", 0.0) for node in live_nodes())
