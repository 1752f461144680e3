"""A tiny real project: its stages are shell commands, everything around them is the real thing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from flows.project import QUIET
from tasks import versions
from tasks.records import Project

THAWLINE = str(Path(sys.executable).parent / "thawline")

PARAMS = """\
problem: image_classification
seed: 0
threads: 1
prepare:
  data: data/raw.txt
embed:
  backbones: [first, second]
train:
  epochs: 3   # a comment that stays
  learning_rate: 0.001
"""

DVC = """\
stages:
  prepare:
    cmd: mkdir -p out && tr a-z A-Z < ${prepare.data} > out/prepared.txt
    deps: ["${prepare.data}"]
    params: [seed]
    outs: [out/prepared.txt]
  embed:
    matrix:
      backbone: ${embed.backbones}
    cmd: mkdir -p out/features && cp out/prepared.txt out/features/${item.backbone}.txt
    deps: [out/prepared.txt]
    outs: ["out/features/${item.backbone}.txt"]
  train:
    cmd: cat out/features/*.txt > out/model.txt && echo ${train.epochs} >> out/model.txt
    deps: [out/features]
    params: [train, code.yaml: [train]]
    outs: [out/model.txt]
"""

Make = Callable[..., Project]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", os.pathsep.join([str(Path(THAWLINE).parent), os.environ["PATH"]]))


@pytest.fixture
def at_server(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process speaks to the running Prefect server, which it reads once from variables."""
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("PREFECT_API_URL", server["PREFECT_API_URL"])
    with temporary_settings({PREFECT_API_URL: server["PREFECT_API_URL"]}):
        yield


def make_project(root: Path, dvc: str = DVC, params: str = PARAMS) -> Project:
    (root / "data").mkdir(parents=True)
    (root / "data/raw.txt").write_text("hello\n")
    (root / "params.yaml").write_text(params)
    (root / "dvc.yaml").write_text(dvc)
    versions.write(root)
    Repo.init(str(root), no_scm=True).close()
    return Project(root)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return make_project(tmp_path / "project")


def thawline(
    project: Project | Path, *arguments: str, env: dict[str, str] | None = None, limit: float = 300
) -> subprocess.CompletedProcess[str]:
    """Run the console script in a project's folder."""
    folder = project.root if isinstance(project, Project) else project
    return subprocess.run(
        [THAWLINE, *arguments],
        cwd=folder,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


def start(project: Project, *arguments: str, env: dict[str, str]) -> subprocess.Popen[str]:
    """Start the console script in the background, in a process group of its own."""
    return subprocess.Popen(
        [THAWLINE, *arguments],
        cwd=project.root,
        env={**os.environ, **env},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A background job of a shell ignores Ctrl-C, and would hand that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.fixture
def repository_root() -> Path:
    return Path(__file__).parents[2]
