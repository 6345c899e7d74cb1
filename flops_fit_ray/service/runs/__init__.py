"""Runs of sweeps that were requested over HTTP: their specs, their queue, and the processes or jobs that run them."""
