"""Sources of frames: cameras, videos, pictures and iterables, each supervised.

frames       the `FrameSource` protocol          open        a URL, path or iterable to a source
video        cameras and video files, by PyAV    pictures    picture files and iterables
connection   closed safely by another thread     isolated    a source in its own process
http         cameras over HTTP, with their connections (http_lines) and logins (http_login)
feed         reconnects and detects stalls       structure   refuses files that are costly to decode
"""
