"""A pytest plugin (`-p tests.call_map`): which functions of a package each test calls, and the seconds it takes.

`CALL_MAP_PACKAGE` names the package's directory, `CALL_MAP_FILE` the JSON file to write. Calls in subprocesses are not
seen. Only tests that pass are written.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Generator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest


class CallMap:
    """The functions called so far, by test and by shared fixture."""

    def __init__(self, package: Path) -> None:
        self.package = package.resolve()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.calls: defaultdict[str, set[str]] = defaultdict(set)
        self.failed: set[str] = set()
        self._shared: dict[str, set[str]] = {}  # by fixture: set up once, used by many tests
        self._names: dict[CodeType, str | None] = {}

    def name(self, code: CodeType) -> str | None:
        """`path:qualified name` of a function of the package, else None."""
        if code not in self._names:
            path = Path(code.co_filename)
            inside = path.is_relative_to(self.package)
            shown = path.relative_to(self.package.parent).as_posix() if inside else ""
            self._names[code] = f"{shown}:{code.co_qualname}" if inside else None
        return self._names[code]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Trace one test with its fixtures."""
        with _Tracing() as seen:
            result = yield
        test = _without_parameters(item.nodeid)
        self.calls[test] |= self._named(seen)
        for fixture in getattr(item, "fixturenames", ()):
            self.calls[test] |= self._shared.get(fixture, set())
        return result

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Trace a fixture that more than one test uses by itself."""
        if fixturedef.scope == "function":
            return (yield)
        with _Tracing() as seen:
            result = yield
        self._shared[fixturedef.argname] = self._named(seen)
        return result

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Add up seconds; note failures."""
        test = _without_parameters(report.nodeid)
        self.seconds[test] += report.duration
        if report.failed:
            self.failed.add(test)

    def to_json(self) -> dict[str, Any]:
        """Seconds and calls of each test that passed."""
        return {
            test: {"seconds": round(self.seconds[test], 3), "calls": sorted(calls)}
            for test, calls in self.calls.items()
            if test not in self.failed
        }

    def _named(self, seen: set[CodeType]) -> set[str]:
        return {name for code in seen if (name := self.name(code))}


class _Tracing:
    """The code objects called inside a `with` block, in all threads started there; blocks may be nested."""

    def __init__(self) -> None:
        self.seen: set[CodeType] = set()
        self._outer: Callable[..., Any] | None = None

    def __enter__(self) -> set[CodeType]:
        self._outer = sys.gettrace()
        sys.settrace(self._call)
        threading.settrace(self._call)
        return self.seen

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._outer)
        threading.settrace(self._outer)

    def _call(self, frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            self.seen.add(frame.f_code)


def _without_parameters(nodeid: str) -> str:
    return nodeid.split("[")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Begin."""
    config.pluginmanager.register(CallMap(Path(os.environ["CALL_MAP_PACKAGE"])), "call_map_of_this_run")


def pytest_unconfigure(config: pytest.Config) -> None:
    """Write the file."""
    call_map = config.pluginmanager.get_plugin("call_map_of_this_run")
    if isinstance(call_map, CallMap):
        Path(os.environ["CALL_MAP_FILE"]).write_text(json.dumps(call_map.to_json()))
