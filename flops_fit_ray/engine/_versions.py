"""Versions of the software that makes a result."""

from __future__ import annotations

import platform

import ray
import torch

from flops_fit_ray._version import __version__


def versions() -> dict[str, str]:
    """Return them by name."""
    return {
        "flops_fit_ray": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ray": ray.__version__,
    }
