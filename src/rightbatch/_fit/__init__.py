"""`fit`: the largest batch size that fits on this device.

`search` decides which size to run next, `fit` runs it, in the processes of `probe`.
"""
