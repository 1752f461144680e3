"""`python -m tasks.tracking drain ROOT PARENT`: the drainer's process."""

import sys
from pathlib import Path

from tasks.tracking import drainer

if __name__ == "__main__":
    command, root, parent = sys.argv[1:]
    if command != "drain":
        sys.exit(f"unknown command {command!r}")
    drainer.follow(Path(root), int(parent))
