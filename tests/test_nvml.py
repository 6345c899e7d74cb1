"""Readings by NVIDIA's own binding, from a driver's library that answers from a table."""

import ctypes
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from flops_fit_ray.ledger import hardware
from flops_fit_ray.ledger.hardware import EnergyMeter, Gpu, Readings, read_gpus
from tests.made_up_gpu import build

LOST, NO_PERMISSION, ANOTHER_VERSION = 15, 4, 18  # NVML's codes
H200 = "2147483648 151397597184 73 512300 700000 2500000 61 NVIDIA H200"
SLICE = "1000 5368709120 -1 -1 -1 -1 -1 NVIDIA A100 MIG 1g.5gb"  # it does not say its load

Write = Callable[..., None]


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, loaded: who asks for the driver's by its name finds it."""
    made = build.build_driver(tmp_path_factory.mktemp("driver"))
    if made is None:
        pytest.skip("no C compiler: the binding was not tried")
    ctypes.CDLL(str(made), ctypes.RTLD_GLOBAL)
    return made


@pytest.fixture
def write(library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write the driver's table, which it reads at every question."""
    monkeypatch.setenv("MADE_UP_DRIVER", str(tmp_path / "table"))

    def write(*gpus: str, code: int = 0) -> None:
        (tmp_path / "table").write_text("\n".join([f"{code} 570.86.15", *gpus, ""]))

    caches = (hardware._nvml, hardware._driver)
    for cache in caches:
        cache.cache_clear()
    yield write
    for cache in caches:
        cache.cache_clear()


def test_eight_gpus_and_a_slice_are_read_in_whole_units(write: Write) -> None:
    write(*(f"0 GPU-{n} {H200}" for n in range(8)), f"0 MIG-1 {SLICE}")
    machine = Readings().read()
    assert machine.driver == "570.86.15" and [gpu.index for gpu in machine.gpus] == list(range(9))
    assert machine.gpus[7] == Gpu(
        uuid="GPU-7", index=7, name="NVIDIA H200", utilisation=0.73, memory_used=2 << 30, memory_total=141 << 30,
        temperature=61.0, power=512.3, power_limit=700.0, energy=2500.0,
    )  # fmt: skip
    assert machine.gpus[8] == Gpu(
        uuid="MIG-1", index=8, name="NVIDIA A100 MIG 1g.5gb", memory_used=1000, memory_total=5 << 30
    )
    assert EnergyMeter().joules(read_gpus(["MIG-1"])) is None


def test_a_gpu_that_is_lost_is_no_longer_there_and_the_others_are(write: Write) -> None:
    write(f"0 GPU-0 {H200}", f"0 GPU-1 {H200}")
    assert len(read_gpus()) == 2
    write(f"0 GPU-0 {H200}", f"{LOST} GPU-1 {H200}")
    assert [gpu.uuid for gpu in read_gpus()] == ["GPU-0"]


@pytest.mark.parametrize("code", [NO_PERMISSION, ANOTHER_VERSION])
def test_a_driver_that_refuses_has_no_gpus(write: Write, code: int) -> None:
    write(f"0 GPU-0 {H200}", code=code)
    machine = Readings().read()
    assert machine.gpus == () and machine.driver is None and machine.memory_total
