"""`predict`: memory on a GPU you don't have. A step is followed (`follow`) and allocated.

The simulator of PyTorch's caching allocator (`allocator`) and its replay live here, too.
"""
