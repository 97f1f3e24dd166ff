"""`python -m rightbatch`."""

from rightbatch._cli import main

main()
