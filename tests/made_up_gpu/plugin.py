"""A pytest plugin, `-p tests.made_up_gpu.plugin`: every test of the process has the made-up GPU."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.made_up_gpu import build

build.load(Path(os.environ["MADE_UP_GPU"]))

from tests.made_up_gpu.driver import install  # noqa: E402 - torch comes after the hooks
from tests.made_up_gpu.tensors import MadeUpDevice, new_device  # noqa: E402 - as above

install()


@pytest.fixture(autouse=True)
def gpu() -> Iterator[MadeUpDevice]:
    """The device of one test."""
    with new_device() as device:
        yield device
