"""F11, F19: what the user's own code does wrong ends one experiment, in one attempt, with its traceback."""

import importlib.util
import socket
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset

from flops_fit_ray import find_optimal
from flops_fit_ray.engine._surroundings import SearchPath, search_path
from flops_fit_ray.engine._termination import WorkerTerminated
from flops_fit_ray.engine._trainable import TrialContext, run_experiment
from flops_fit_ray.engine.loaders import ObjectLoader, _try_pickling, refuse_unpicklable
from flops_fit_ray.engine.resources import Slots
from flops_fit_ray.errors import SpecError
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.training.user.parts import UserParts
from flops_fit_ray.training.user.user_code import describe_error
from tests.parts import Mlp, Pairs, planned, regression, spec_of, user_parts_of
from tests.sweeps import grow_sweep


class Late(Mlp):
    """Good while it is planned, and for the first steps."""

    error: BaseException = RuntimeError("mine")
    where = ""

    def __init__(self, width: int, inputs: int = 8, dropout: float = 0.1) -> None:
        super().__init__(width, inputs, dropout)
        self.calls = 0
        if Late.where == "constructor":
            raise Late.error

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if Late.where == "forward" and self.calls > 3:
            raise Late.error
        return super().forward(x)


class LatePairs(Pairs):
    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if Late.where == "dataset":
            raise Late.error
        return super().__getitem__(index)


def late_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    if Late.where == "loss":
        raise Late.error
    return (outputs - targets).pow(2).mean()


# Where it is raised, what is raised, what is recorded, and the user's function that the traceback ends in
CASES = [
    ("constructor", ValueError("a bad width"), "ValueError: a bad width", "__init__"),
    ("forward", RuntimeError("shapes differ"), "RuntimeError: shapes differ", "forward"),
    ("loss", ZeroDivisionError("nothing counts"), "ZeroDivisionError: nothing counts", "late_loss"),
    ("dataset", KeyError("text"), "KeyError: 'text'", "__getitem__"),
    ("forward", SystemExit(3), describe_error(SystemExit(3)), "forward"),
    ("forward", KeyboardInterrupt(), "KeyboardInterrupt: ", "forward"),
    ("load", ImportError("no module named 'mine'"), "ImportError: no module named 'mine'", "load"),
]


@pytest.mark.parametrize(
    ("where", "error", "words", "function"), CASES, ids=[f"{w}-{type(e).__name__}" for w, e, *_ in CASES]
)
def test_f11_an_error_of_the_users_is_one_attempt_and_its_traceback(
    where: str, error: BaseException, words: str, function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_of()
    user = replace(user_parts_of(spec, model=Late, train=LatePairs(*regression().tensors)), loss=late_loss)
    experiments = planned(spec, user).experiments
    job = TrialContext(
        root=tmp_path,
        load_user_parts=lambda: user,
        spec=spec,
        eval_samples=100,
        slots=Slots(resources={"cpu": 1}, count=1),
    )
    ledger = Ledger(SweepPaths(tmp_path))
    monkeypatch.setattr(Late, "where", where)
    monkeypatch.setattr(Late, "error", error)

    def load() -> UserParts:
        if where == "load":
            raise error
        return user

    assert run_experiment(job, ledger, load, experiments[0]) == "failed"
    failure = ledger.failure(experiments[0].key)
    assert failure is not None and failure.status == "failed" and failure.error == words
    assert (failure.attempts, failure.deaths) == (1, 0)
    last_frame = [line for line in failure.traceback.splitlines() if line.startswith("  File ")][-1]
    assert Path(__file__).name in last_frame and last_frame.endswith(f"in {function}")
    assert run_experiment(job, ledger, load, experiments[0]) == "failed"  # never again by itself
    assert ledger.num_attempts(experiments[0].key) == 1
    monkeypatch.setattr(Late, "where", "")
    assert run_experiment(job, ledger, lambda: user, experiments[1]) == "completed"  # the same process goes on


def test_the_end_of_the_process_is_no_error_of_the_users(tmp_path: Path) -> None:
    spec = spec_of()
    user = user_parts_of(spec)
    slots = Slots(resources={"cpu": 1}, count=1)
    job = TrialContext(root=tmp_path, load_user_parts=lambda: user, spec=spec, eval_samples=100, slots=slots)
    ledger, experiment = Ledger(SweepPaths(tmp_path)), planned(spec, user).experiments[0]

    def load() -> UserParts:
        raise WorkerTerminated(143)  # as SIGTERM raises it

    with pytest.raises(SystemExit):
        run_experiment(job, ledger, load, experiment)
    assert ledger.outcome(experiment.key) is None


def _generator() -> Any:
    yield 1


@pytest.mark.parametrize(
    "make",
    [
        lambda tmp: (tmp / "f").open("w"),
        lambda tmp: threading.Lock(),
        lambda tmp: _generator(),
        lambda tmp: threading.local(),
        lambda tmp: socket.socket(),
    ],
    ids=["open file", "lock", "generator", "thread-local", "socket"],
)
def test_f19_what_cannot_travel_is_named(make: Callable[[Path], Any], tmp_path: Path) -> None:
    thing = make(tmp_path)

    def loss(outputs: Tensor, targets: Tensor) -> Tensor:
        assert thing is not None
        return (outputs - targets).pow(2).mean()

    user = replace(user_parts_of(spec_of()), loss=loss)
    with pytest.raises(
        SpecError,
        match="loss cannot be sent to a worker: .*; open files, locks and connections when they are first used",
    ):
        refuse_unpicklable(ObjectLoader(user))
    with pytest.raises(SpecError, match="loss cannot be sent"):
        find_optimal(Mlp, "width", dataset=regression(), loss_fn=loss, compute_budgets=[1e5, 2e5], sizes=[4, 8, 16],
                     batch_size=8, lr=1e-2, output_dir=tmp_path / "out")  # fmt: skip
    assert not (tmp_path / "out").exists()
    if hasattr(thing, "close"):
        thing.close()


def test_large_data_are_not_copied_to_see_whether_they_travel() -> None:
    class Own(Dataset[Tensor]):
        """A dataset that cannot be shared, with 8 MB in a tensor and an array, of which one in a list."""

        def __init__(self) -> None:
            self.rows, self.more = torch.zeros(2**20), [np.zeros(2**19)]

        def __getitem__(self, index: int) -> Tensor:
            return self.rows[index]

    assert 100 < _try_pickling(Own(), set()) < 10_000
    assert _try_pickling(torch.zeros(2**10), set()) > 2**12  # small ones are pickled
    user = replace(user_parts_of(spec_of()), train_data=TensorDataset(torch.zeros(2**20)))
    refuse_unpicklable(ObjectLoader(user))
    with pytest.raises(TypeError, match="generator"):
        _try_pickling([np.array([_generator()] * 2**18, dtype=object)], set())


SCALE = """
def scaled(outputs, targets):
    return (outputs - targets).pow(2).mean() * FACTOR
"""


def test_what_a_worker_would_not_import_as_it_is_here_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Modules that were loaded from their files: under another name, of a name that another file has, and as it is."""
    for directory, factor in (("one", 1), ("two", 2)):
        (tmp_path / directory).mkdir()
        (tmp_path / directory / "scale.py").write_text(SCALE.replace("FACTOR", str(factor)))

    def loaded(name: str, directory: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, tmp_path / directory / "scale.py")
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, name, module)
        spec.loader.exec_module(module)
        return module

    def refuse(loss: Any) -> None:
        refuse_unpicklable(ObjectLoader(replace(user_parts_of(spec_of()), loss=loss)))

    plugin = loaded("plugin_scale", "one")
    there = f"{tmp_path / 'one' / 'scale.py'}, and by this name no other process finds it; import it by its name"
    for loss in (plugin.scaled, lambda a, b: plugin.scaled(a, b)):
        with pytest.raises(SpecError, match=f"loss cannot be sent to a worker: its module plugin_scale .* {there}"):
            refuse(loss)
    monkeypatch.syspath_prepend(tmp_path / "two")
    module = loaded("scale", "one")
    with pytest.raises(SpecError, match=f"a worker would load {tmp_path / 'two' / 'scale.py'} instead"):
        refuse(module.scaled)
    refuse(loaded("scale", "two").scaled)


def test_what_a_program_puts_on_its_search_path_keeps_its_place() -> None:
    """What stands before Python's own library hides it, also in a worker; what stands behind hides nothing."""
    library, site = (sysconfig.get_paths()[name] for name in ("stdlib", "purelib"))
    with tempfile.TemporaryDirectory() as first, tempfile.TemporaryDirectory() as last:
        found = search_path([first, library, site, last, "/nowhere"])
        assert found == SearchPath((first,), (last, "/nowhere"))
        assert found.taken_over(["/ray", last, library, site]) == [first, "/ray", library, site, last]
    in_job = search_path(["/nodes/session/working_dir_files/_ray_pkg_1/lib", library])
    assert in_job == SearchPath(("lib",))  # in an upload, whose place each node chooses


def test_a_lambda_travels() -> None:
    user = replace(user_parts_of(spec_of()), loss=lambda a, b: (a - b).pow(2).mean())
    refuse_unpicklable(ObjectLoader(user))
    assert ObjectLoader(user)().loss(torch.ones(2), torch.zeros(2)) == 1


class Overflowing(Mlp):
    """A model whose weights of one size overflow."""

    def __init__(self, width: int) -> None:
        super().__init__(width)
        if width == 8:
            with torch.no_grad():
                for p in self.parameters():
                    p.fill_(1e30)


def test_a_size_whose_losses_are_not_finite_leaves_the_others_their_sweep(tmp_path: Path) -> None:
    spec = spec_of()
    sweep = grow_sweep(tmp_path, spec, user_parts_of(spec, model=Overflowing))
    sizes = {e.key: e.size for e in sweep.plan.experiments}
    assert [(f.status, sizes[f.key]) for f in sweep.failures] == [("diverged", 8)] * 2
    assert all("the training loss is inf after 8 tokens" in f.error for f in sweep.failures)
    assert sorted(int(r.size) for r in sweep.results) == [4, 4, 16, 16]
