"""The store of a study's runs: MLflow, written by studies and read back.

Runs that other loggers wrote there are read, too.
"""
