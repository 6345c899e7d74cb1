"""Readings of a machine, with a stand-in for NVML: no GPU is here."""

import itertools
import sys
import types
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from flops_fit_ray.ledger import hardware
from flops_fit_ray.ledger.hardware import EnergyMeter, Gpu, Machine, Readings, read_gpus
from flops_fit_ray.storage.codec import value_of


class NVMLError(Exception):
    pass


def stand_in(gpus: int, refuses: tuple[str, ...] = ()) -> types.ModuleType:
    """A module with as much of NVML as is used; `refuses` are questions that this device has no answer to."""

    def answer(name: str, value: Any) -> Any:
        def asked(*_: Any) -> Any:
            if name in refuses:
                raise NVMLError(name)
            return value(*_) if callable(value) else value

        return asked

    module = types.ModuleType("pynvml")
    millijoules = itertools.count(2_500_000, 1_000_000)  # more at each question
    answers = {
        "nvmlInit": None,
        "nvmlDeviceGetCount": gpus,
        "nvmlDeviceGetHandleByIndex": lambda i: i,
        "nvmlDeviceGetUUID": lambda h: f"GPU-{h}",
        "nvmlDeviceGetName": lambda h: b"NVIDIA H200",  # older bindings give bytes
        "nvmlDeviceGetMemoryInfo": types.SimpleNamespace(used=2 * 2**30, total=141 * 2**30),
        "nvmlDeviceGetUtilizationRates": types.SimpleNamespace(gpu=73),
        "nvmlDeviceGetPowerUsage": 512_300,
        "nvmlDeviceGetTotalEnergyConsumption": lambda h: next(millijoules),
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetTemperature": 61,
        "nvmlSystemGetDriverVersion": "570.86.15",
    }
    for name, value in answers.items():
        setattr(module, name, answer(name, value))
    module.NVMLError = NVMLError  # type: ignore[attr-defined] # as NVML's own module has it
    module.NVML_TEMPERATURE_GPU = 0  # type: ignore[attr-defined] # as above
    return module


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    caches = (hardware._nvml, hardware._driver)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def test_gpus_are_read_in_whole_units(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(3))
    machine = Readings().read()
    assert machine.driver == "570.86.15" and len(machine.gpus) == 3
    assert machine.gpus[1] == Gpu(
        uuid="GPU-1", index=1, name="NVIDIA H200", utilisation=0.73, memory_used=2 * 2**30, memory_total=141 * 2**30,
        temperature=61.0, power=512.3, power_limit=700.0, energy=3500.0,
    )  # fmt: skip
    assert [g.index for g in read_gpus(["GPU-2", "GPU-0"])] == [0, 2]
    assert read_gpus([]) == ()


def test_what_a_device_does_not_say_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    refused = ("nvmlDeviceGetUtilizationRates", "nvmlDeviceGetPowerUsage", "nvmlDeviceGetTemperature")
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(1, refused))
    (found,) = read_gpus()
    assert (found.utilisation, found.power, found.temperature) == (None, None, None)
    assert found.memory_used == 2 * 2**30


def test_energy_is_the_difference_of_counters_summed_over_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(2))
    meter = EnergyMeter()
    assert meter.joules(read_gpus()) == 0.0  # 2500 J and 3500 J
    assert meter.joules(read_gpus()) == 4000.0  # 4500 J and 5500 J
    assert meter.joules(read_gpus(["GPU-1"])) == 5000.0  # the other one keeps its last reading
    reset = [replace(gpu, energy=1.0) for gpu in read_gpus()]
    assert meter.joules(reset) is None and EnergyMeter().joules([]) is None
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(1, ("nvmlDeviceGetTotalEnergyConsumption",)))
    hardware._nvml.cache_clear()
    assert EnergyMeter().joules(read_gpus()) is None


@pytest.mark.parametrize("module", [None, stand_in(1, ("nvmlInit",))])
def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch, module: Any) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert read_gpus() == () and Readings().read().driver is None


def test_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    readings = Readings()
    sum(range(2_000_000))
    machine = readings.read()
    assert machine.cpus and machine.host
    assert machine.memory_total and machine.memory_used and 0 < machine.memory_used < machine.memory_total
    assert machine.cpu_share is None or 0 <= machine.cpu_share <= 1


def test_a_machine_survives_its_file_and_a_torn_one_is_refused() -> None:
    machine = Machine(host="n", cpus=8, gpus=(Gpu(uuid="u", index=0, name="T4", power=70.0),), cuda="12.8")
    assert value_of(Machine, machine.to_json()) == machine
    assert value_of(Machine, {**machine.to_json(), "newer": 1}) == machine
    for torn in ({}, {"host": "n", "gpus": [1]}, {"host": "n", "gpus": [{"uuid": "u"}]}):
        with pytest.raises(ValueError, match="Machine"):
            value_of(Machine, torn)
