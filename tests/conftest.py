from __future__ import annotations

from collections.abc import Iterator

import pytest

from flows.process import end_group
from tasks.records import Project

# By what each takes, so that no worker is left alone with one of them in the end.
LONGEST = ("test_main_job.py", "test_retraining.py", "test_contract.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, the others in their order."""
    known = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: known.get(item.path.name, len(known)))


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Project, str, str]]:
    """`thawline ui` on a project: (project, the address of Prefect's page, that of MLflow's)."""
    from tests.flows.conftest import make_project, start

    project = make_project(tmp_path_factory.mktemp("pages") / "project")
    process = start(project, "ui", env={})
    try:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(2)]
        assert lines[0].startswith("Prefect: "), process.stderr
        yield project, lines[0].split()[1], lines[1].split()[1]
    finally:
        end_group(process, grace=15)


@pytest.fixture(scope="session")
def server(pages: tuple[Project, str, str]) -> dict[str, str]:
    """The environment that makes flows report to the running server.

    A run that starts Prefect's own takes ten seconds of CPU more: a few tests do, for the others.
    """
    return {"PREFECT_API_URL": f"{pages[1]}/api"}
