"""What Prefect is told of a retraining: a page and an event, on a real server."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tasks.records import Project
from tests.small_project import environment, wait_until
from tests.test_retraining import ask

TELL = """\
from pathlib import Path
from flows import notice
from flows.retrain import Retrained
from tasks.records import Project
from tests.tasks.rivals import PARAMS
made = Retrained("done before", "Nothing to do.", commit="abc", lines=["for people", "at https://ada:s3cret@host/a"])
notice.send(Project(Path(".").resolve()), PARAMS, made)
"""


def test_an_outcome_is_a_page_and_an_event(
    pages: tuple[Project, str, str], tmp_path: Path, server: dict[str, str]
) -> None:
    variables = environment(PYTHONPATH=str(Path(__file__).parents[2]), **server)
    done = subprocess.run(  # that ends at once, as the command does
        [sys.executable, "-c", TELL], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0 and "was not told" not in done.stderr, done.stderr
    keyed = {"key": {"any_": ["retrain-shoes"]}}
    [page] = ask(pages[1], "artifacts/filter", artifacts=keyed)
    told = "# shoes: done before\n\nNothing to do.\n\nfor people\n\nat https://ada:***@host/a"
    assert page["data"] == told
    assert (page["type"], page["description"]) == ("markdown", "Nothing to do.")

    def events() -> list[dict[str, Any]]:
        named = {"event": {"name": ["thawline.retrain.done_before"]}}
        found: list[dict[str, Any]] = ask(pages[1], "events/filter", filter=named)["events"]
        return found

    wait_until(lambda: bool(events()), 60)
    [event] = events()
    assert event["resource"]["prefect.resource.id"] == "thawline.model.shoes"
    assert event["resource"]["project"] == str(tmp_path)
    assert event["payload"]["sentence"] == "Nothing to do." and event["payload"]["commit"] == "abc"


@pytest.mark.parametrize("url", [None, "http://127.0.0.1:9/api"])
def test_where_no_server_answers_all_else_is_done(tmp_path: Path, url: str | None) -> None:
    variables = environment(PYTHONPATH=str(Path(__file__).parents[2]))
    if url is not None:
        variables["PREFECT_API_URL"] = url
    done = subprocess.run(
        [sys.executable, "-c", TELL], cwd=tmp_path, env=variables, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert ("Prefect was not told what came of it" in done.stderr) == (url is not None)
