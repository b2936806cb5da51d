"""Measurements: ``python -m benchmarks.threads``, ``.lifecycle``, ``.http``."""
