"""When to retrain: slots, what was missed, and data that comes in."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows import watch
from flows.process import started_at
from flows.schedule import Schedule
from tasks import files
from tasks.records import Project
from tests.small_project import here, wait_until


def test_slots_follow_from_the_clock_in_utc() -> None:
    nightly = Schedule("shoes", cron="0 3 * * *", pool="team")
    found = nightly.last_due(datetime(2026, 11, 28, 2, 59, tzinfo=UTC))
    assert found == datetime(2026, 11, 27, 3, 0, tzinfo=UTC)
    assert nightly.served and "03:00 UTC (0 3 * * *), by the work pool team" in nightly.line()
    assert Schedule("shoes", minutes=5, pool="x").last_due(datetime.now(UTC)) is None


def test_a_schedule_that_nothing_serves_is_told(project: Project) -> None:
    import os

    own = Schedule("shoes", minutes=5, pid=os.getpid(), started=started_at(os.getpid()))
    assert own.served and f"every 5 minutes, by process {os.getpid()}" in own.line()
    dead = Schedule("shoes", minutes=5, pid=os.getpid(), started=1.0)
    assert not dead.served and "nothing serves it now" in dead.line()
    assert Schedule.read(project) is None
    files.write_json(project.scratch / "schedule.json", {"name": "x", "unknown": 1})
    assert Schedule.read(project) is None


@pytest.mark.parametrize("cron", ["0 3 * *", "61 3 * * *", "nightly"])
def test_what_is_no_schedule_is_refused_with_an_example(project: Project, cron: str) -> None:
    done = here(project, "schedule", "--cron", cron)
    assert done.returncode == 1 and "is no schedule" in done.stderr
    assert "'0 3 * * *' for 3 o'clock UTC" in done.stderr


def test_without_a_server_it_says_how_to_start_one(project: Project) -> None:
    done = here(project, "schedule")
    assert done.returncode == 1 and "thawline ui" in done.stderr
    both = here(project, "schedule", "--cron", "0 3 * * *", "--every", "5")
    assert both.returncode == 2
    assert "schedule" not in json.loads(here(project, "status", "--json").stdout)


def test_data_that_has_come_and_holds_still_is_noticed_once(project: Project) -> None:
    seen: list[str] = []
    raw = project.root / "data/raw.txt"
    with watch.watching(project, 0.1, seen.append):
        wait_until(lambda: bool(seen), 10)
        for number in range(6):  # still being written
            raw.write_text(f"{number}\n" * (number + 1))
            time.sleep(0.05)
        wait_until(lambda: len(seen) == 2, 10)
        time.sleep(0.5)
        assert len(seen) == 2 and seen[1] == watch.fingerprint(project)
        raw.unlink()
        time.sleep(0.5)
        raw.write_text("back\n")
        wait_until(lambda: len(seen) == 3, 10)


def test_a_fingerprint_sees_files_in_folders(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    text = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(text.replace("data/raw.txt", str(folder)))
    before = watch.fingerprint(project)
    (folder / "a/1.png").write_bytes(b"x")
    assert watch.fingerprint(project) != before
