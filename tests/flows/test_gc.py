"""`thawline gc` on a project whose first version is known to the registry alone."""

from __future__ import annotations

import json
import os
import pty
import shutil
import subprocess
from pathlib import Path

import pytest
from dvc.repo import Repo
from filelock import FileLock

from flows import champion, gc, history, past, repository
from flows.new import GITIGNORE
from tasks import files, params_file, snapshot, versions
from tasks.errors import ThawlineError
from tasks.records import Project
from tasks.tracking import registry, store
from tests.flows.conftest import THAWLINE, thawline
from tests.flows.test_champion import commit, git
from tests.small_project import here
from tests.tasks import trained_project

PARAMS = f"""\
threads: 1
seed: 1
prepare: {{data: data/raw.txt}}
embed: {{backbones: [{trained_project.BACKBONE}]}}
register: {{experiment: shoes, model: shoes}}
"""
# A real run of it ends with a real registration; only what the stages would compute is there.
DVC = """\
stages:
  prepare:
    cmd: mkdir -p data/prepared && cp made/${seed}/data/prepared/* data/prepared
    deps: ["made/${seed}/data"]
    params: [seed]
    outs: [data/prepared]
  package:
    cmd: cp -r made/${seed}/models made/${seed}/outputs made/${seed}/reports .
    deps: [data/prepared, "made/${seed}/models"]
    params: [seed]
    outs: [models, outputs, reports]
"""


@pytest.fixture(scope="module")
def _two_versions(
    tmp_path_factory: pytest.TempPathFactory, pages: tuple[Project, str, str]
) -> Project:
    project = trained_project.with_store(tmp_path_factory.mktemp("gc") / "project")
    root = project.root
    git(root, "init", "--quiet")
    git(root, "config", "user.name", "Ada")
    Repo.init(str(root)).close()
    (root / ".gitignore").write_text(f"{GITIGNORE}/made/\n/outputs\n/reports\n")
    (root / "params.yaml").write_text(PARAMS)
    (root / "dvc.yaml").write_text(DVC)
    versions.write(root)
    (root / "data").mkdir()
    (root / "data/raw.txt").write_text("hello\n")
    commit(project, "before any run")
    for seed in (1, 2, 3):
        trained_project.packaged(root / f"made/{seed}", seed)
        (root / f"made/{seed}/data/prepared/labels.txt").write_text(f"{seed}\n")
    env = {"PREFECT_API_URL": f"{pages[1]}/api"}
    for seed in (1, 2):
        done = thawline(project, "run", "--set", f"seed={seed}", env=env)
        assert done.returncode == 0, done.stderr
    for seed in (3, 2):  # by DVC alone: nothing of 3 was ever registered
        params_file.set_values(root, [f"seed={seed}"])
        with repository.opened(project) as repo:
            repo.reproduce()
    commit(project, "the second model")
    return project


@pytest.fixture
def project(_two_versions: Project, tmp_path: Path) -> Project:
    return Project(shutil.copytree(_two_versions.root, tmp_path / "project", symlinks=True))


def cached(project: Project) -> set[str]:
    folder = project.root / ".dvc/cache/files/md5"
    return {path.parent.name + path.name for path in folder.glob("??/*")}


def whole(project: Project, hashes: set[str]) -> set[str]:
    """Objects with the members of the folders among them."""
    found = set(hashes)
    for oid in hashes:
        if oid.endswith(".dir"):
            path = project.root / ".dvc/cache/files/md5" / oid[:2] / oid[2:]
            found |= {entry["md5"] for entry in files.read_json(path)}
    return found


def of_version(project: Project, number: int) -> dict[str, str]:
    """Path → hash of what the lock file of a version names."""
    with store.connect(project.root) as client:
        kept = snapshot.fetch(client, registry.get(client, "shoes", number))
    return past.hashes(kept["dvc.lock"])


def third(project: Project) -> set[str]:
    """Objects that only the model that was never registered has."""
    made = files.sha256_file(project.root / "made/3/models/model.safetensors")
    with repository.opened(project) as repo:
        paths = [Path(repo.cache.local.oid_to_path(oid)) for oid in cached(project)]
    return {p.parent.name + p.name for p in paths if files.sha256_file(p) == made}


def test_only_what_no_version_names_goes_and_the_first_version_comes_back(
    project: Project,
) -> None:
    first = whole(project, set(of_version(project, 1).values()))
    second = whole(project, set(of_version(project, 2).values()))
    unnamed, before = third(project), cached(project)
    assert first <= before and unnamed and not unnamed & (first | second)
    (project.scratch / "prefix").mkdir()
    (project.scratch / "prefix/abc.npy").write_bytes(b"x" * 1000)

    shown = here(project, "gc", "--dry-run", "--json")
    assert shown.returncode == 0, shown.stderr
    offer = json.loads(shown.stdout)
    offered = {p for p in offer["items"] if p.startswith(".dvc/cache/files/md5/")}
    oids = {"".join(Path(p).parts[-2:]) for p in offered}
    assert unnamed <= oids
    assert oids == before - first - second
    assert offer["kinds"]["prefix cache"] == {"count": 1, "bytes": 1000}
    assert offer["kinds"]["runs DVC remembers"]["count"] == 2  # those of seed 3
    assert not offer["deleted"] and cached(project) == before
    assert (project.scratch / "prefix/abc.npy").exists()

    refused = thawline(project, "gc")
    assert refused.returncode == 1 and "nobody is there to ask" in refused.stderr
    assert cached(project) == before

    done = thawline(project, "gc", "--yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("deleted\n")
    assert cached(project) == first | second
    assert not (project.scratch / "prefix").exists()
    again = json.loads(here(project, "gc", "--dry-run", "--json").stdout)
    assert again["items"] == []

    with repository.opened(project) as repo:
        found = past.file(repo, of_version(project, 1)["data/prepared"], "labels.txt", "the data")
        assert found.read_text() == "1\n"
    champion.promote(project, "2", None, "")
    answer, _ = champion.rollback(project, None, "", checkout=True)
    assert answer["checked_out"]
    kept = project.root / "made/1/models/model.safetensors"
    assert files.sha256_file(project.models / "model.safetensors") == files.sha256_file(kept)
    # and what DVC remembers of kept versions still spares a run
    params_file.set_values(project.root, ["seed=2"])
    with repository.opened(project) as repo:
        repo.reproduce()
    made = project.root / "made/2/models/model.safetensors"
    assert files.sha256_file(project.models / "model.safetensors") == files.sha256_file(made)


def test_a_commit_keeps_what_its_lock_file_names(project: Project) -> None:
    params_file.set_values(project.root, ["seed=3"])
    with repository.opened(project) as repo:
        repo.reproduce()
    git(project.root, "switch", "--quiet", "--create", "third")
    commit(project, "the third")
    git(project.root, "switch", "--quiet", "-")
    with repository.opened(project) as repo:
        repo.checkout()
    texts = list(history.dvc_files(project.root))
    assert len(texts) == len(set(texts)) == 2  # the lock files of seeds 2 and 3
    assert len(list(history.dvc_files(project.root, last=1))) == 2  # each the last of its branch
    with gc.offered(project) as offer:
        assert not [item for item in offer.items if item.kind == "data and results"]
    git(project.root, "branch", "--quiet", "-D", "third")
    with gc.offered(project) as offer:
        gone = {item.path.parent.name + item.path.name for item in offer.items}
    assert third(project) <= gone


def test_with_one_commit_of_each_branch_older_ones_keep_nothing(project: Project) -> None:
    commits = ["the second model"]
    for seed in (3, 2):
        params_file.set_values(project.root, [f"seed={seed}"])
        with repository.opened(project) as repo:
            repo.reproduce()
        commit(project, f"back to {seed}")
        commits.append(f"back to {seed}")

    def offered(*options: str) -> set[str]:
        shown = here(project, "gc", "--dry-run", "--json", *options)
        assert shown.returncode == 0, shown.stderr
        return {"".join(Path(p).parts[-2:]) for p in json.loads(shown.stdout)["items"]}

    assert not third(project) & offered()
    assert not third(project) & offered("--commits", "2")
    assert third(project) <= offered("--commits", "1")
    assert here(project, "gc", "--commits", "0", "--dry-run").returncode == 2


def test_what_cannot_be_read_keeps_everything(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = cached(project)

    def refused(match: str) -> None:
        with pytest.raises(ThawlineError, match=match), gc.offered(project):
            pass
        assert cached(project) == before

    down = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"}
    done = thawline(project, "gc", "--yes", env=down)
    assert done.returncode == 1 and "127.0.0.1:9 does not answer" in done.stderr
    assert cached(project) == before and "Traceback" not in done.stderr

    (copy,) = (project.root / "ledger").glob("*.jsonl")
    text = copy.read_text()
    copy.write_text(text.replace('"first champion"', '"second champion"'))
    refused("the ledger of 'shoes' was changed")
    copy.write_text(text)

    other = copy.with_name("shoes-0123abcd.jsonl")
    other.write_text(text)
    refused("has also used another registry .see ledger/shoes-0123abcd.jsonl")
    other.unlink()

    (project.root / "mlflow.db").rename(project.root / "elsewhere.db")
    refused("mlflow.db is gone, but models were registered in it")
    (project.root / "elsewhere.db").rename(project.root / "mlflow.db")

    lock = project.root / "dvc.lock"
    text = lock.read_text()
    lock.write_text(text[: len(text) // 2] + "\n  - [")
    with pytest.raises(ThawlineError), gc.offered(project):
        pass
    lock.write_text(text)

    folder = of_version(project, 1)["models"]
    path = project.root / ".dvc/cache/files/md5" / folder[:2] / folder[2:]
    path.chmod(0o644)
    path.write_text("[]")
    refused("is not what DVC wrote")


def test_a_run_or_dvc_at_work_is_not_disturbed(project: Project) -> None:
    project.scratch.mkdir(exist_ok=True)
    another = pytest.raises(ThawlineError, match="another thawline run")
    with FileLock(project.scratch / "run.lock"), another, gc.offered(project):  # not ours
        pass
    holder = {"pid": os.getpid(), "cmd": "dvc repro"}
    files.write_json(project.root / ".dvc/tmp/rwlock", {"write": {"x": holder}, "read": {}})
    busy = pytest.raises(ThawlineError, match=r"\(dvc repro\) is working in")
    with busy, gc.offered(project):
        pass


@pytest.mark.parametrize("answer", ["n\n", "y\n"])
def test_on_a_terminal_it_asks(project: Project, answer: str) -> None:
    before = cached(project)
    ours, theirs = pty.openpty()
    os.write(ours, answer.encode())
    done = subprocess.run(
        [THAWLINE, "gc"],
        cwd=project.root,
        stdin=theirs,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    os.close(ours)
    os.close(theirs)
    assert done.returncode == 0, done.stderr
    assert "data and results: " in done.stdout and "Delete it?" in done.stdout
    assert (cached(project) == before) == (answer == "n\n")
    assert ("nothing was deleted" in done.stdout) == (answer == "n\n")


def test_a_cache_that_others_share_is_left_alone(project: Project, tmp_path: Path) -> None:
    shutil.move(project.root / ".dvc/cache", tmp_path / "shared")
    with repository.opened(project) as repo, repo.config.edit("local") as config:
        config["cache"] = {"dir": str(tmp_path / "shared")}
    with gc.offered(project) as offer:
        assert not [item for item in offer.items if item.kind == "data and results"]
        assert "may be shared" in offer.notes[0]
