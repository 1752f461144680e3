"""Project folders for benchmarks, and their stages run one by one as DVC would, without DVC."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.results_file import ROOT
from tasks import files, params_file
from tasks.records import Project

THAWLINE = [sys.executable, "-m", "flows.cli"]
FILES = ("params.yaml", "code.yaml", "warm_start.yaml", "dvc.yaml")


def environment() -> dict[str, str]:
    """For subprocesses that import this checkout, wherever they run."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1"}


def version() -> str:
    """A short digest of the files that projects are made of."""
    return files.sha256_json([files.sha256_file(ROOT / name) for name in FILES])[:8]


def made(folder: Path, data: Path, values: dict[str, Any] | None = None) -> Project:
    """A project folder with the repository's parameters on other data; one that exists stays."""
    if not (folder / FILES[0]).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in reversed(FILES):  # params.yaml last: it marks the folder as whole
            shutil.copyfile(ROOT / name, folder / name)
    change(folder, {"prepare.data": data, **(values or {})})
    return Project(folder)


def change(root: Path, values: dict[str, Any]) -> None:
    """Write some parameters, given by their key paths."""
    params_file.set_values(root, [f"{key}={value}" for key, value in values.items()])


def restore(root: Path) -> None:
    """Put the parameters back to what they were at the first call, even after a kill."""
    params, first = root / "params.yaml", root / "params.first.yaml"
    if not first.exists():
        with files.atomic(first) as temporary:
            shutil.copyfile(params, temporary)
    with files.atomic(params) as temporary:
        shutil.copyfile(first, temporary)


def start(root: Path, stage: str) -> subprocess.Popen[bytes]:
    """Start one stage of a project, silently."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        [*THAWLINE, "stage", stage], cwd=root, env=environment(), stdout=quiet, stderr=quiet
    )


def run(root: Path, *stages: str) -> None:
    """Run some stages of a project, one after the other; a failing one ends the benchmark."""
    for stage in stages:
        command = [*THAWLINE, "stage", stage]
        done = subprocess.run(command, cwd=root, env=environment(), capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{stage} failed in {root}:\n{done.stderr}")


def cost(root: Path, stage: str) -> dict[str, float]:
    """What a stage took when it last ran, imports and all: `seconds` and `cpu_seconds`."""
    noted = files.read_json(root / ".thawline/stages" / f"{stage}.json")
    return {name: noted[name] for name in ("seconds", "cpu_seconds")}


def forget(root: Path) -> None:
    """Drop what a training would spare itself: cached prefixes and checkpoints."""
    for name in ("prefix", "checkpoints"):
        shutil.rmtree(root / ".thawline" / name, ignore_errors=True)


def wait_for_tracking(root: Path, seconds: float = 60) -> None:
    """Wait until the process that carries a training's curves to MLflow has ended.

    It outlives the training a little, and would compute beside whatever is measured next.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until and any(
        "tasks.tracking" in line and str(root) in line
        for line in (process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"]))
    ):
        time.sleep(0.5)
