from __future__ import annotations

import os
import time
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tasks import files, garbage, trainings
from tasks.records import Project
from tasks.tracking import spool

HASHES = [f"{n:032x}" for n in range(12)]


@st.composite
def caches(draw: st.DrawFn) -> tuple[list[str], dict[str, list[str]], set[str]]:
    """Objects, what the folders among them list (perhaps what is not there), what is named."""
    some = draw(st.sets(st.sampled_from(HASHES)))
    folders = draw(st.sets(st.sampled_from(sorted(some)))) if some else set()
    files = [h for h in HASHES if h not in folders]  # no file has the hash of a folder
    listed = st.lists(st.sampled_from(files), unique=True) if files else st.just([])
    members = {f"{h}.dir": draw(listed) for h in sorted(folders)}
    objects = [h for h in some if h not in folders] + list(members)
    return objects, members, draw(st.sets(st.sampled_from(HASHES)))


@given(caches())
def test_exactly_what_nothing_names_goes_and_folders_go_first(
    cache: tuple[list[str], dict[str, list[str]], set[str]],
) -> None:
    objects, members, named = cache
    gone = garbage.unneeded(objects, members, named)
    for oid in objects:
        bare = oid.removesuffix(".dir")
        listed = any(bare in members[f] for f in members if f.removesuffix(".dir") in named)
        assert (oid in gone) == (bare not in named and not listed)
    # whenever a kill comes, what is there of folders has all the files that it had
    for done in range(len(gone) + 1):
        left = set(objects) - set(gone[:done])
        for folder in left & set(members):
            assert {m for m in members[folder] if m in objects} <= left


def test_hashes_are_read_whatever_the_text_is_otherwise() -> None:
    one, other = "d3b07384d113edec49eaa6238ad5ff00", "0" * 32
    text = f"<<<<<<< HEAD\n  md5: {one}.dir\n=======\n{{'a': \"{other.upper()}\"\n"
    assert garbage.named(text) == {one, other}
    assert garbage.named("a" * 64) == set()  # a sha256


def old(path: Path, seconds: float) -> Path:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_leftovers_are_old_and_ours(tmp_path: Path) -> None:
    project = Project(tmp_path)
    left = old(project.scratch / "stages/.train.json.ab12_xyz", 2 * garbage.LEFTOVER_AGE)
    old(project.scratch / "stages/.freeze.json.ab12_xyz", 10)  # a stage may be at work
    old(tmp_path / "data/.raw.ab12_xyz", 2 * garbage.LEFTOVER_AGE)  # may be the user's
    old(project.scratch / "looks/abc.json", 1e9)
    for name in ("probe-abcdefgh", "probe-12345678"):
        old(project.scratch / name / "data/x.npy", 2 * garbage.LEFTOVER_AGE)
        old(project.scratch / name / "data", 2 * garbage.LEFTOVER_AGE)
        old(project.scratch / name, 2 * garbage.LEFTOVER_AGE)
    old(project.scratch / "probe-12345678/data/x.npy", 10)
    assert list(garbage.leftovers(project)) == [project.scratch / "probe-abcdefgh", left]


def test_logs_go_after_a_month_but_for_that_of_the_last_run(tmp_path: Path) -> None:
    month = 1.1 * garbage.LOG_AGE
    gone = old(tmp_path / "logs/run-1.log", month)
    old(tmp_path / "logs/run-2.log", month)
    old(tmp_path / "logs/run-3.log", 10)
    assert garbage.old_logs(Project(tmp_path), "logs/run-2.log") == [gone]


def training(project: Project, key: str, end: str | None, age: float) -> Path:
    folder = trainings.folder(project) / f"id-{key}"
    files.write_json(folder / "run_key.json", {"run_key": key})
    for name in ("step-000000008.json", "step-000000008.safetensors", "step-000000012.json"):
        (folder / name).write_text("{}")
    header = spool.Header("e", key, {}, {})
    opened = spool.Spool.open(project, key, header)
    opened.extend([{"key": "loss", "value": 1.0, "step": 8, "timestamp_ms": spool.now_ms()}])
    if end is not None:
        opened.end(end)
    old(folder, age)
    return folder


def test_checkpoints_stay_until_the_result_is_here(tmp_path: Path) -> None:
    project = Project(tmp_path)
    done = training(project, "done", "FINISHED", 400)
    training(project, "failed", "FAILED", 300)
    training(project, "killed", None, 200)
    newest = training(project, "newest", "FINISHED", 100)
    assert garbage.finished_checkpoints(project) == [done]  # a kill before its results?
    files.write_json(project.train / "run.json", {"run_key": "newest"})
    assert garbage.finished_checkpoints(project) == [newest, done]
    known = {t.run_key: (t.step, t.status) for t in trainings.found(project)}
    assert known["killed"] == (8, None)  # of step 12 only the mark is there
    assert known["failed"] == (8, "FAILED")
