"""Sweeps of a task with a known answer."""
