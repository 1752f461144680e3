"""`thawline stage train` for the project DIR, without the process that carries runs to MLflow."""

import sys
from pathlib import Path

from flows import stage
from tasks import tracking
from tasks.records import Project


def main() -> None:
    tracking.start_drainer = lambda project: None  # type: ignore[assignment]
    tracking.run_id = lambda *_, **__: None  # type: ignore[assignment]
    stage.run(Project(Path(sys.argv[1])), "train")


if __name__ == "__main__":
    main()
