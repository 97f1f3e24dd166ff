"""`tune`: the batch size that reaches the target soonest, with what it takes to train at it."""
