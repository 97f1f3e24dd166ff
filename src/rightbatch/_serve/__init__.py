"""Serving: batches of frames and requests under one latency target.

engine/   queues, scheduler, calibration and `rb.Batcher`   models/  what runs: `Model` and adapters
sources/  cameras, videos, pictures, iterables              sinks/   files, functions, MQTT
load/     load tests, `rightbatch bench serve`              web/     HTTP routes, metrics, the page

`serve` and `server` join them, `pipeline` is one source's path through them, `command` is
`rightbatch serve`, `redaction` removes passwords from messages.
"""
