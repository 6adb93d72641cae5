"""`python -m steprule` is the `steprule` command."""

from steprule.cli import main

main()
