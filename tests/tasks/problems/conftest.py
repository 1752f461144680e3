from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

import tasks.problems
from tests.tasks.problems.kinds import TOY


@pytest.fixture(autouse=True, scope="package")
def _beside_a_toy() -> Iterator[None]:
    """A further folder of problems, as if its one problem lay beside the others."""
    tasks.problems.__path__.append(str(TOY))
    yield
    tasks.problems.__path__.remove(str(TOY))
    for name in [n for n in sys.modules if n.startswith("tasks.problems.signal_classification")]:
        del sys.modules[name]
