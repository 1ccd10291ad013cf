"""`python -m fedpft.cli`."""

from fedpft.cli.main import main

main()
