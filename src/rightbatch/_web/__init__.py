"""A page of this machine: who may ask for it, and where it listens."""
