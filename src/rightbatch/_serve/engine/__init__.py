"""The engine: items of many streams, in batches under one latency target."""
