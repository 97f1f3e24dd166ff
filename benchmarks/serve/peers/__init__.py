"""The servers and loops that are compared: each around the same worker, with the same way in."""
