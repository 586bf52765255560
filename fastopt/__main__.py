"""``python -m fastopt``: the same commands as ``fastopt``."""

import sys

from fastopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
