from __future__ import annotations

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest file first, so that no worker is left alone with it in the end."""
    items.sort(key=lambda item: item.path.name != "test_main_job.py")
