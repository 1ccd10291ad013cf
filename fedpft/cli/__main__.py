"""`python -m fedpft.cli` without an installed script."""

import sys
from pathlib import Path

HERE = str(Path.cwd())
if sys.path[:1] == [HERE] and not Path(__file__).is_relative_to(HERE):
    del sys.path[0]  # as for the script: a user's `datasets.py` here is not the library

from fedpft.cli.main import main  # noqa: E402  # after that

main()
