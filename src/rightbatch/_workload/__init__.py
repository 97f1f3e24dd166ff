"""`Workload` (a model, its loss, optimizer and data), its factory, its batches and worst examples.

Every verb takes a workload factory; nothing in this package runs a step.
"""
