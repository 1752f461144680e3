"""A project that retrains by itself: ten versions of its data arrive, a day each.

    .venv/bin/python -m benchmarks.fortnight            # about 45 minutes on two busy cores
    .venv/bin/python -m benchmarks.fortnight --quick    # the first days in small, 8 minutes

The servers of `make stack`, `thawline new`, `thawline schedule`; a cron schedule is all that asks
for a retraining. The days stand in `benchmarks/days.py`, each with the outcomes that are right.
After each, the champion is asked about official test images that no version of the data holds, as
they are and through a shifted camera; so is a challenger that was kept out. Where the gate kept one
out that was expected to be promoted, it is right if the sealed images show a class that loses more
than `promote.class_margin`, beyond chance. At the end `thawline rollback` goes back through all
champions, and is timed. Writes fortnight.json, .md and .svg into
benchmarks/results (with --quick into --work). Nothing is kept of a run that was stopped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks import days, fortnight_report, projects, servers
from benchmarks.days import Day, Sizes
from benchmarks.options import benchmark_parser, parsed
from benchmarks.results_file import Results
from flows.project import QUIET
from tasks import catalogue, files, params_file, predict, promotion
from tasks.ledger import KEPT, Entry
from tasks.ledger import champion as champion_by
from tasks.records import SPLITS, DataSummary, Project

CRON = "* * * * *"  # a slot that finds the last one still at work is skipped
LIMIT_SECONDS = 900.0  # of a day
NAME = "clothes"
SETTINGS: dict[str, Any] = {
    "threads": 1,
    "embed.backbones": "[mobilenet_v2]",
    "select.race": 0,
    "augment.image_size": 48,
    "augment.views": 2,
    "train.epochs": 4,
    "evaluate.bootstrap": 200,
    "retrain.overlap": "skip",
    "register.experiment": NAME,
    "register.model": NAME,
}
QUICK_DAYS, QUICK = 3, Sizes(first=(150, 1_000), more=(1_500, 100))
SEALED = {False: 10_000, True: 1_000}  # official test images, by quick

Hits = npt.NDArray[np.bool_]  # [n], which answers are right


@dataclass
class Fortnight:
    """A project under its schedule, and what its champions say of the sealed images."""

    project: Project
    data: Path  # the file that is replaced
    deployment: servers.Deployment
    sealed: dict[str, pd.DataFrame]
    answers: dict[int, dict[str, Hits]] = field(default_factory=dict)  # by version
    learned: int = 0  # images that yesterday's data had to learn from

    def live(self, day: Day) -> dict[str, Any]:
        """Let a version of the data arrive, and wait for what its slot makes of it."""
        self.deployment.wait_until_idle(LIMIT_SECONDS)
        before, arrived = len(self._ledger()), datetime.now(UTC)
        write(day.data, self.data)
        run = self.deployment.first_after(arrived, LIMIT_SECONDS)
        self.deployment.wait_until_idle(LIMIT_SECONDS)
        entries = self._ledger()
        new, champion = entries[before:], champion_by(entries)
        found = fortnight_report.outcome(new, run["state"])
        hits = self._judged(champion) if champion else {}
        refused = self._refused(new, champion)
        images = learned(self.project)
        leaked = max(0, images - self.learned) if day.planted else 0
        self.learned = images
        return {
            "what": day.what,
            "outcome": found,
            "right": (found in day.right or bool(refused and refused["no_chance"])) and not leaked,
            "refused": refused,
            "leaked": leaked,
            "expected": list(day.right),
            "changes": next(
                (x for e in new if (x := fortnight_report.advice(e))), run["state"]["message"]
            ),
            "gate": next((x for e in reversed(new) if (x := fortnight_report.verdict(e))), ""),
            "champion": champion,
            "hits": {name: int(right.sum()) for name, right in hits.items()},
            "learned": images,
            "planted": day.planted,
            "seconds": round(run["total_run_time"], 1),
            "slot": run["expected_start_time"],
        }

    def _ledger(self) -> list[Entry]:
        return promotion.entries(self.project, params_file.load(self.project.root))

    def _refused(self, new: list[Entry], champion: int | None) -> dict[str, Any] | None:
        """A challenger that was kept out, as the sealed images see it."""
        kept = [
            e.evidence["challenger"] for e in new if e.kind == KEPT and fortnight_report.verdict(e)
        ]
        if not kept or champion is None:
            return None
        before, after = (self._judged(version)["sealed"] for version in (champion, kept[-1]))
        labels = self.sealed["sealed"]["label"].to_numpy(object)
        margin = params_file.load(self.project.root).promote.class_margin
        told = fortnight_report.worst_class(before, after, labels, margin)
        return {"version": kept[-1], "hits": int(after.sum()), **told}

    def _judged(self, version: int) -> dict[str, Hits]:
        if version not in self.answers:
            params = params_file.load(self.project.root)
            model = predict.load(self.project, params, str(version))
            self.answers[version] = {
                name: model.predict(rows[["image"]])["label"].to_numpy(object)
                == rows["label"].to_numpy(object)
                for name, rows in self.sealed.items()
            }
        return self.answers[version]


def main() -> None:
    parser = benchmark_parser("fortnight", __doc__)
    parser.add_argument("--look", action="store_true", help="keep the servers until Ctrl-C")
    options = parsed(parser)
    results = Results("fortnight", "A fortnight of retraining by itself", options.results)
    whole = pd.read_parquet(catalogue.fetch_data("fashion_mnist", options.work))
    versions = days.versions(whole, QUICK if options.quick else Sizes())
    versions = versions[: QUICK_DAYS if options.quick else None]
    sealed = days.sealed(whole, SEALED[options.quick])
    del whole
    with tempfile.TemporaryDirectory(prefix="thawline-") as scratch:
        Path(scratch).chmod(0o755)  # PostgreSQL's user enters it
        values = lived(Path(scratch), versions, sealed, _until_interrupted(options.look))
    plot = fortnight_report.plot(values, options.results / "fortnight.svg")
    results.write(values, [*fortnight_report.lines(values), "", *plot])


def lived(
    folder: Path,
    versions: list[Day],
    sealed: dict[str, pd.DataFrame],
    look: Callable[[], None],
) -> dict[str, Any]:
    """All days; `look` is called before the servers end."""
    begun, programs = time.perf_counter(), str(Path(sys.executable).parent)
    os.environ.update(QUIET)
    os.environ["PATH"] = os.pathsep.join([programs, os.environ.get("PATH", os.defpath)])
    with servers.running(folder / "stack") as named:
        os.environ.update(named, PREFECT_HOME=str(folder / "prefect"))
        data = folder / "arrivals.parquet"
        write(versions[0].data, data)
        project = made(folder / NAME, data)
        print(f"project: {project.root}, {named}", flush=True)
        with servers.schedule(project.root, CRON):
            deployment = servers.Deployment.named(named["PREFECT_API_URL"], NAME)
            here, told = Fortnight(project, data, deployment, sealed), []
            for day in versions:
                told.append(here.live(day))
                print(told[-1], flush=True)
            look()
        entries = here._ledger()
        whole = json.loads(_thawline(project.root, "status", "--json"))["registry"]["ledger"]
        champions = len({day["champion"] for day in told if day["champion"]})
        rollbacks = [rolled_back(project) for _ in range(champions - 1)]
    return {
        "days": told,
        "worse": fortnight_report.worse(told, here.answers),
        "ledger": [fortnight_report.line(entry) for entry in entries],
        "whole": whole["whole"],
        "rollbacks": rollbacks,
        "sealed": {name: len(rows) for name, rows in sealed.items()},
        "settings": SETTINGS,
        "cron": CRON,
        "seconds": round(time.perf_counter() - begun),
    }


def made(folder: Path, data: Path) -> Project:
    """A new project, committed to git, so that its data versions are too."""
    _thawline(folder.parent, "new", folder.name, "--data", str(data), "--recipe", "standard")
    projects.change(folder, SETTINGS)
    identity = ["-c", "user.name=A Tester", "-c", "user.email=tester@example.org"]
    for command in (["add", "--all"], ["commit", "--quiet", "--message", "a new project"]):
        subprocess.run(["git", *identity, *command], cwd=folder, check=True)
    return Project(folder)


def rolled_back(project: Project) -> dict[str, Any]:
    """Make the previous model the champion again; which it is, and the seconds of the command."""
    begun = time.perf_counter()
    _thawline(project.root, "rollback", "--reason", "to see how long it takes")
    seconds = time.perf_counter() - begun
    entries = promotion.entries(project, params_file.load(project.root))
    return {"champion": champion_by(entries), "seconds": round(seconds, 1)}


def learned(project: Project) -> int:
    """Images to train and validate on, in the prepared data."""
    counts = DataSummary.read(project.summary).counts
    return sum(sum(counts[split].values()) for split in SPLITS[:-1])


def write(rows: pd.DataFrame, path: Path) -> None:
    with files.atomic(path) as temporary:
        rows.to_parquet(temporary, index=False)


def _thawline(folder: Path, *arguments: str) -> str:
    command = [*projects.THAWLINE, *arguments]
    done = subprocess.run(
        command, cwd=folder, env=projects.environment(), capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"thawline {arguments[0]} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _until_interrupted(wanted: bool) -> Callable[[], None]:
    def look() -> None:
        print("look at the pages; Ctrl-C goes on", flush=True)
        try:
            while True:
                time.sleep(1)
        except KeyboardInterrupt:
            pass

    return look if wanted else lambda: None


if __name__ == "__main__":
    main()
