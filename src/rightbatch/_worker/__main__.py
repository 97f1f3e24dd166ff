"""A worker's process: `python -m rightbatch._worker`, driven over its standard input.

It imports the entry that its header names, unpickles what it was sent and waits, so that it can be
started while another process still holds the device. The entry then answers commands until it is
told to stop or its parent is gone.
"""

from __future__ import annotations

import pickle
from importlib import import_module

from rightbatch._worker.bootstrap import Channel, load, take_over_streams
from rightbatch._worker.wire import Header, receive_bytes


def main() -> None:
    """Load what the header describes, and hand it to the entry."""
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
