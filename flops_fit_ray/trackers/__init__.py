"""TensorBoard, W&B, MLflow: what the ledger holds, told to them while a sweep runs.

They are views like the console: each follows the files in a thread of its own, so that one that fails, hangs or has no
key holds up nothing. (Callbacks of Ray Tune would run in its own loop: one that raises ends a sweep.)
"""

from flops_fit_ray.trackers.choice import check_installed, watchers_for

__all__ = ["check_installed", "watchers_for"]
