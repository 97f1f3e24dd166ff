"""`tune`: the batch size that reaches the target soonest, and the settings to train with it.

`timing` and `pilot` measure, `decision` chooses a size from the measurements, `reason` and `advice`
explain it.
"""
