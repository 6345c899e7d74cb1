"""F23: sweep directories as earlier versions left them, one archive for each shape that they had, open for ever.

All of them hold the same eight experiments. Nothing in `golden/` is ever written again; a new shape gets a new archive.
"""

import json
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from flops_fit_ray.cli import main
from flops_fit_ray.console.status_text import status_text
from flops_fit_ray.ledger import Ledger
from flops_fit_ray.planning import make_plan
from flops_fit_ray.report import write_report
from flops_fit_ray.spec import make_spec
from flops_fit_ray.storage.atomic import read_json
from flops_fit_ray.storage.paths import SweepPaths
from flops_fit_ray.storage.storage_path import local_path
from flops_fit_ray.sweep.directory import open_sweep
from flops_fit_ray.sweep.recorded import recorded_constants
from flops_fit_ray.training.preflight.model_size import measure_sizes
from flops_fit_ray.training.user.losses import mse
from flops_fit_ray.training.user.parts import make_user_parts
from tests.bad_values import Case, prepare
from tests.parts import TruncatedRegression

GOLDEN = Path(__file__).parent / "golden"
ENGINE_1 = "3f4a477c160c5b15879dc09d03c33d23bb0632983ab84b09ddb073faabd35785"
ENGINE_2 = "455c800aeb3b805d746f5fea6384a73a7786cc7606ad1dbab98c6ae2ee1a2722"  # the same losses under other keys
SHAPES = {
    "1-first": ENGINE_1,
    "1-checkpoints": ENGINE_2,
    "1-fits": ENGINE_2,
    "1-trunks": ENGINE_2,
    "1-sealed": ENGINE_2,
    "1-watched": ENGINE_2,
}


def unpacked(name: str, where: Path) -> Path:
    with tarfile.open(GOLDEN / f"{name}.tar.gz") as archive:
        archive.extractall(where, filter="data")
    return where / name


def test_every_shape_is_tried() -> None:
    assert {path.name.removesuffix(".tar.gz") for path in GOLDEN.iterdir()} == set(SHAPES)


@pytest.mark.usefixtures("rough_figures")
@pytest.mark.parametrize("name", SHAPES)
def test_an_old_directory_opens(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = unpacked(name, tmp_path)
    sweep = open_sweep(root)
    assert sweep.complete and len(sweep.results) == 8
    assert sweep.results_sha256 == SHAPES[name]
    law = sweep.fit.params_opt
    assert law is not None and law.exponent == pytest.approx(0.5136150710097103, rel=1e-9)
    assert "8 completed of 8" in status_text(sweep)
    assert list(sweep.to_frame()["status"]) == ["completed"] * 8
    assert local_path(write_report(sweep)).stat().st_size > 10_000
    few = ["--draws", "200"]
    for command in (["status", str(root)], ["fit", str(root), "--json", *few], ["predict", "1e5", str(root), *few]):
        with pytest.raises(SystemExit) as ended:
            main(command)
        assert ended.value.code == 0, capsys.readouterr().err


def test_what_this_version_plans_is_what_the_newest_has_done(tmp_path: Path) -> None:
    """The keys of today: a changed key would train all of it again."""
    root = unpacked("1-watched", tmp_path)
    spec = open_sweep(root).spec
    assert make_spec(spec.model_dump(mode="json"), "golden") == spec
    import torch

    scale = torch.arange(1, 129) ** -0.5
    x = torch.randn(3_000, 128, generator=torch.Generator().manual_seed(0)) * scale
    user = make_user_parts(
        model=TruncatedRegression,
        model_kwargs={},
        loss=mse,
        train=(x, x @ scale[:, None]),
        held_out=None,
        data=spec.data,
    )
    measurements = measure_sizes(spec, user)
    recorded = json.loads((root / "plan.json").read_text())["data"]["fingerprint"]
    if measurements.data.fingerprint != recorded:  # the targets are a product of matrices: other processors round it so
        measurements = replace(measurements, data=replace(measurements.data, fingerprint=recorded))
    plan = make_plan(spec, measurements, constants=recorded_constants(SweepPaths(root)))
    assert len(Ledger(SweepPaths(root)).results(e.key for e in plan.experiments)) == 8


def test_a_directory_of_the_future_is_refused_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = unpacked("1-sealed", tmp_path)
    plan = read_json(root / "plan.json")
    assert plan is not None
    (root / "sweep.yaml").write_text(
        (root / "sweep.yaml").read_text().replace("schema_version: 1", "schema_version: 2")
    )
    with pytest.raises(SystemExit) as ended:
        main(["status", str(root)])
    assert ended.value.code == 2
    assert "schema_version: must be 1 (got 2)" in capsys.readouterr().err
    (root / "plan.json").write_text(json.dumps({**plan, "schema_version": 2}))
    before = sorted(path.name for path in root.iterdir())
    project = prepare(Case(words=()), tmp_path / "p")
    with pytest.raises(SystemExit) as ended:
        main([*project, "--output", str(root)])
    assert ended.value.code == 2
    assert "has schema_version 2, and this version knows 1" in capsys.readouterr().err
    assert sorted(path.name for path in root.iterdir() if path.name != "sweep.lock") == before
