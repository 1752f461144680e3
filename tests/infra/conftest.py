from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import postgres
from tasks.errors import ThawlineError


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that PostgreSQL's user may enter as well, unlike `tmp_path` of root."""
    with tempfile.TemporaryDirectory(prefix="thawline-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
def cluster(open_folder: Path) -> postgres.Cluster:
    try:
        postgres.find("initdb")
    except ThawlineError as error:
        pytest.skip(str(error))  # PostgreSQL is a system package, and not everyone installs it
    return postgres.Cluster(open_folder / "postgres")
