"""The flow: one named Prefect task a stage, chained along DVC's graph.

    prepare ←
    augment ← prepare
    embed ← augment, prepare
    select ← augment, embed, prepare
    inspect ← embed, prepare, select
    freeze ← augment, prepare, select
    tune ← augment, embed, freeze, prepare, select
    train ← augment, freeze, prepare, tune
    repeat ← augment, freeze, prepare, tune
    evaluate ← augment, embed, freeze, inspect, prepare, repeat, select, train, tune
    package ← augment, evaluate, freeze, inspect, prepare, select, train, tune

`dvc.yaml` is the only DAG, and the chain above is a reading of it, which a test holds to it. Here
stands what DVC does not know: how often a stage is tried, how long it may take, what it is tagged
with, and how many run at once. Prefect's own cache stays off: DVC decides what is unchanged.

`python -m flows.finetune REQUEST` runs it in a process of its own, for `thawline run`.
"""

from __future__ import annotations

import contextlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows import board as boards
from flows.board import Standing
from flows.process import die_with_parent, end_group_with_self
from flows.runner import Request, Runner, StageKilled
from tasks.records import Project

if TYPE_CHECKING:
    from prefect import Flow, Task


@dataclass(frozen=True)
class Policy:
    """How one stage is run."""

    hours: float = 24  # time limit of one attempt
    retries: int = 2  # only after it was killed; a mistake is not tried again
    tags: tuple[str, ...] = ()


POLICIES = {
    "prepare": Policy(hours=12, tags=("data",)),
    "augment": Policy(hours=1, tags=("data",)),
    "embed": Policy(hours=12, tags=("compute",)),
    "select": Policy(hours=12, tags=("compute",)),  # its race trains, as may that of freeze
    "inspect": Policy(hours=1),
    "freeze": Policy(hours=12, tags=("compute",)),
    "tune": Policy(hours=12, tags=("compute",)),
    "train": Policy(hours=72, retries=5, tags=("compute",)),  # resumes, so a retry costs little
    "repeat": Policy(hours=72, retries=5, tags=("compute",)),  # goes on with the next repeat
    "evaluate": Policy(hours=6, tags=("compute",)),
    "package": Policy(hours=1),
}
OTHERS = Policy()  # a stage that a user adds to dvc.yaml


def policy(stage: str) -> Policy:
    return POLICIES.get(stage.partition("@")[0], OTHERS)


def build_task(stage: str, runner: Runner) -> Task[[], str]:
    """The Prefect task of one stage, with its policy."""
    from prefect import task
    from prefect.cache_policies import NO_CACHE

    chosen = policy(stage)

    def work() -> str:
        return runner.run(stage, chosen.hours * 3600)

    def was_killed(_task: Any, _run: Any, state: Any) -> bool:
        failure = state.result(raise_on_failure=False)
        return isinstance(failure, StageKilled) and not runner.stopping.is_set()

    decorate = task(
        name=stage,
        tags=chosen.tags,
        retries=chosen.retries,
        retry_delay_seconds=1,
        retry_condition_fn=was_killed,
        cache_policy=NO_CACHE,
        persist_result=False,
    )
    return decorate(work)


def build(runner: Runner) -> Flow[[], Any]:
    """The Prefect flow over a request's graph."""
    from prefect import flow
    from prefect.states import Cancelled, Completed, Failed
    from prefect.task_runners import ThreadPoolTaskRunner

    graph = runner.request.graph

    def finetune() -> Any:
        from prefect.runtime import flow_run

        runner.board.began(str(flow_run.id))
        futures: dict[str, Any] = {}
        for stage, needs in graph.items():
            upstream = [futures[need] for need in needs]
            futures[stage] = build_task(stage, runner).submit(return_state=False, wait_for=upstream)
        for future in futures.values():
            future.wait()
        runner.board.finish()
        _artifacts(runner)
        if runner.stopping.is_set():
            return Cancelled(message="stopped by the user; the next run resumes")
        failed = runner.board.standing.of("failed")
        if failed:
            return Failed(message="; ".join(f"{s.stage}: {s.message}" for s in failed))
        return Completed(message="all stages are up to date")

    # A waiting task holds a thread, so there is one for each; `parallel` is kept by the runner.
    workers: Any = ThreadPoolTaskRunner(max_workers=len(graph) + 1)
    decorate = flow(name="finetune", description=__doc__, task_runner=workers, persist_result=False)
    return decorate(finetune)


def _artifacts(runner: Runner) -> None:
    """A table of the stages and, when all are up to date, the figures, on the run's page."""
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    from flows import summary

    standing = runner.board.standing
    table = [
        {"stage": s.stage, "state": s.state, "seconds": s.seconds, "message": s.message or ""}
        for s in standing.stages
    ]
    create_table_artifact(table=table, key="stages", description=f"log: {standing.log}")
    if all(s.state in ("done", "restored", "unchanged") for s in standing.stages):
        create_markdown_artifact(summary.markdown(runner.project), key="report")


def _close_dead_run(previous: Standing | None) -> None:
    """A run whose process was killed would stay RUNNING for ever on Prefect's pages."""
    if previous is None or previous.finished or previous.flow_run_id is None:
        return
    from uuid import UUID

    from prefect import get_client
    from prefect.states import Crashed

    with contextlib.suppress(Exception), get_client(sync_client=True) as client:
        message = "its process was killed; a later run took over"
        run_id = UUID(previous.flow_run_id)
        client.set_flow_run_state(run_id, Crashed(message=message), force=True)


def main() -> int:
    """Run the request in the file named by the first argument, for the process in the second."""
    request_file, parent = Path(sys.argv[1]), int(sys.argv[2])
    die_with_parent(parent)
    end_group_with_self()
    project = Project(Path.cwd())
    previous = boards.read(project)
    runner = Runner(project, Request.read(request_file))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: runner.stopping.set())
    try:
        state: Any = build(runner)(return_state=True)
        _close_dead_run(previous)
    finally:
        runner.board.finish()
    return 0 if state.is_completed() else 1


if __name__ == "__main__":
    sys.exit(main())
