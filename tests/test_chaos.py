"""What `tests.chaos` does for hours, once: real drivers, workers and heads, really killed. Nodes: test_cluster.py."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.chaos import Driver, Row, Watched, finish, make_project, uninterrupted
from tests.chaos.files import holding, writer_kills
from tests.chaos.kills import kill_worker, lose_head
from tests.chaos.stops import moved_ray, stop_by
from tests.chaos.tune_state import OFTEN, kill_with_tune_state, num_rounds
from tests.records import recorded
from tests.test_cli import call

ray = pytest.mark.ray


@pytest.fixture(scope="module")
def sha256(tmp_path_factory: pytest.TempPathFactory) -> str:
    return uninterrupted(tmp_path_factory.mktemp("plain"))


def test_f3_a_killed_writer_leaves_nothing_that_cannot_be_read(tmp_path: Path) -> None:
    row = writer_kills(tmp_path, 50)
    assert row.times and row.violations == [], row


@ray
def test_f4_f5_f7_f8_f16_whatever_ends_it_the_same_command_resumes(tmp_path: Path, sha256: str) -> None:
    """One sweep whose head, driver and worker are killed one after the other, and which is asked to stop.

    SIGTERM to everything: test_team.py.
    """
    pace, root, row = tmp_path / "pace", tmp_path / "out", Row("all of them")
    spec, watched = make_project(tmp_path / "project", pace), Watched(root, row)

    def run_until_more(count: int, environment: Mapping[str, str] | None = None) -> Driver:
        """Let a driver complete some experiments, and hold it in the middle of the next one."""
        pace.write_text("0")
        driver, before = Driver(spec, root, environment=environment), len(recorded(root))
        assert driver.until(lambda: len(recorded(root)) >= before + count), driver.said
        pace.write_text("0.2")
        return driver

    lose_head(run_until_more(1), row)
    watched.look()
    kill_with_tune_state(lambda: run_until_more(1, OFTEN), row)
    watched.look()
    rounds = num_rounds(root)
    stop_by(run_until_more(2, moved_ray(tmp_path)), "SIGUSR1 to the group", row)
    row.expect(num_rounds(root) == rounds, "Tune was not restored, though its state was whole")
    watched.look()
    last = run_until_more(0)
    pace.write_text("0.05")
    killed = kill_worker(last, row)
    pace.write_text("0")
    sweep = finish(last, row, watched, sha256)
    assert row.violations == [] and sweep is not None and not sweep.failures
    (result,) = [r for r in sweep.results if r.key == killed]
    assert result.deaths == 1 and result.resumed_from is not None


def test_f17_a_second_driver_is_refused_also_through_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec, root = make_project(tmp_path / "project"), tmp_path / "out"
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    with holding(root) as owner:
        for place in (root, tmp_path / "link"):
            assert call("run", spec, "--output", place) == 2
            assert f"process {owner.pid} on" in capsys.readouterr().err
