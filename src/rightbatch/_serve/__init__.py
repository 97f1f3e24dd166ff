"""Serving: frames of many cameras and requests in the best batches under one latency target.

frames, video, pictures   where frames come from      feed, isolated   a source that may die
service, theory           how long n items take       queues           what waits, and fairly
scheduler                 which items go now          simulate         the same on a virtual clock
batcher                   the engine                  calibrate        what this machine can do
models                    what runs                   sinks, mqtt      where results go
http, metrics, page       requests, figures, a page   run              all of it together
"""
