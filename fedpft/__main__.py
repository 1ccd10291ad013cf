"""`python -m fedpft`: the command line, also where no `fedpft` is on the path."""

from fedpft.cli.main import main

if __name__ == "__main__":  # processes that the alignment spawns import this, too
    main()
