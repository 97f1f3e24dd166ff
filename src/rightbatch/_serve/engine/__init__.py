"""The engine: items of many streams, run in batches under one latency target.

queues         a queue for each stream            scheduler      which items run next
service_times  batch size to seconds              calibration    measures and estimates capacity
virtual_clock  simulates a load                   engine         the thread that runs batches
outcomes       tells callers and listeners        batcher        `rb.Batcher`: async and futures
records        the types that all of them share   counters       counts per stream
"""
