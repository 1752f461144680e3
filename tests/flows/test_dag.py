from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import pytest

from flows import dag, repository
from flows.dag import Outcome
from flows.process import end_group
from tasks import versions
from tasks.errors import ThawlineError, UnknownName
from tasks.records import Project
from tests.small_project import wait_until

GRAPH: dag.Graph = {
    "prepare": [],
    "embed@first": ["prepare"],
    "embed@second": ["prepare"],
    "train": ["embed@first", "embed@second"],
}


def reproduce(project: Project, name: str, force: bool = False) -> Outcome:
    with repository.opened(project) as repo:
        return dag.reproduce(repo, project, name, force=force, run_env={})


def reproduce_all(project: Project) -> list[Outcome]:
    return [reproduce(project, stage) for stage in GRAPH]


def reasons(project: Project, **options: Any) -> dict[str, list[str]]:
    with repository.opened(project) as repo:
        found = dag.status(repo, project, dag.graph(repo), **options)
        return {s.stage: s.reasons for s in found if s.would_run}


def write_params(project: Project, old: str, new: str) -> None:
    params = project.root / "params.yaml"
    assert old in params.read_text()
    params.write_text(params.read_text().replace(old, new))


def test_the_graph_is_dvcs_in_the_order_of_dvc_yaml(project: Project) -> None:
    with repository.opened(project) as repo:
        assert dag.graph(repo) == GRAPH
        assert list(dag.graph(repo)) == list(GRAPH)


def test_upstream_downstream_and_items_of_a_matrix() -> None:
    assert dag.upstream(["embed@first"], GRAPH) == ["prepare", "embed@first"]
    assert dag.downstream(["embed@first"], GRAPH) == ["embed@first", "train"]
    assert dag.expand(["embed"], GRAPH) == ["embed@first", "embed@second"]
    with pytest.raises(UnknownName, match="did you mean 'train'"):
        dag.expand(["tarin"], GRAPH)


def test_a_stage_runs_once_then_is_unchanged_then_restored(project: Project) -> None:
    assert reproduce_all(project) == ["done"] * 4
    assert reproduce_all(project) == ["unchanged"] * 4
    write_params(project, "learning_rate: 0.001", "learning_rate: 0.002")
    assert reproduce_all(project) == ["unchanged", "unchanged", "unchanged", "done"]
    write_params(project, "learning_rate: 0.002", "learning_rate: 0.001")
    assert reproduce(project, "train") == "restored"
    assert reproduce(project, "train", force=True) == "done"


def test_a_new_project_has_run_nothing_yet(project: Project) -> None:
    found = reasons(project)
    assert list(found) == list(GRAPH)
    assert found["prepare"] == ["has not run yet"]


def test_every_kind_of_change_is_named(project: Project) -> None:
    reproduce_all(project)
    assert reasons(project) == {}

    write_params(project, "learning_rate: 0.001", "learning_rate: 0.002")
    assert reasons(project) == {"train": ["train.learning_rate 0.001 → 0.002"]}
    write_params(project, "learning_rate: 0.002", "learning_rate: 0.001")

    (project.root / "out/features/second.txt").unlink()
    assert reasons(project)["embed@second"] == ["output out/features/second.txt is missing"]
    assert reasons(project)["train"] == ["embed@second runs before it"]
    reproduce(project, "embed@second")

    (project.root / "data/raw.txt").write_text("other\n")
    assert reasons(project)["prepare"] == ["input data/raw.txt changed"]
    (project.root / "data/raw.txt").write_text("hello\n")

    dvc = project.root / "dvc.yaml"
    dvc.write_text(dvc.read_text().replace("cmd: cat", "cmd: /bin/cat"))
    assert reasons(project) == {"train": ["its command changed"]}


def test_an_upgrade_of_a_stages_code_is_a_reason(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    reproduce_all(project)
    now = versions.VERSIONS["train"]
    monkeypatch.setitem(versions.VERSIONS, "train", now + 1)
    expected = {"train": [f"its code changed (version {now} → {now + 1})"]}
    assert reasons(project, upgraded=versions.changes(project.root)) == expected
    assert versions.update(project.root) == {"train": (now, now + 1)}
    assert reasons(project) == expected
    assert reproduce(project, "train") == "done"


def test_a_result_of_a_newer_thawline_is_not_overwritten(project: Project) -> None:
    code = project.root / "code.yaml"
    now = versions.VERSIONS["train"]
    code.write_text(code.read_text().replace(f"train: {now}", "train: 999"))
    with pytest.raises(ThawlineError, match="install the newer Thawline"):
        versions.update(project.root)
    assert "train: 999" in code.read_text()


def test_the_repositorys_code_yaml_is_the_installed_one(repository_root: Any) -> None:
    assert versions.recorded(repository_root) == versions.VERSIONS


def test_what_a_kill_left_of_dvcs_state_is_mended(project: Project) -> None:
    reproduce_all(project)
    lock = project.root / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: len(whole) // 2].rpartition("\n")[0] + "\n  broken: [")
    (project.root / ".dvc/tmp/rwlock").write_text('{"read": {"/a')
    repository.mend(project)
    assert reproduce_all(project) == ["restored"] * 4
    assert reproduce_all(project) == ["unchanged"] * 4


def test_dvc_at_work_on_the_same_files_is_named(project: Project) -> None:
    import subprocess

    reproduce_all(project)
    write_params(project, "seed: 0", "seed: 1")
    dvc = project.root / "dvc.yaml"
    dvc.write_text(dvc.read_text().replace("cmd: mkdir -p out && tr", "cmd: sleep 30 && tr"))
    other = subprocess.Popen(
        [Path(sys.executable).parent / "dvc", "repro", "prepare"],
        cwd=project.root,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    try:
        rwlock = project.root / ".dvc/tmp/rwlock"
        wait_until(lambda: rwlock.is_file() and f'"pid": {other.pid}' in rwlock.read_text())
        with pytest.raises(ThawlineError, match=rf"process {other.pid} \(.*repro prepare\)"):
            reproduce(project, "prepare")
    finally:
        end_group(other, grace=5)


def test_a_missing_input_is_named(project: Project) -> None:
    (project.root / "data/raw.txt").unlink()
    with (
        pytest.raises(ThawlineError, match=r"data/raw\.txt does not exist.*prepare\.data"),
        repository.opened(project) as repo,
    ):
        repository.pull_inputs(repo)


def test_a_tracked_input_comes_from_the_remote(project: Project) -> None:
    import shutil

    with repository.opened(project) as repo:
        with repo.config.edit() as config:
            config["core"]["remote"] = "store"
            config["remote"]["store"] = {"url": str(project.root.parent / "remote")}
        repo.add("data/raw.txt")
        repo.push()
    (project.root / "data/raw.txt").unlink()
    shutil.rmtree(project.root / ".dvc/cache")
    with repository.opened(project) as repo:
        assert repository.pull_inputs(repo) == ["data/raw.txt"]
    assert (project.root / "data/raw.txt").read_text() == "hello\n"

    (project.root / "data/raw.txt").unlink()
    shutil.rmtree(project.root / ".dvc/cache")
    shutil.rmtree(project.root.parent / "remote")
    with (
        pytest.raises(ThawlineError, match=r"neither here nor in its remote.*dvc pull"),
        repository.opened(project) as repo,
    ):
        repository.pull_inputs(repo)


def test_a_parameter_that_dvc_would_miss_is_named_with_its_default(project: Project) -> None:
    from tasks import params_file

    write_params(project, "seed: 0\n", "")
    with (
        pytest.raises(ThawlineError, match=r"params\.yaml has no value for 'seed'.*default is 0"),
        repository.opened(project) as repo,
    ):
        repository.check_params(repo, params_file.load(project.root))


def test_a_folder_of_images_that_no_stage_depends_on_is_refused(project: Project) -> None:
    from tasks import params_file

    write_params(project, "  data: data/raw.txt", "  data: data/raw.txt\n  images: data/pictures")
    values = params_file.load(project.root)
    with (
        repository.opened(project) as repo,
        pytest.raises(ThawlineError, match=r"'prepare' does not depend on it.*prepare\.images"),
    ):
        repository.check_places(repo, values)
    dvc = project.root / "dvc.yaml"
    deps = 'deps: ["${prepare.data}"'
    dvc.write_text(dvc.read_text().replace(deps, f'{deps}, "${{prepare.images}}"'))
    with repository.opened(project) as repo:
        repository.check_places(repo, values)


def test_what_another_process_is_writing_is_left_alone(project: Project) -> None:
    reproduce_all(project)
    lock = project.root / ".dvc/tmp/rwlock"
    lock.write_text('{"read": {"/a')
    with contextlib.suppress(ThawlineError), repository.opened(project):
        pass
    assert lock.read_text() == '{"read": {"/a'
