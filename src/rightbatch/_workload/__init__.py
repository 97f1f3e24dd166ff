"""What is trained, and on what: `Workload`, its factory, its batches and its worst examples.

Every verb is given one of these; nothing here runs a step.
"""
