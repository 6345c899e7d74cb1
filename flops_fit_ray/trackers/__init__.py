"""Experiment trackers: TensorBoard, W&B and MLflow log the ledger while a sweep runs.

They are views like the console: each follows the files in its own thread, so that one that fails, hangs or has no API
key does not hold up training. (Callbacks of Ray Tune run in Tune's loop: one that raises ends the sweep.)
"""

from flops_fit_ray.trackers._choice import check_installed, watchers_for

__all__ = ["check_installed", "watchers_for"]
