"""`tune`: the batch size that reaches the target soonest, with what it takes to train at it.

`timing` and `pilot` measure, `decision` decides from what they measured, `advice` says the rest.
"""
