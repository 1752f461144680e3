"""`python -m tasks.tracking drain ROOT PARENT`: the drainer's process."""

import sys
from pathlib import Path

from tasks import redaction
from tasks.tracking import drainer

if __name__ == "__main__":
    command, root, parent = sys.argv[1:]
    if command != "drain":
        sys.exit(f"unknown command {command!r}")
    redaction.install()
    drainer.follow(Path(root), int(parent))
