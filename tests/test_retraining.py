"""Retraining from end to end: by hand, by data that comes in, by a schedule."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from flows import past, retrain, ui
from flows.process import end_group
from tasks import claim, files, params_file, promotion
from tasks.ledger import BEGUN, KEPT, PROMOTION
from tasks.records import Project
from tests import small_project as small
from tests.small_project import CLASSES
from tests.tasks import trained_project

OFTEN = {"PREFECT_RUNNER_POLL_FREQUENCY": "1"}  # seconds between two looks for what is due


@dataclass(frozen=True)
class First:
    project: Project  # with a champion
    grown: Path  # its data with images added


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, server: dict[str, str]) -> First:
    folder = tmp_path_factory.mktemp("retraining")
    data, grown = small.draw(folder)
    project = small.new(folder / "project", data)
    params_file.set_values(project.root, ["embed.backbones=[mobilenet_v2]"])
    trained_project.with_store(project.root)
    small.run(project, **server)
    small.commit(project)
    return First(project, grown)


def test_retraining_decides_judges_and_records_in_a_dirty_tree(
    first: First, server: dict[str, str], tmp_path: Path
) -> None:
    copy = Project(tmp_path / "copy")
    shutil.copytree(first.project.root, copy.root, symlinks=True)
    assert small.here(copy, "retrain").stdout == "Skip: nothing new.\n"
    weights = small.digests(copy)
    params_file.set_values(copy.root, [f"prepare.data={json.dumps(str(first.grown))}"])
    tells_what_came_in(json.loads(small.here(copy, "changes", "--json").stdout))
    assert small.digests(copy) == weights  # nothing after the features ran

    params_file.set_values(copy.root, ["retrain.min_examples=1", "retrain.min_new=0.01"])
    (copy.root / "notes.txt").write_text("not committed\n")
    known = small.git(copy.root, "rev-parse", "HEAD")
    remote = tmp_path / "remote"
    small.succeed(copy.root, "dvc", "remote", "add", "--default", "store", str(remote))
    small.git(copy.root, "branch", "thawline")  # no branch can lie below another
    refused = small.call(copy.root, "thawline", "retrain", **server)
    assert refused.returncode == 1 and "'thawline/data' (retrain.branch) did not" in refused.stderr
    small.git(copy.root, "branch", "--delete", "thawline")
    done = small.call(copy.root, "thawline", "retrain", "--json", **server)
    assert done.returncode == 0, done.stderr
    assert "Retrain (about " in done.stderr
    assert "It goes on from clothes version 1, as examples were only added." in done.stderr
    made = json.loads(done.stdout)
    assert made["outcome"] in ("kept", "promoted")
    assert made["advice"]["changes"]["found"]["added"] == 2 * small.MORE
    judged = {rule["name"]: rule for rule in made["decision"]["gate"]["verdict"]["rules"]}
    before, after = (pd.read_parquet(x.manifest) for x in (first.project, copy))
    tests = [set(frame.loc[frame["split"] == "test", "id"]) for frame in (before, after)]
    numbers = judged["same_test"]["numbers"]
    assert numbers["examples"] == len(tests[0] | tests[1])
    assert numbers["newest"] == len(tests[1] - tests[0])

    champion = files.read_json(first.project.models / "digests.json")["model_digest"]
    gone_on = {"model": "clothes", "version": 1, "digest": champion}
    assert files.read_json(copy.models / "model.json")["warm_start"] == gone_on
    assert len(pd.read_csv(copy.train / "history.csv")) == 1 + 2  # the start, and two epochs
    assert "went on from clothes version 1" in (copy.models / "README.md").read_text()
    assert "<dt>Went on from</dt><dd>clothes version 1, in 2 epochs" in (
        copy.reports / "report.html"
    ).read_text(encoding="utf-8")

    assert small.git(copy.root, "rev-parse", "HEAD") == known
    assert "?? notes.txt" in small.git(copy.root, "status", "--porcelain")
    recorded = small.git(copy.root, "show", f"{made['commit']}:./dvc.lock")
    assert recorded == (copy.root / "dvc.lock").read_text()
    standing = json.loads(small.here(copy, "status", "--json").stdout)["registry"]["ledger"]
    assert [entry["kind"] for entry in standing["last"]][1:4] == [
        "retraining",
        "retraining",  # to which git said no: nothing was decided
        "not retrained",
    ]
    evidence = standing["last"][0]["evidence"]
    assert evidence["retraining"]["deployment"] == "by hand" and evidence["retraining"]["data"]
    assert evidence["warm_start"] == "version 1"
    for each in (first.project, copy):  # the champion's, and what it was challenged with
        digest = past.hashes((each.root / "dvc.lock").read_bytes())[past.PREPARED]
        assert (remote / "files/md5" / digest[:2] / digest[2:]).is_file()
    if made["outcome"] == "kept":
        assert "was judged before" in small.here(copy, "retrain").stdout
    params = params_file.load(copy.root)
    promotion.claim(copy, params, BEGUN, retrain._claim(copy, retrain.Trigger()), {}, "killed")
    assert "Skip" not in small.here(copy, "retrain").stdout  # it is taken up again
    assert promotion.entries(copy, params)[-1].kind == KEPT


def tells_what_came_in(advice: dict[str, Any]) -> None:
    """What came in since the champion was trained, and that it is too little to train for."""
    found, made = advice["changes"], advice["decision"]
    assert found["found"] == {"added": 2 * small.MORE, "removed": 0, "relabelled": 0, "moved": 0}
    assert {row["label"] for row in found["counts"]} == set(list(CLASSES.values())[:2])
    in_test = found["test"]["added"]
    assert found["to_learn"]["added"] == 2 * small.MORE - in_test
    assert found["test"]["same"] == (in_test == 0)
    assert made["verdict"] == "skip" and "retrain.min_examples" in made["reasons"][0]
    assert made["seconds"] > 0


@contextlib.contextmanager
def running(project: Project, *command: str, ready: str) -> Iterator[str]:
    """A command in the background, from the line that says that it is ready until Ctrl-C."""
    log = project.root / "logs" / f"{command[0]}-test.log"
    with log.open("w") as out:
        process = subprocess.Popen(
            ["thawline", *command], cwd=project.root, env=small.environment(**OFTEN), stdout=out,
            stderr=out, start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )  # fmt: skip
    try:
        small.wait_until(lambda: ready in log.read_text(), 120)
        yield next(line for line in log.read_text().splitlines() if ready in line)
    finally:
        end_group(process, grace=30)


def ask(address: str, path: str, tries: int = 5, **body: Any) -> Any:
    """Prefect's API; asked again where its database was busy, as Prefect's own client does."""
    request = urllib.request.Request(f"{address}/api/{path}", json.dumps(body).encode())
    request.add_header("Content-Type", "application/json")
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code != 503 or tries == 1:
            raise
    time.sleep(3)
    return ask(address, path, tries - 1, **body)


def test_data_that_comes_in_starts_a_retraining_and_a_missed_slot_gives_way(
    first: First, pages: tuple[Project, str, str], tmp_path: Path
) -> None:
    copy, data, address = Project(tmp_path / "copy"), tmp_path / "data", pages[1]
    shutil.copytree(first.project.root, copy.root, symlinks=True)
    shutil.copytree(params_file.load(copy.root).prepare.data, data)
    params_file.set_values(copy.root, [f"prepare.data={json.dumps(str(data))}"])
    note = ui._server_file(copy)  # as if these pages were its own
    files.write_json(note, files.read_json(ui._server_file(pages[0])))
    with running(copy, "schedule", "--watch", "1", ready="deployment retrain/clothes"):
        shutil.copy(first.grown / "包/0新0.png", data / "包/新.png")

        def runs() -> dict[str, str]:
            found = ask(address, "flow_runs/filter", flows={"name": {"any_": ["retrain"]}})
            return {run["id"]: (run["state"] or {}).get("message") or "" for run in found}

        small.wait_until(lambda: any("Skip: only 1" in text for text in runs().values()), 240)
        [deployment] = ask(address, "deployments/filter")
        here, made = f"deployments/{deployment['id']}/create_flow_run", []
        for hours in (3, 1):
            slot = (datetime.now(UTC) - timedelta(hours=hours)).isoformat()
            state = {"type": "SCHEDULED", "state_details": {"scheduled_time": slot}}
            made.append(ask(address, here, state=state)["id"])
        small.wait_until(lambda: all(runs()[each] for each in made), 240)
        missed, caught_up = (runs()[each] for each in made)
        assert "left to the later slot" in missed
        assert "Skip: " in caught_up or "left to the later slot" in caught_up
    told = json.loads(small.here(copy, "status", "--json").stdout)
    assert not told["schedule"]["served"] and "nothing serves it" in told["schedule"]["line"]
    last = told["registry"]["ledger"]["last"]
    assert {entry["evidence"]["retraining"]["deployment"] for entry in last[:1]} == {
        "deployment clothes"
    }


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_killed_retraining_leaves_no_process_and_is_taken_up_again(
    first: First, tmp_path: Path
) -> None:
    copy = Project(tmp_path / "copy")
    shutil.copytree(first.project.root, copy.root, symlinks=True)
    changed = [f"prepare.data={json.dumps(str(first.grown))}", "retrain.min_examples=1"]
    params_file.set_values(copy.root, [*changed, "train.checkpoint_seconds=0", "train.epochs=12"])

    def steps() -> list[int]:
        marks = copy.scratch.glob("checkpoints/*/step-*.json")
        return [int(mark.stem.removeprefix("step-")) for mark in marks]

    old = set(steps())
    with running(copy, "ui", ready="Prefect: ") as told:
        address = told.split()[1]

        def states() -> list[str]:
            found = ask(address, "flow_runs/filter", flows={"name": {"any_": ["retrain"]}})
            return sorted(run["state"]["type"] for run in found)

        with running(copy, "schedule", "--watch", "1", ready="deployment retrain/clothes"):
            small.wait_until(lambda: bool(set(steps()) - old), 400)
            serving = files.read_json(copy.scratch / "schedule.json")["pid"]
            servers = {process.pid for process in small.processes_in(copy)} - family(serving)
            os.kill(serving, signal.SIGKILL)
            small.wait_until(
                lambda: {process.pid for process in small.processes_in(copy)} <= servers, 30
            )
        assert states() == ["RUNNING"]
        with running(copy, "schedule", "--watch", "1", ready="deployment retrain/clothes"):
            small.wait_until(lambda: states() == ["COMPLETED", "CRASHED"], 600)
    assert files.read_json(copy.models / "run.json")["resumed_from_step"] > 0
    told = json.loads(small.here(copy, "status", "--json").stdout)["registry"]["ledger"]
    kinds = [entry["kind"] for entry in told["last"]][:3]
    assert kinds[0] in ("kept", "promotion") and kinds[1:] == ["retraining", "retraining"]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_of_fifty_that_ask_prefect_for_one_slot_one_does_it(
    first: First, pages: tuple[Project, str, str], tmp_path: Path
) -> None:
    copy, address = Project(tmp_path / "copy"), pages[1]
    shutil.copytree(first.project.root, copy.root, symlinks=True)
    changed = [f"prepare.data={json.dumps(str(first.grown))}", "retrain.min_examples=1"]
    params_file.set_values(copy.root, changed)
    files.write_json(ui._server_file(copy), files.read_json(ui._server_file(pages[0])))
    slot, never = datetime.now(UTC).isoformat(timespec="seconds"), "0 0 29 2 *"
    command = ("schedule", "--cron", never, "--name", "fifty")
    with running(copy, *command, ready="deployment retrain/fifty"):
        name = {"deployments": {"name": {"any_": ["fifty"]}}}
        [deployment] = ask(address, "deployments/filter", **name)
        for _ in range(5):  # ten at a time, as each is a process
            here = f"deployments/{deployment['id']}/create_flow_run"
            made = [ask(address, here, parameters={"slot": slot})["id"] for _ in range(10)]

            def ended(made: list[str] = made) -> bool:
                found = ask(address, "flow_runs/filter", flow_runs={"id": {"any_": made}})
                return all(run["state"]["type"] == "COMPLETED" for run in found)

            small.wait_until(ended, 400)
    params = params_file.load(copy.root)
    claims = [e for e in promotion.entries(copy, params) if claim.KEY in e.evidence]
    assert [entry.kind == BEGUN for entry in claims] == [True, False]  # begun and ended, once


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_a_killed_prefect_server_costs_no_retraining(first: First, tmp_path: Path) -> None:
    copy = Project(tmp_path / "copy")
    shutil.copytree(first.project.root, copy.root, symlinks=True)
    changed = [f"prepare.data={json.dumps(str(first.grown))}", "retrain.min_examples=1"]
    params_file.set_values(copy.root, [*changed, "train.checkpoint_seconds=0", "train.epochs=12"])
    ports = ("--prefect-port", "4291", "--mlflow-port", "4292")

    def steps() -> set[str]:
        return {mark.name for mark in copy.scratch.glob("checkpoints/*/step-*.json")}

    def kinds() -> list[str]:
        return [entry.kind for entry in promotion.entries(copy, params_file.load(copy.root))]

    old, before = steps(), len(kinds())
    with running(copy, "ui", *ports, ready="Prefect: ") as told:
        address = told.split()[1]
        with running(copy, "schedule", "--watch", "1", ready="deployment retrain/clothes"):
            small.wait_until(lambda: bool(steps() - old), 400)
            os.killpg(files.read_json(ui._server_file(copy))["pid"], signal.SIGKILL)
            with running(copy, "ui", *ports, ready="Prefect: "):
                small.wait_until(lambda: kinds()[-1] in (KEPT, PROMOTION), 600)

                def states() -> list[str]:
                    found = ask(address, "flow_runs/filter", flows={"name": {"any_": ["retrain"]}})
                    return sorted(run["state"]["type"] for run in found)

                small.wait_until(lambda: "RUNNING" not in states(), 120)
    assert len(kinds()) <= before + 3  # begun, perhaps once more, and ended
    assert not list(small.processes_in(copy))
    assert small.here(copy, "retrain").stdout.startswith("Skip: ")


def family(pid: int) -> set[int]:
    """A process and all that it has started."""
    parent = psutil.Process(pid)
    return {pid, *(child.pid for child in parent.children(recursive=True))}
