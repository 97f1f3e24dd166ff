"""`predict` against what others measured on real GPUs.

`rows` reads the measurements, `workloads` builds the same steps, `measure` predicts in a process
of its own, `run` goes through the rows and can be resumed, `summary` computes the figures.
"""
