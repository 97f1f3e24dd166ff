"""`python -m rightbatch`."""

from rightbatch._cli.app import main

main()
