"""`predict`: the memory of a step on a GPU you don't have.

`follow` records the allocations of a step (a `Trace`), `allocator` simulates PyTorch's caching
allocator, `simulate` and `replay` run traces and recordings through it.
"""
