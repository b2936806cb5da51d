"""Measurements: ``python -m benchmarks.threads``, ``python -m benchmarks.lifecycle``."""
