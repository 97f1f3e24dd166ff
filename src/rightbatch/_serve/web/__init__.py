"""What is asked and shown over HTTP.

http        the routes                                 listening   a port, and the server behind it
access      who may ask                                predict     an image in, its result out
bodies      what is sent, within bounds                images      an encoded image, not trusted
metrics     figures for Prometheus                     page/       what a browser shows
"""
