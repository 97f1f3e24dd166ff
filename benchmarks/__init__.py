"""Measurements: each benchmark stores raw samples in `results`; `page` makes docs/benchmarks.md."""
