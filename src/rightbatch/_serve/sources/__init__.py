"""Where frames come from: cameras, films, pictures and iterables, each under supervision.

frames    what a source is, and how it is named    connection  one that another thread may close
video     cameras and films, by PyAV               pictures    files and arrays
feed      a source that may die, and comes back    isolated    in a process of its own
"""
