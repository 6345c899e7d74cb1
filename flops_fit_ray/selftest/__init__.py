"""Sweeps of a task whose answer is known."""
