"""`python -m scdd`."""

from scdd.cli import main

main()
