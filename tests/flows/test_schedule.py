"""When to retrain: slots, what was missed, and data that comes in."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect import get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.states import Cancelled, Completed, Crashed, Failed, Scheduled
from rich.console import Console

from flows import flow_runs, orphans, schedule, scheduled, watch
from flows.process import started_at
from flows.schedule import Schedule
from tasks import files, params_file, promotion
from tasks.claim import Claim
from tasks.errors import ThawlineError
from tasks.ledger import SKIPPED
from tasks.records import Project
from tests.small_project import here, wait_until
from tests.tasks import trained_project


def test_slots_follow_from_the_clock_in_utc() -> None:
    nightly = Schedule("shoes", cron="0 3 * * *", pool="team")
    night, now = (datetime(2026, 11, day, 3, 0, tzinfo=UTC) for day in (27, 28))
    now -= timedelta(minutes=1)
    assert nightly.missed(night - timedelta(days=2), now) == night
    assert nightly.missed(night, now) is None
    assert nightly.served and "03:00 UTC (0 3 * * *), by the work pool team" in nightly.line()
    often, step = Schedule("shoes", minutes=5, pool="x"), timedelta(minutes=5)
    assert often.missed(night, night + 2.5 * step) == night + 2 * step
    assert often.missed(night, night + 0.9 * step) is None
    assert Schedule("shoes", watch=1).missed(night, now) is None


def test_slots_are_promised_since_the_same_ones_were_first_served() -> None:
    now, before = datetime(2026, 11, 28, tzinfo=UTC), "2026-11-01T00:00:00+00:00"
    former = Schedule("shoes", cron="0 3 * * *", pid=1, started=1.0, since=before)
    assert replace(former, watch=5.0, since="").promised(former, now) == before
    for other in (None, replace(former, cron="0 4 * * *"), replace(former, since="")):
        assert former.promised(other, now) == now.isoformat()


def test_a_schedule_that_nothing_serves_is_told(project: Project) -> None:
    import os

    own = Schedule("shoes", minutes=5, pid=os.getpid(), started=started_at(os.getpid()))
    assert own.served and f"every 5 minutes, by process {os.getpid()}" in own.line()
    now = datetime.now(UTC)
    line = replace(own, since=(now - timedelta(minutes=7)).isoformat()).line()
    assert f"next slot {now + timedelta(minutes=3):%Y-%m-%d %H:%M} UTC (every 5 minutes)" in line
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
    dropped = here(project, "schedule", "--pool", "team", "--watch", "5")
    assert dropped.returncode == 2 and "leave out --pool" in " ".join(dropped.stderr.split())
    assert "schedule" not in json.loads(here(project, "status", "--json").stdout)


@dataclass(frozen=True)
class Deployed:
    """A deployment on a real server, and a project whose ledger is empty."""

    project: Project
    identity: Any
    client: Any

    def catch_up(self, process: float, **known: Any) -> None:
        params = params_file.load(self.project.root)
        served = Schedule("shoes", pid=1, started=process, **known)
        schedule._catch_up(self.project, params, served, self.identity, Console(quiet=True))

    def slots(self) -> list[str]:
        found = {"deployment_id": {"any_": [self.identity]}}
        runs = self.client.read_flow_runs(flow_run_filter=FlowRunFilter.model_validate(found))
        return [run.parameters["slot"] for run in runs]


@pytest.fixture
def deployed(
    project: Project, at_server: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Deployed]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    trained_project.with_store(project.root)
    identity = schedule._deployment(project, Schedule("shoes")).apply()
    with get_client(sync_client=True) as client:
        yield Deployed(project, identity, client)
        client.delete_deployment(identity)


def test_a_deployment_of_another_project_or_machine_is_not_taken_over(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Schedule("shoes")
    schedule._require_ours(deployed.project, own, None)
    schedule._require_ours(deployed.project, Schedule("boots"), None)
    other = Project(deployed.project.root / "other")
    told = f"of the project in {deployed.project.root} on .*--name shoes-2.*deployment delete"
    with pytest.raises(ThawlineError, match=told):
        schedule._require_ours(other, own, own)
    monkeypatch.setattr("platform.node", lambda: "elsewhere")
    for wanted in (own, Schedule("shoes", pool="team")):
        with pytest.raises(ThawlineError, match="--name shoes-2"):
            schedule._require_ours(deployed.project, wanted, Schedule("boots"))
        schedule._require_ours(deployed.project, wanted, own)  # served from here under another name


def test_a_missed_slot_is_caught_up_once(deployed: Deployed) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=3)
    nightly = {"cron": "0 3 * * *", "since": datetime.now(UTC).isoformat()}
    deployed.catch_up(1.0, **nightly)
    assert deployed.slots() == []  # none was promised yet
    nightly["since"] = long_ago.isoformat()
    for _ in range(2):
        deployed.catch_up(1.0, **nightly)
    [slot] = deployed.slots()
    assert datetime.now(UTC) - datetime.fromisoformat(slot) < timedelta(days=1)
    deployed.catch_up(2.0, **nightly)
    assert deployed.slots() == [slot, slot]  # the first may have died with its process

    params = params_file.load(deployed.project.root)
    ended = Claim("deployment shoes", slot, "data", "params", str(deployed.project.root))
    promotion.claim(deployed.project, params, SKIPPED, ended, {}, "nothing new")
    deployed.catch_up(3.0, **nightly)
    assert len(deployed.slots()) == 2
    deployed.catch_up(3.0, minutes=0.001)  # since the slot that came to an end
    assert len(deployed.slots()) == 3


def test_a_slot_gives_way_to_a_later_one_that_is_not_lost(
    deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime.now(UTC).replace(microsecond=0)
    own, later = now - timedelta(hours=3), now - timedelta(hours=1)
    monkeypatch.setenv("PREFECT__RUNTIME__DEPLOYMENT__ID", str(deployed.identity))

    def add(**parameters: str) -> Any:
        return deployed.client.create_flow_run_from_deployment(
            deployed.identity, parameters=parameters, state=Scheduled(scheduled_time=later)
        )

    add(slot=own.isoformat())  # another that catches up the same one: the claim decides
    assert scheduled._later_slot(own.isoformat()) is None
    run = add()
    assert scheduled._later_slot(own.isoformat()) == f"{later:%Y-%m-%dT%H:%M:%SZ}"
    assert scheduled._later_slot(later.isoformat()) is None
    for lost in (Crashed(), Cancelled(), Failed()):
        deployed.client.set_flow_run_state(run.id, lost, force=True)
        assert scheduled._later_slot(own.isoformat()) is None
    deployed.client.set_flow_run_state(run.id, Completed(), force=True)
    assert scheduled._later_slot(own.isoformat()) is not None


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
        was = watch.fingerprint(project)
        assert len(seen) == 2 and seen[1].startswith(was)
        times = raw.stat().st_mtime_ns
        kept = raw.rename(raw.with_name("kept.txt"))
        time.sleep(0.5)
        raw.write_text("other\n")
        wait_until(lambda: len(seen) == 3, 10)
        kept.replace(raw)  # back to what it was, with its time: it has come once more
        assert raw.stat().st_mtime_ns == times and watch.fingerprint(project) == was
        wait_until(lambda: len(seen) == 4, 10)
        assert seen[3].startswith(was) and seen[3] != seen[1]


def test_a_fingerprint_sees_files_in_folders(project: Project, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    (folder / "a").mkdir(parents=True)
    text = (project.root / "params.yaml").read_text()
    (project.root / "params.yaml").write_text(text.replace("data/raw.txt", str(folder)))
    before = watch.fingerprint(project)
    (folder / "a/1.png").write_bytes(b"x")
    assert watch.fingerprint(project) != before


KILLED = """\
import os
from pathlib import Path
from flows import flow_runs
from tasks.records import Project
with flow_runs.carried(Project(Path({root!r})), {identity!r}):
    os.kill(os.getpid(), 9)
"""


def test_a_run_that_died_with_its_worker_counts_as_crashed(deployed: Deployed) -> None:
    def run() -> str:
        return str(deployed.client.create_flow_run_from_deployment(deployed.identity).id)

    def state(identity: str) -> Any:
        return deployed.client.read_flow_run(identity).state

    project, dead, alive, gone = deployed.project, run(), run(), str(uuid4())
    with flow_runs.carried(project, alive):
        for identity in (dead, gone):
            script = KILLED.format(root=str(project.root), identity=identity)
            subprocess.run([sys.executable, "-c", script])
        lost = {orphan.found for orphan in orphans.found(project) if orphan.kind == "flow run"}
        assert len(lost) == 2 and any(dead in found for found in lost)
        assert set(flow_runs.close_lost(project)) == {dead, gone}
        assert state(dead).is_crashed() and state(alive).is_scheduled()
        assert "promote --approve" in state(dead).message
        assert flow_runs.close_lost(project) == []
    assert flow_runs.lost(project) == []
