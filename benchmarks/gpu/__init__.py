"""rightbatch against the GPU of this machine, part by part: `python -m benchmarks.gpu`.

What each part measures and how to run it stands in docs/gpu-run.md. The modules that start and
record the parts (`__main__`, `runner`, `parts`, `rows`, `table`) need the standard library only.
"""
