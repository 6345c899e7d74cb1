"""Speed, as ratios against minimal peers measured in the same run. `python -m benchmarks.step_cpu`."""
