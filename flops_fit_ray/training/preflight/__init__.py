"""Measurements and checks before a sweep runs."""
