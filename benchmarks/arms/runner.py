"""Runs of the arms, each in a process of its own, kept as files and never measured twice.

With several jobs, each has cores of its own, and Thawline's arms wait for each other, since they
share a project folder.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil

from benchmarks import projects
from benchmarks.arms import measured, thawline_arm
from benchmarks.arms.data import Data
from benchmarks.results_file import ROOT, commit
from tasks import catalogue, files

QUIET = 0.3  # cores in use by others below which the machine counts as quiet
DISTURBED = 0.6  # cores in use by others above which a run is measured again
ATTEMPTS = 2


@dataclass(frozen=True)
class Arm:
    """One way to fine-tune, with its settings."""

    label: str
    kind: str  # thawline, or the name of a module NAME_arm
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
    kept: Path  # where runs of others lie, which do not change with Thawline
    threads: int = 2  # that each arm computes with
    jobs: int = 1  # arms at a time
    _project: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def of(cls, options: argparse.Namespace, fastai_python: str = "", jobs: int = 1) -> Runner:
        """For the options of a benchmark (`benchmarks.options`)."""
        return cls(
            options.work,
            commit(),
            fastai_python,
            60 * options.patience,
            options.kept,
            options.threads,
            jobs,
        )

    def runs(self, data: Data, wanted: Sequence[tuple[Arm, int]], what: str) -> list[Run]:
        """A run for each arm and seed, in order: found, or measured now, `jobs` at a time."""
        cores = _cores(self.jobs)

        def one(number: int) -> Run:
            arm, seed = wanted[number]
            mine = cores.get()
            os.sched_setaffinity(0, mine)  # of this thread, which its processes inherit
            try:
                run = self.run(data, arm, seed)
            finally:
                cores.put(mine)
            print(f"{data.name}, {what} {number + 1}/{len(wanted)}: {told(run)}", flush=True)
            return run

        with ThreadPoolExecutor(self.jobs) as pool:
            return list(pool.map(one, range(len(wanted))))

    def run(self, data: Data, arm: Arm, seed: int) -> Run:
        """The run, found or measured now."""
        path = self._path(data, arm, seed)
        with self._project if arm.kind == "thawline" else nullcontext():
            if not path.exists():
                self._measure(data, arm, seed, path)
        return Run(arm, seed, files.read_json(path), np.load(path.with_suffix(".npy")))

    def _path(self, data: Data, arm: Arm, seed: int) -> Path:
        key: dict[str, Any] = {"data": data.digest, "kind": arm.kind, "settings": arm.settings}
        key |= {"threads": self.threads}
        if arm.kind == "thawline":
            key |= {"commit": self.commit, "params": projects.version()}
        name = f"{arm.kind}-{files.sha256_json(key)[:12]}-seed{seed}.json"
        folder = self.work / "runs" if arm.kind == "thawline" else self.kept
        return folder / data.name / name

    def _measure(self, data: Data, arm: Arm, seed: int, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"partial-{path.name}")
        for _ in range(ATTEMPTS):
            self._wait()
            clock, before = time.perf_counter(), _others()
            self._start(data, arm, seed, partial)
            others = (_others() - before) / (time.perf_counter() - clock)
            if others < DISTURBED or not self.patience:
                break
            print(f"  {others:.1f} cores were busy otherwise: measuring again", flush=True)
        record = {**asdict(arm), "seed": seed, "others": round(others, 2)}
        partial.with_suffix(".npy").replace(path.with_suffix(".npy"))
        files.write_json(path, record | files.read_json(partial))
        partial.unlink()

    def _start(self, data: Data, arm: Arm, seed: int, path: Path) -> None:
        if arm.kind == "thawline":
            return thawline_arm.run(data, arm.settings | {"threads": self.threads}, seed, path)
        python = self.fastai_python if arm.kind == "fastai" else sys.executable
        common = {"weights": str(catalogue.fetch_weights(data.backbone)), "threads": self.threads}
        command = [python, "-m", f"benchmarks.arms.{arm.kind}_arm", str(data.pixels), str(path)]
        command += [str(seed), json.dumps(arm.settings | common)]
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


def told(run: Run) -> str:
    found = run.record
    return (
        f"{run.arm.label} {run.arm.settings}, seed {run.seed}: validation "
        f"{found['validation_accuracy']:.4f} test {found['test_accuracy']:.4f} "
        f"{found['cpu_seconds']:.1f} CPU s {found['seconds']:.1f} s"
    )


def _cores(jobs: int) -> queue.Queue[set[int]]:
    """The cores that this process may use, dealt out to so many jobs."""
    mine = sorted(os.sched_getaffinity(0))
    dealt: queue.Queue[set[int]] = queue.Queue()
    for job in range(jobs):
        dealt.put(set(mine[job::jobs]) or set(mine))
    return dealt


def _others() -> float:
    """Core seconds that others than this benchmark have computed since the machine was started."""
    times = psutil.cpu_times()
    own = measured.cpu_seconds()
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # one that has just ended counts among ours from now on
            own += sum(child.cpu_times()[:4])  # its own and those of its ended children
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0)) - own
