"""The store of a study's runs: MLflow, written by studies and read back, with other loggers' runs.

mlflow_writer, run_log, artifacts, database    writing a study
reader, locations, curves                      reading a store
sqlite_source, mlflow_source                   where run records and metric histories come from
mlflow_native, mlflow_import                   what records of ours and of other loggers mean
"""
