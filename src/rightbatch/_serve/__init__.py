"""Serving: frames of many cameras and requests in the best batches under one latency target.

service     how long n items take                      queues      what waits, and fairly
scheduler   which items go now                         simulate    the same on a virtual clock
theory      closed forms to hold it against            calibrate   what this machine can do
engine      batches on a thread of its own             batcher     `rb.Batcher`, its two faces
records     what it says of items and batches          tally       what became of them
models      what runs                                  memory      how many images that holds
sources/    where frames come from                     intake      one source's way through
sinks       where results go                           writer      by threads that delay nobody
mqtt        to a broker
run         `rb.serve`: all of it together             command     `rightbatch serve`
load        loads that wait for nobody                 bench       `rightbatch bench serve`
web/        HTTP, figures and a page
"""
