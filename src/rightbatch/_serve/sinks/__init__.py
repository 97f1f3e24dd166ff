"""Sinks of results, each written by a thread of its own.

line         the record of one frame              sink         the `Sink` protocol
json_lines   files and streams                    in_process   functions and iteration
mqtt         an MQTT broker                       open         a path, URL or function to a sink
writer       queues and threads of all sinks
"""
