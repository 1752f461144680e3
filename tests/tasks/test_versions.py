"""What a problem computes with: named, and missed before anything runs."""

from __future__ import annotations

import importlib.metadata

import pytest

from tasks import problems, versions
from tasks.errors import ThawlineError


def test_a_library_that_is_missing_is_told_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(versions.libraries(problems.DEFAULT)) == {"torch", "torchvision", "timm"}
    monkeypatch.setattr(problems.load(problems.DEFAULT), "LIBRARIES", ("no-such-library",))
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("no-such-library")
    with pytest.raises(ThawlineError, match=r"needs no-such-library, .*: pip install no-such-lib"):
        versions.libraries(problems.DEFAULT)
