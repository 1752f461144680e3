"""Runs of the arms, each in a process of its own, kept as files and never measured twice."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks import projects
from benchmarks.arms import measured, thawline_arm
from benchmarks.arms.data import BACKBONE, Data
from benchmarks.results_file import ROOT
from tasks import catalogue, files

QUIET = 0.3  # cores in use by others below which the machine counts as quiet
DISTURBED = 0.6  # cores in use by others above which a run is measured again
ATTEMPTS = 2


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune, with its settings."""

    label: str
    kind: str  # thawline | fastai | pytorch
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One finished training of an arm."""

    arm: Arm
    seed: int
    record: dict[str, Any]  # a `Measured`, and `others`: cores that others used meanwhile
    right: npt.NDArray[np.bool_]  # for each test example


@dataclass(frozen=True)
class Runner:
    """Where runs are kept, and what runs them."""

    work: Path
    commit: str  # Thawline's, whose runs are no longer good with another
    fastai_python: str
    patience: float  # seconds to wait for a quiet machine before each run

    def run(self, data: Data, arm: Arm, seed: int) -> Run:
        """The run, found or measured now."""
        path = self._path(data, arm, seed)
        if not path.exists():
            self._measure(data, arm, seed, path)
        return Run(arm, seed, files.read_json(path), np.load(path.with_suffix(".npy")))

    def _path(self, data: Data, arm: Arm, seed: int) -> Path:
        key = {"data": data.digest, "kind": arm.kind, "settings": arm.settings}
        if arm.kind == "thawline":
            key |= {"commit": self.commit, "params": projects.version()}
        name = f"{arm.kind}-{files.sha256_json(key)[:12]}-seed{seed}.json"
        return self.work / "runs" / data.name / name

    def _measure(self, data: Data, arm: Arm, seed: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial-{path.name}")
        for _ in range(ATTEMPTS):
            self._wait()
            clock, busy, own = time.perf_counter(), _busy(), measured.cpu_seconds()
            self._start(data, arm, seed, partial)
            seconds = time.perf_counter() - clock
            others = (_busy() - busy - (measured.cpu_seconds() - own)) / seconds
            if others < DISTURBED or not self.patience:
                break
            print(f"  {others:.1f} cores were busy otherwise: measuring again", flush=True)
        record = {**asdict(arm), "seed": seed, "others": round(others, 2)}
        partial.with_suffix(".npy").replace(path.with_suffix(".npy"))
        files.write_json(path, record | files.read_json(partial))
        partial.unlink()

    def _start(self, data: Data, arm: Arm, seed: int, path: Path) -> None:
        if arm.kind == "thawline":
            return thawline_arm.run(data, arm.settings, seed, path)
        python = self.fastai_python if arm.kind == "fastai" else sys.executable
        weights = {"weights": str(catalogue.fetch_weights(BACKBONE))}
        command = [python, "-m", f"benchmarks.arms.{arm.kind}_arm", str(data.pixels), str(path)]
        command += [str(seed), json.dumps(arm.settings | weights)]
        done = subprocess.run(
            command, cwd=ROOT, env=projects.environment(), capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{arm.label} failed:\n{done.stderr}")
        return None

    def _wait(self) -> None:
        """Wait until others leave the machine alone, or patience ends."""
        until, told = time.monotonic() + self.patience, False
        while time.monotonic() < until:
            if psutil.cpu_percent(interval=3) / 100 * (psutil.cpu_count() or 1) < QUIET:
                return
            if not told:
                print("  waiting for a quiet machine", flush=True)
                told = True
            time.sleep(5)


def _busy() -> float:
    """Core seconds that the whole machine has computed since it was started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))
