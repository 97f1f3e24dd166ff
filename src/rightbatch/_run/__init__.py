"""`run`: what a training does with its memory and its batch, while it runs as it stands.

run        the verb
headroom   the batch sizes that would fit, from one run
mlflow_run keeps a run in MLflow
report     the result, with its advice
"""
