"""DVC's graph: read it, say what would run and why, and run one stage of it.

DVC is the only cache and the only DAG. `python -m flows.dag STAGE` runs one stage, without its
upstream, in a process of its own; the order comes from whoever calls it.
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from flows import repository
from flows import stage as stages
from flows.process import die_with_parent, end_group_with_self
from flows.reasons import reasons
from tasks import files
from tasks.errors import ThawlineError, UnknownName
from tasks.records import Project

Graph = dict[str, list[str]]  # stage → the stages whose outputs it reads; upstream comes first
Outcome = Literal["done", "restored", "unchanged"]

FAILED, KILLED = 1, 75  # exit codes of `python -m flows.dag`; 75 is sysexits' "try again"


@dataclass(frozen=True)
class StageStatus:
    """Whether a stage would run, and every reason for it; none: it is unchanged."""

    stage: str
    reasons: list[str] = field(default_factory=list)
    seconds: float | None = None  # what its last run here took

    @property
    def would_run(self) -> bool:
        return bool(self.reasons)


def graph(repo: Any) -> Graph:
    """The stages that have a command, each with those it needs, in `dvc.yaml`'s order."""
    import networkx as nx  # type: ignore[import-untyped]

    edges = repo.index.graph
    place = {stage.addressing: f"{n:06}" for n, stage in enumerate(repo.index.stages)}
    order = nx.lexicographical_topological_sort(edges.reverse(), lambda s: place[s.addressing])
    return {
        stage.addressing: sorted(up.addressing for up in edges.successors(stage) if up.cmd)
        for stage in order
        if stage.cmd
    }


def expand(names: list[str], known: Graph) -> list[str]:
    """Stage names as people give them (`embed` for all of its items) → those of the graph."""
    found: list[str] = []
    for name in names:
        matches = [s for s in known if name in (s, s.partition("@")[0])]
        if not matches:
            raise UnknownName("stage", name, known)
        found += matches
    return found


def upstream(names: list[str], known: Graph) -> list[str]:
    """Some stages and all that they need, directly or not, in order."""
    needed = set(names)
    for stage in reversed(known):
        if stage in needed:
            needed.update(known[stage])
    return [s for s in known if s in needed]


def downstream(names: list[str], known: Graph) -> list[str]:
    """Some stages and all that need them, directly or not, in order."""
    affected = set(names)
    for stage, needs in known.items():
        if affected.intersection(needs):
            affected.add(stage)
    return [s for s in known if s in affected]


def status(
    repo: Any,
    project: Project,
    known: Graph,
    upgraded: dict[str, tuple[int | None, int]] | None = None,
) -> list[StageStatus]:
    """What would run and why, in the graph's order.

    `upgraded`: stages whose code version `thawline run` will raise first (`tasks.versions`).
    A stage after one that runs is counted as running; DVC may find its inputs unchanged then.
    """
    by_name = {stage.addressing: stage for stage in repo.index.stages}
    found: dict[str, StageStatus] = {}
    for name, needs in known.items():
        running = [need for need in needs if found[need].would_run]
        made_again = {out.fs_path for need in running for out in by_name[need].outs}
        why = reasons(by_name[name], made_again)
        if upgrade := (upgraded or {}).get(name.partition("@")[0]):
            why.append(f"its code changed (version {upgrade[0] or 'none'} → {upgrade[1]})")
        why += [f"{need} runs before it" for need in running]
        found[name] = StageStatus(name, why, stages.recorded_seconds(project, name))
    return list(found.values())


def reproduce(
    repo: Any, project: Project, name: str, *, force: bool = False, run_env: dict[str, str]
) -> Outcome:
    """Run one stage if anything it depends on changed, without its upstream.

    Raises DVC's own errors; `flows.repository.sentence` words them.
    """
    restored = False
    restore_from_run_cache = repo.stage_cache.restore

    def restore(*arguments: Any, **options: Any) -> None:
        nonlocal restored
        restore_from_run_cache(*arguments, **options)  # raises when this run is not known
        restored = True

    repo.stage_cache.restore = restore
    cost, before = stages.record_file(project, name), time.time()
    if not repo.reproduce(name, single_item=True, force=force, run_env=run_env):
        return "unchanged"
    if restored:
        return "restored"
    if not cost.is_file() or cost.stat().st_mtime < before - 1:
        # a stage of the user's own does not record what it cost
        stages.record(project, name, seconds=time.time() - before)
    return "done"


def main(arguments: list[str] | None = None) -> int:
    """Run one stage for the flow; the outcome, or the error, goes into the file `--result`."""
    parser = argparse.ArgumentParser(prog="python -m flows.dag", description=__doc__)
    parser.add_argument("stage")
    parser.add_argument("--result", type=Path, required=True)
    parser.add_argument("--force", action="store_true")
    parser.add_argument("--parent", type=int, help="end when this process is not our parent")
    given = parser.parse_args(arguments)
    die_with_parent(given.parent)
    end_group_with_self()
    logging.getLogger("dvc").setLevel(logging.INFO)
    project = Project(Path.cwd())
    error_file = given.result.with_suffix(".error.json")
    error_file.unlink(missing_ok=True)
    run_env = {stages.ERROR_FILE: str(error_file)}
    try:
        with repository.opened(project) as repo:
            outcome = reproduce(repo, project, given.stage, force=given.force, run_env=run_env)
    except ThawlineError as error:
        killed = _killed(error)
        message = _message(error, given.stage, error_file, killed)
        print(message, file=sys.stderr)
        files.write_json(given.result, {"error": message})
        return KILLED if killed else FAILED
    files.write_json(given.result, {"outcome": outcome})
    return 0


def _killed(error: ThawlineError) -> bool:
    """Whether the stage's command was ended by a signal (as a number below 0, or 128 + it)."""
    status = re.search(r", exited with (-?\d+)$", str(error))
    return status is not None and (int(status[1]) < 0 or int(status[1]) in (137, 143))


def _message(error: ThawlineError, stage: str, error_file: Path, killed: bool) -> str:
    """The stage's own sentence where it left one."""
    if error_file.is_file():
        return str(files.read_json(error_file)["message"])
    if killed:
        return f"stage {stage!r} was killed ({error}); out of memory is a common cause"
    return f"stage {stage!r}: {error}"


if __name__ == "__main__":
    sys.exit(main())
