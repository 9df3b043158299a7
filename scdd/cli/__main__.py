"""`python -m scdd.cli`."""

from scdd.cli import main

main()
