"""`python -m pyprune` is the command line."""

import sys

from pyprune.cli import main

if __name__ == "__main__":
    sys.exit(main())
