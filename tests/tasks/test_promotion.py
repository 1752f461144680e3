"""Promotion and rollback: what is promoted, refused, undone; races and kills of real processes."""

from __future__ import annotations

import itertools
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks import ledger
from tasks.desk import Desk
from tasks.errors import ThawlineError
from tasks.ledger import BrokenChain, Entry, Ledger
from tasks.promotion import NOBODY, keep, promote, rollback
from tasks.records import Project
from tasks.tracking import lock, registry, store
from tests.tasks import trained_project
from tests.tasks.rivals import COMMANDS, PARAMS, PROCESSES, aliases, command_that_dies, race


@pytest.fixture(autouse=True)
def _embedded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def make(root: Path, versions: int) -> Project:
    """A project whose registry holds versions of the model `shoes`, without aliases."""
    project = trained_project.with_store(root)
    with store.connect(root) as client:
        client.create_registered_model("shoes")
        for number in range(1, versions + 1):
            tags = {"mlflow.source.git.commit": f"{number:040}", "dvc.models": f"{number}.dir"}
            client.create_model_version("shoes", f"models/{number}", tags=tags)
    return project


@pytest.fixture
def project(tmp_path: Path) -> Project:
    """Version 1 of four is champion."""
    project = make(tmp_path / "project", 4)
    promote(project, PARAMS, "1", {"rules": []}, expected=NOBODY)
    return project


def set_alias(project: Project, alias: str, version: int | None) -> None:
    with store.connect(project.root) as client:
        registry.point(client, "shoes", alias, version)


def entries(project: Project) -> list[Entry]:
    with store.connect(project.root) as client:
        return Ledger(client, project, "shoes").read()


def story(project: Project) -> list[tuple[str, int | None, int | None]]:
    return [(entry.kind, entry.from_version, entry.to_version) for entry in entries(project)]


def test_a_promotion_moves_the_aliases_and_is_written_down(project: Project) -> None:
    set_alias(project, "challenger", 2)
    evidence = {"verdict": "promote", "rules": [{"name": "gain", "value": 0.021, "passed": True}]}
    made = promote(project, PARAMS, "challenger", evidence, expected=1, reason="新しい data")
    assert aliases(project) == {"champion": 2, "previous": 1, "challenger": 2}
    last = entries(project)[-1]
    assert (last.kind, last.from_version, last.to_version) == ("promotion", 1, 2)
    assert (last.evidence, last.reason) == (evidence, "新しい data")
    assert (last.commit, last.hashes) == (f"{2:040}", {"models": "2.dir"})
    assert "@" in last.who
    assert (made.entry, made.commit, made.hashes) == (last.number, last.commit, last.hashes)
    lines = (project.root / "ledger/shoes.jsonl").read_text().splitlines()
    assert [json.loads(line)["number"] for line in lines] == [1, 2]

    again = promote(project, PARAMS, "2", {}, expected=1)
    assert (again.kind, again.entry, len(entries(project))) == ("unchanged", None, 2)


def test_evidence_against_another_champion_is_refused(project: Project) -> None:
    promote(project, PARAMS, "2", {}, expected=1)
    with pytest.raises(ThawlineError, match="is version 2, where version 1 was expected"):
        promote(project, PARAMS, "3", {}, expected=1)
    with pytest.raises(ThawlineError, match="where none was expected"):
        promote(project, PARAMS, "3", {}, expected=NOBODY)
    with pytest.raises(ThawlineError, match="has no version 9"):
        promote(project, PARAMS, "9", {})
    assert aliases(project) == {"champion": 2, "previous": 1}
    assert len(entries(project)) == 2


def test_what_is_kept_is_written_down_too(project: Project) -> None:
    made = keep(project, PARAMS, 3, {"verdict": "undecided", "examples": 400})
    last = entries(project)[-1]
    assert (made.kind, last.from_version, last.to_version) == ("kept", 1, 1)
    assert last.evidence == {"challenger": 3, "verdict": "undecided", "examples": 400}
    assert last.commit == f"{3:040}"
    assert aliases(project) == {"champion": 1}


def test_rollbacks_go_back_one_by_one_until_there_is_nothing(project: Project) -> None:
    with pytest.raises(ThawlineError, match="no champion of 'shoes' to go back to"):
        rollback(project, PARAMS)
    for number in ("2", "3", "4"):
        promote(project, PARAMS, number, {})
    made = rollback(project, PARAMS, reason="complaints")
    assert (made.from_version, made.to_version) == (4, 3)
    assert (made.commit, made.hashes) == (f"{3:040}", {"models": "3.dir"})
    assert aliases(project) == {"champion": 3, "previous": 2}
    rollback(project, PARAMS)
    rollback(project, PARAMS)
    assert aliases(project) == {"champion": 1}
    with pytest.raises(ThawlineError, match=r"earlier champions: 2, 3, 4\); name a version"):
        rollback(project, PARAMS)
    rollback(project, PARAMS, to=3)
    assert rollback(project, PARAMS, to=3).kind == "unchanged"
    assert aliases(project) == {"champion": 3, "previous": 1}
    promote(project, PARAMS, "2", {})
    assert aliases(project) == {"champion": 2, "previous": 3}


def test_a_rollback_goes_to_an_earlier_champion_that_is_there(project: Project) -> None:
    for number in ("2", "3", "4"):
        promote(project, PARAMS, number, {})
    with store.connect(project.root) as client:
        client.delete_model_version("shoes", "3")
        client.delete_model_version("shoes", "1")
    rollback(project, PARAMS)
    assert aliases(project) == {"champion": 2}
    with pytest.raises(ThawlineError, match="no champion of 'shoes' to go back to"):
        rollback(project, PARAMS)
    with pytest.raises(ThawlineError, match="no version 3"):
        rollback(project, PARAMS, to=3)
    with pytest.raises(ThawlineError, match="version 9 of 'shoes' was never champion"):
        rollback(project, PARAMS, to=9)


def test_a_champion_moved_by_hand_is_told_recorded_and_left(project: Project) -> None:
    set_alias(project, "champion", 2)
    with pytest.raises(ThawlineError, match=r"from version 1 to 2; that is left so \(recorded"):
        promote(project, PARAMS, "3", {})
    assert aliases(project) == {"champion": 2, "previous": 1}
    assert story(project)[-1] == ("moved by hand", 1, 2)
    promote(project, PARAMS, "3", {})  # told once
    set_alias(project, "champion", None)
    made = promote(project, PARAMS, "4", {}, expected=NOBODY)  # knew of it
    assert made.noticed == [
        "somebody else removed the alias 'champion' of 'shoes'; that is left so"
    ]
    assert story(project)[-2:] == [("moved by hand", 3, None), ("promotion", None, 4)]
    set_alias(project, "champion", 1)
    with pytest.raises(ThawlineError, match="is version 1, where version 4 was expected"):
        promote(project, PARAMS, "2", {}, expected=4)
    assert aliases(project)["champion"] == 1


def test_a_previous_moved_by_hand_is_where_a_rollback_goes(project: Project) -> None:
    promote(project, PARAMS, "2", {})
    set_alias(project, "previous", 3)
    with pytest.raises(ThawlineError, match="moved the alias 'previous'"):
        rollback(project, PARAMS)
    assert aliases(project) == {"champion": 2, "previous": 3}
    rollback(project, PARAMS)
    assert aliases(project) == {"champion": 3}


def test_a_champion_from_before_the_ledger_is_found(tmp_path: Path) -> None:
    project = make(tmp_path / "project", 2)
    set_alias(project, "champion", 1)
    promote(project, PARAMS, "2", {}, expected=1)
    assert story(project) == [("found", None, 1), ("promotion", 1, 2)]
    rollback(project, PARAMS)
    assert aliases(project) == {"champion": 1}


def test_a_copy_that_was_torn_lost_or_is_another_machines_is_mended(project: Project) -> None:
    promote(project, PARAMS, "2", {})
    path = project.root / "ledger/shoes.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    assert len(entries(project)) == 2
    assert path.read_bytes() == whole
    path.unlink()
    entries(project)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("command", ["promote", "rollback"])
def test_a_changed_copy_is_told_and_nothing_is_decided(project: Project, command: str) -> None:
    promote(project, PARAMS, "2", {}, reason="good")
    path = project.root / "ledger/shoes.jsonl"
    path.write_text(path.read_text().replace('"good"', '"bad"'))
    with pytest.raises(BrokenChain, match=r"line 2 of .*shoes\.jsonl is not what was written"):
        promote(project, PARAMS, "3", {}) if command == "promote" else rollback(project, PARAMS)
    assert aliases(project) == {"champion": 2, "previous": 1}
    path.rename(path.with_suffix(".evidence"))
    rollback(project, PARAMS)
    assert aliases(project) == {"champion": 1}


def forged(entry: Entry, **changes: Any) -> str:
    """An entry as somebody would write it who knows how to seal."""
    changed = replace(entry, **changes)
    return ledger._line(replace(changed, hash=ledger._digest(changed)))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda c, e: c.set_model_version_tag("shoes.ledger", "2", ledger.ENTRY, "{}"), "is not w"),
        (
            lambda c, e: c.set_model_version_tag(
                "shoes.ledger", "2", ledger.ENTRY, ledger._line(e[1]).replace("good", "bad")
            ),
            "version 2 of the registered model 'shoes.ledger' is not what was written",
        ),
        (
            lambda c, e: c.set_model_version_tag(
                "shoes.ledger", "2", ledger.ENTRY, forged(e[1], reason="bad")
            ),
            "the entry before version 3 .* is gone",
        ),
        (
            lambda c, e: c.set_model_version_tag(
                "shoes.ledger", "3", ledger.ENTRY, forged(e[2], reason="bad")
            ),
            "entry 3 differs between",
        ),
        (lambda c, e: c.delete_model_version("shoes.ledger", "1"), "the entry before version 2"),
        (lambda c, e: c.delete_model_version("shoes.ledger", "3"), "lacks entry 3, which"),
    ],
)
def test_a_changed_ledger_in_mlflow_is_told(
    project: Project, damage: Callable[[Any, list[Entry]], None], told: str
) -> None:
    promote(project, PARAMS, "2", {}, reason="good")
    promote(project, PARAMS, "3", {})
    with store.connect(project.root) as client:
        damage(client, entries(project))
    with pytest.raises(BrokenChain, match=told):
        rollback(project, PARAMS)
    assert aliases(project)["champion"] == 3


def test_evidence_that_mlflow_cannot_hold_is_refused(project: Project) -> None:
    with pytest.raises(ThawlineError, match="leave single examples out"):
        promote(project, PARAMS, "2", {"examples": "x" * ledger.LONGEST})
    assert aliases(project) == {"champion": 1}


# Kills: each write of a decision, before and after it, in a process of its own.


AFTER = {"promote": (3, 2), "rollback": (1, None), "keep": (2, 1)}  # champion, previous


def ended(process: Any) -> int:
    process.start()
    process.join()
    return int(process.exitcode)


def check_kills(folder: Path, command: str, shared: bool, patch: pytest.MonkeyPatch) -> None:
    before = make(folder / "before", 3)
    for number in ("1", "2"):
        promote(before, PARAMS, number, {})
    after, previous = AFTER[command]
    for step in range(100):
        project = Project(shutil.copytree(before.root, folder / str(step)))
        uri = f"sqlite:///{project.root}/mlflow.db" if shared else None
        if uri:
            patch.setenv("MLFLOW_TRACKING_URI", uri)
        arguments = (project.root, command, step, uri)
        code = ended(PROCESSES.Process(target=command_that_dies, args=arguments))
        assert code in (0, -signal.SIGKILL)
        assert aliases(project)["champion"] in (2, after)  # the old or the new
        if not is_done(project):
            COMMANDS[command](project)
        assert (aliases(project)["champion"], aliases(project).get("previous")) == (after, previous)
        kinds = [entry.kind for entry in entries(project)[2:]]
        # `keep` cannot know that the entry before it was its own
        assert set(kinds) == {command.replace("promote", "promotion").replace("keep", "kept")}
        assert len(kinds) == 1 or command == "keep"
        if code == 0:
            break
    assert step >= (4 if command == "keep" else 10)  # which moves no alias


def is_done(project: Project) -> bool:
    with store.connect(project.root) as client:
        book = Ledger(client, project, "shoes")
        return len(book.read()) > 2 and book.pending is None


@pytest.mark.parametrize(("command", "shared"), [("promote", False), ("rollback", True)])
def test_a_kill_at_each_step_is_repaired_by_the_next_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, shared: bool
) -> None:
    check_kills(tmp_path, command, shared, monkeypatch)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("command", list(COMMANDS))
@pytest.mark.parametrize("shared", [False, True])
def test_a_kill_at_each_step_of_every_command_is_repaired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, shared: bool
) -> None:
    check_kills(tmp_path, command, shared, monkeypatch)


# Races: processes that want different versions, of this project or of several on one registry.


def check_race(folder: Path, rng: random.Random, count: int, shared: bool) -> None:
    project = make(folder / "project", count + 1)
    promote(project, PARAMS, "1", {})
    uri = f"sqlite:///{project.root}/mlflow.db" if shared else None
    roots = [folder / f"machine {i}" if shared else project.root for i in range(count)]
    numbers = list(range(2, count + 2))
    rng.shuffle(numbers)
    answers = PROCESSES.Queue()
    racers = []
    for root, number in zip(roots, numbers, strict=True):
        root.mkdir(exist_ok=True)
        arguments = (time.time() + 1, root, uri, number, answers)
        racers.append(PROCESSES.Process(target=race, args=arguments))
        racers[-1].start()
    seen = []
    while any(racer.is_alive() for racer in racers):
        seen.append(aliases(project).get("champion"))
        time.sleep(0.005)
    won = [answers.get(timeout=10) for _ in racers]
    assert all(isinstance(wins, int) for wins in won), won
    if shared:
        (project.root / "ledger/shoes.jsonl").unlink()  # of before the others took part
    moves = entries(project)
    assert None not in seen  # never none
    assert seen == sorted(seen)  # never a worse one
    assert aliases(project)["champion"] == count + 1
    assert sum(won) == len(moves) - 1  # no entry lost, none too many
    assert {entry.kind for entry in moves} == {"promotion"}
    for before, after in itertools.pairwise(moves):
        assert after.from_version == before.to_version == after.evidence["beats"]  # never two


@pytest.mark.parametrize("shared", [False, True])
def test_three_races(tmp_path: Path, shared: bool) -> None:
    rng = random.Random(shared)
    for number in range(3):
        check_race(tmp_path / str(number), rng, rng.randint(2, 4), shared)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_hundred_races(tmp_path: Path) -> None:
    rng = random.Random(7)
    for number in range(200):
        check_race(tmp_path / str(number), rng, rng.randint(2, 8), shared=number % 2 == 1)


# The lock that machines share.


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Any]:
    with store.connect(trained_project.with_store(tmp_path / "store").root) as client:
        yield client


def test_a_lock_of_another_machine_is_waited_for(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.5)
    other = f"{lock.MARK}elsewhere 1 x"
    client.create_registered_model("shoes.lock", description=other)
    begun = time.monotonic()
    with lock.held(client, "shoes.lock"):
        assert time.monotonic() - begun >= 0.5
        assert lock._holder(client, "shoes.lock") != other
    assert lock._holder(client, "shoes.lock") is None


def test_a_dead_process_is_known_on_the_machine_that_it_was_on_alone() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert lock._is_dead(f"{lock.MARK}{lock._machine()} {gone.pid} x")
    assert not lock._is_dead(f"{lock.MARK}{lock._machine()} {os.getpid()} x")
    # A container of another machine may have the same host name.
    assert not lock._is_dead(f"{lock.MARK}{platform.node()}/other {gone.pid} x")


def test_a_lock_that_is_freed_while_it_is_read_is_no_model_of_somebody_elses(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def freed_meanwhile(name: str) -> Any:  # MLflow reads the row first, then what hangs on it
        patch.undo()
        found = client.get_registered_model(name)
        client.delete_registered_model(name)
        found._tags = {}
        return found

    held = f"{lock.MARK}elsewhere 1 x"
    client.create_registered_model("shoes.lock", description=held)
    with monkeypatch.context() as patch:
        patch.setattr(client, "get_registered_model", freed_meanwhile)
        assert lock._holder(client, "shoes.lock") == held
    with lock.held(client, "shoes.lock"):
        pass


def test_a_model_of_the_locks_name_is_left_alone(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 0.2)
    client.create_registered_model("door.lock", description="Recognises locks of doors")
    with (
        pytest.raises(ThawlineError, match=r"'door\.lock' has the name of the lock"),
        lock.held(client, "door.lock"),
    ):
        pass
    assert client.get_registered_model("door.lock").description == "Recognises locks of doors"


def test_a_lock_whose_making_was_answered_twice_is_ours(
    client: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the first answer was lost, and MLflow's client asked again."""
    made = lock._made
    monkeypatch.setattr(lock, "_made", lambda *given: made(*given) and False)
    begun = time.monotonic()
    with lock.held(client, "shoes.lock"):
        assert time.monotonic() - begun < lock.LEASE_SECONDS / 2
    assert lock._holder(client, "shoes.lock") is None


def test_a_decision_that_was_overtaken_is_void(project: Project) -> None:
    """As when a lock was broken: two wrote after the same entry, the first counts."""
    with store.connect(project.root) as client:
        slow = Desk(client, project, "shoes")
        slow.settle()
        promote(project, PARAMS, "2", {})
        assert not slow.decide("promotion", 3, {})
        assert aliases(project) == {"champion": 2, "previous": 1}
        void = client.get_model_version("shoes.ledger", "3")
    assert void.description.startswith("void, another entry came first: promotion: champion 1 → 3")
    assert story(project)[1:] == [("promotion", 1, 2)]
    promote(project, PARAMS, "4", {})
    assert story(project)[1:] == [("promotion", 1, 2), ("promotion", 2, 4)]
