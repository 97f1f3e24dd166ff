"""One training and its step: the protocol, the loop, and what goes with a long run.

Checkpoints, epochs, evaluation, learning-rate scaling and several processes. Verbs build on it.
"""
