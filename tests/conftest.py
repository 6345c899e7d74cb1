"""Settings of the whole suite: the same examples in every run, and what runs beside what."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from tests.hangs import RAY_PATIENCE

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.testclient import TestClient

    from flops_fit_ray.engine.loaders import Loader
    from flops_fit_ray.service.paths import ServicePaths

# The same examples in every run, and no verdict that depends on how busy the machine is.
settings.register_profile("repeatable", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("repeatable")

# One core in every local Ray, whatever the machine has: one experiment at a time, so one worker, whose imports cost
# more than all that it trains. Tests of experiments side by side ask for half a core, or start nodes of their own.
os.environ["RAY_OVERRIDE_RESOURCES"] = '{"CPU": 1}'
os.environ.update(RAY_PATIENCE)

# Hundreds of processes are started that would each compile the package again
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the cores have other workers to do

LONGEST = ("cluster", "ray commands", "ray")  # groups, so that none is left to run alone in the end


FAST_SECONDS = 0.5
_seconds: dict[str, float] = {}  # that each test took in this run


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--fast`."""
    words = f"leave out the tests that took more than {FAST_SECONDS} s when they ran last"
    parser.addoption("--fast", action="store_true", help=words)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how long a test took, with its fixtures."""
    _seconds[report.nodeid] = _seconds.get(report.nodeid, 0.0) + report.duration


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Keep how long the tests took, for `--fast`."""
    cache = getattr(session.config, "cache", None)
    if cache is not None and not hasattr(session.config, "workerinput"):
        grouped = session.config.getoption("dist", "no") == "loadgroup"  # then each name ends with that of its group
        found = {name.rpartition("@")[0] if grouped else name: seconds for name, seconds in _seconds.items()}
        cache.set("seconds", {**cache.get("seconds", {}), **found})


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory of sweeps that are trained once, by whichever worker needs one first (tests/sweeps.py)."""
    _hear_again()
    if not hasattr(config, "workerinput"):  # workers inherit the variable
        os.environ["REFERENCE_SWEEPS"] = directory = tempfile.mkdtemp(prefix="reference-sweeps-")
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


def _hear_again() -> None:
    """Hear the signals that a background job of a script, or `nohup`, ignores: so would all that a test starts.

    Who is not to end by a hangup does not end by it now, either; programs that are started have it as it always is.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collect no garbage while tests are collected: nearly nothing of what their imports make is any."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # xdist reads the groups in the same hook
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order the longest groups first, then the slow tests, and group the others by file, whose fixtures they share.

    With `--dist loadgroup` each slow test is a unit of its own, unless its file names a group because its tests share
    a Ray session or a cluster.
    """
    if config.getoption("fast"):
        cache = getattr(config, "cache", None)
        seconds = {} if cache is None else cache.get("seconds", {})
        long = [item for item in items if seconds.get(item.nodeid, 0.0) > FAST_SECONDS]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if seconds.get(item.nodeid, 0.0) <= FAST_SECONDS]
    for item in items:
        if not any(map(item.get_closest_marker, ("slow", "xdist_group"))):
            item.add_marker(pytest.mark.xdist_group(item.path.stem))
    items.sort(key=_order)


def _order(item: pytest.Item) -> list[int]:
    group = item.get_closest_marker("xdist_group")
    name = group.args[0] if group else ""
    first = LONGEST.index(name) if name in LONGEST else len(LONGEST)
    return [first, *(item.get_closest_marker(name) is None for name in ("ray", "slow"))]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Check that tests are grouped.

    Without its groups a cluster, a service or a Ray session is started by each worker, and nothing else says so.
    """
    grouped = [item for item in session.items if item.get_closest_marker("xdist_group")]
    if getattr(session.config.option, "loadgroup", False) and not all("@" in item.nodeid for item in grouped):
        raise pytest.UsageError("this pytest-xdist cannot group tests with this pytest: install by constraints.txt")


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """A Ray session for all tests of a file that run in this process."""
    from flops_fit_ray.engine.cluster import ray_session

    with ray_session(None):
        yield


@pytest.fixture(autouse=True)
def view_faults(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Exception]]:
    """Collect the errors that views meet, which no sweep ends with: a test that expects some clears the list."""
    from flops_fit_ray.ledger.watch import Watcher

    met: list[Exception] = []
    report = Watcher._report

    def noted(self: Watcher, error: Exception) -> None:
        met.append(error)
        report(self, error)

    monkeypatch.setattr(Watcher, "_report", noted)
    yield met
    assert not met, met


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """A project that a service may run."""
    from tests.chaos import make_project

    return make_project(tmp_path / "code").parent


@pytest.fixture
def client(paths: ServicePaths, code: Path) -> Iterator[TestClient]:
    """Whoever has the token of a service of the `paths` of a file, which may run `code`."""
    from tests.serving import client_of

    with client_of(paths.root, code) as found:
        yield found


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> list[Loader]:
    """Let any data lie once per node, however small. Returns the loaders that sweeps use from now on."""
    from flops_fit_ray.engine import loaders

    used: list[Loader] = []

    def shared(loader: Loader, tensor_bytes: int) -> Loader:
        used.append(loaders.share_data(loader, tensor_bytes))
        return used[-1]

    monkeypatch.setattr(loaders, "MIN_SHARED_BYTES", 0)
    monkeypatch.setattr("flops_fit_ray.engine.tuner.share_data", shared)
    return used


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out of every report, which take two seconds; test_report.py draws them."""
    monkeypatch.setattr("flops_fit_ray.report.write._figures", lambda *_: iter(()))


@pytest.fixture
def rough_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every figure of a report, and save an empty one."""
    monkeypatch.setattr("flops_fit_ray.report.write.lay_out", lambda figure: figure)
    monkeypatch.setattr("flops_fit_ray.report.write.to_svg", lambda _: "<svg/>")
    monkeypatch.setattr("flops_fit_ray.report.write.to_png", lambda _: b"")
