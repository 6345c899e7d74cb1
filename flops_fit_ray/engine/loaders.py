"""How workers come by the user's parts: by their names, or as objects; and by data that lie once per node.

Data made of tensors are put into Ray's object store, where every worker of a node reads the same memory. Token files
are read from disk, and need none of this; what else a dataset may be is loaded by every worker for itself.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from flops_fit_ray.engine.jobs import upload_of
from flops_fit_ray.errors import SpecError

if TYPE_CHECKING:
    from flops_fit_ray.spec import SweepSpec
    from flops_fit_ray.training.data import PreparedData
    from flops_fit_ray.training.data.packed import PackedData
    from flops_fit_ray.training.user.parts import UserParts

WORTH_BYTES = 32 * 2**20  # below that, a copy for each worker costs less than the way to a shared one
MAX_OF_STORE = 0.5  # of a node's object store


class Loader(Protocol):
    """What loads the user's parts in a worker."""

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Load them; with `prepared` everything but the data."""


@dataclass(frozen=True)
class CodeLoader:
    """Loads what a spec names from `base`; one that is relative lies in the upload of a job, wherever that is."""

    spec: SweepSpec
    base: Path

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Import and make them."""
        from flops_fit_ray.training.user.parts import load_user_parts

        return load_user_parts(self.spec, self.base if self.base.is_absolute() else Path.cwd() / self.base, prepared)


@dataclass(frozen=True)
class ObjectLoader:
    """Carries the user's objects themselves."""

    user: UserParts

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """The objects."""
        if prepared is None:
            return self.user
        return replace(self.user, train_data=prepared.train, eval_data=prepared.held_out)

    def without_data(self) -> ObjectLoader:
        """The same without the weight of the data, to be called with `prepared` alone."""
        nothing: Any = None
        return ObjectLoader(replace(self.user, train_data=nothing, eval_data=nothing))


@dataclass(frozen=True)
class SharedLoader:
    """A loader whose data lie in the object store."""

    loader: Loader
    data: Any  # a reference to what `_packed` gives

    def __call__(self, prepared: PreparedData | None = None) -> UserParts:
        """Load the rest, and take the data from where they lie."""
        import ray

        from flops_fit_ray.training.data.packed import unpack_data

        return self.loader(unpack_data(ray.get(self.data)))


def code_loader(spec: SweepSpec, base: Path) -> CodeLoader:
    """What loads the spec's model and data from `base` on any node, where a job's upload may have another name."""
    upload = upload_of(base)
    return CodeLoader(spec, base if upload is None else base.relative_to(upload))


def refuse_unpicklable(loader: Loader) -> None:
    """Make sure that the user's objects, where a loader carries them, can be sent to a worker.

    Raises:
        SpecError: an object cannot be pickled; it is named.
    """
    if not isinstance(loader, ObjectLoader):
        return
    from ray import cloudpickle

    user = loader.user
    for name in (field.name for field in dataclasses.fields(user)):
        try:
            cloudpickle.dumps(getattr(user, name))  # type: ignore[no-untyped-call] # Ray leaves it untyped
        except Exception as e:
            raise SpecError(
                "find_optimal",
                [
                    f"{name} cannot be sent to a worker: {type(e).__name__}: {e}; open files, locks and "
                    "connections inside the model or the dataset, not in its constructor"
                ],
            ) from e


def sharing(loader: Loader, tensor_bytes: int) -> Loader:
    """The same loader with its data once per node, where that can be done and is worth it. Ray is running.

    Args:
        tensor_bytes: of data that are made of tensors; 0 where they are not.
    """
    import ray

    if tensor_bytes < WORTH_BYTES or tensor_bytes > MAX_OF_STORE * _smallest_store():
        return loader
    if isinstance(loader, ObjectLoader):
        return SharedLoader(loader.without_data(), ray.put(_packed(loader)))
    task = ray.remote(_packed).options(num_cpus=0)
    return SharedLoader(loader, task.remote(loader))  # which Ray runs again where the node is lost


def _packed(loader: Loader) -> PackedData:
    from flops_fit_ray.training.data.packed import pack_data

    packed = pack_data(loader().prepared_data)
    assert packed is not None  # the measurements say so
    return packed


def _smallest_store() -> float:
    import ray

    nodes = ray.nodes()  # type: ignore[no-untyped-call] # Ray leaves it untyped
    return min(float(node["Resources"].get("object_store_memory", 0.0)) for node in nodes if node["Alive"])
