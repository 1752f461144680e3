from __future__ import annotations

import re
import shutil
from pathlib import Path

from flows import dag, finetune, repository
from tasks import versions
from tasks.records import Project
from tests.flows.conftest import make_project


def chain_of_the_docstring() -> dict[str, list[str]]:
    found = re.findall(r"^    (\w+) ←(.*)$", finetune.__doc__ or "", re.MULTILINE)
    return {stage: sorted(re.findall(r"\w+", needs)) for stage, needs in found}


def test_the_docstring_holds_the_chain_of_dvc_yaml(tmp_path: Path, repository_root: Path) -> None:
    project = make_project(tmp_path / "project")
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(repository_root / name, project.root / name)
    with repository.opened(project) as repo:
        graph = dag.graph(repo)
    merged: dict[str, set[str]] = {}
    for stage, needs in graph.items():
        merged.setdefault(stage.partition("@")[0], set()).update(n.partition("@")[0] for n in needs)
    chain = chain_of_the_docstring()
    assert chain == {stage: sorted(needs) for stage, needs in merged.items()}
    assert list(chain) == list(versions.VERSIONS)


def test_every_stage_has_a_policy_of_its_own() -> None:
    assert list(finetune.POLICIES) == list(versions.VERSIONS)
    assert finetune.policy("embed@resnet18") is finetune.POLICIES["embed"]
    assert finetune.policy("a_users_own") is finetune.OTHERS


def test_a_task_carries_its_stages_name_and_policy(project: Project) -> None:
    from prefect.cache_policies import NO_CACHE

    from flows.runner import Request, Runner

    runner = Runner(project, Request(graph={"train": []}, log="logs/test.log"))
    task = finetune.build_task("train", runner)
    chosen = finetune.POLICIES["train"]
    assert (task.name, task.retries, task.tags) == ("train", chosen.retries, set(chosen.tags))
    assert task.cache_policy is NO_CACHE
    assert task.persist_result is False
