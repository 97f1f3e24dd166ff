"""What the pages of `serve` and `study` share.

access       token, Host and origin checks      listening   an ASGI server in a thread
files        the static files of a page         static/     their common scripts and styles
connections  how many connections there are, and for how long
"""
