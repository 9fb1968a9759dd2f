"""Hands over to the command line."""

import sys

from spacebot.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
