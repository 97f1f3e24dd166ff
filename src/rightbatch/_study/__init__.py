"""`study`: every batch size with every seed, and what the size does to the training.

`runs` trains one run in a process of its own, `store` keeps runs in MLflow and reads them back,
`analysis` compares them, `web` shows them.
"""
