"""`fit`: the largest batch that survives here. `search` decides what to run next, `fit` runs it."""
