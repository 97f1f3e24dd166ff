"""One training and its step, which all verbs use: the protocol and the loop of a `Workload`.

With checkpoints, epochs, evaluation, learning-rate scaling and distributed processes.
"""
