"""The main module of a worker process: `python -m rightbatch._worker`, driven over stdin.

It imports the entry that its header names, unpickles the subject and waits, so that it can be
started while another process still uses the device. The entry then answers commands until the
parent kills it or exits.
"""

from __future__ import annotations

import pickle
from importlib import import_module

from rightbatch._worker.bootstrap import Channel, load, take_over_streams
from rightbatch._worker.wire import Header, receive_bytes


def main() -> None:
    """Load the subject of the header, and call the entry with it."""
    commands, reports = take_over_streams()
    header: Header = pickle.loads(receive_bytes(commands))
    channel = Channel(commands, reports)
    try:
        module, _, function = header.entry.partition(":")
        entry = getattr(import_module(module), function)
        subject = load(header)
    except BaseException as error:
        channel.failed(error)
        return
    entry(channel, header, subject)


if __name__ == "__main__":
    main()
