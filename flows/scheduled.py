"""The Prefect flow of a scheduled retraining: `flows.scheduled.retrain`, for deployments.

A slot for which a later one is due already gives way, so that what was missed is caught up once.
Where the gate leaves the decision to a person, the run pauses: resumed on Prefect's page, it
promotes; `thawline promote --approve` resumes it too.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from prefect import flow, get_client, get_run_logger, runtime  # noqa: TID253
from rich.console import Console

from flows import champion, flow_runs
from flows.notice import WAIT
from flows.process import die_with_parent
from flows.project import begin
from flows.retrain import Retrained, Trigger
from flows.retrain import retrain as retrain_project
from tasks import ledger, params_file, promotion
from tasks.errors import ThawlineError
from tasks.records import Project

POLL_SECONDS = 5
# Not to what crashed, failed or was cancelled: it has not done the work of both.
GIVES_WAY_TO = ["SCHEDULED", "PENDING", "RUNNING", "PAUSED", "COMPLETED"]


@flow(name="retrain", description=__doc__, persist_result=False)
def retrain(project: str, force: bool = False, slot: str = "") -> Any:
    """Retrain the project in a folder; `slot`: the one that this run stands for, if not its own."""
    from prefect.states import Completed, Failed

    begin()
    die_with_parent()  # what serves the schedule, or a worker; the stages die with us
    at, log = Project(Path(project)), get_run_logger()
    try:
        params_file.load(at.root)  # or it is no project, and nothing is to be written there
        for run in flow_runs.close_lost(at):
            log.info(f"flow run {run} was lost with its process, and counts as crashed from now on")
        trigger = _trigger(slot)
        if later := _later_slot(trigger.slot):
            return Completed(message=f"left to the later slot {later}")
        with flow_runs.carried(at, str(runtime.flow_run.id)):
            return Completed(message=_retrained(at, trigger, force, log))
    except ThawlineError as error:
        return Failed(message=str(error))


def _retrained(at: Project, trigger: Trigger, force: bool, log: Any) -> str:
    made = retrain_project(at, Console(stderr=True), trigger, force)
    for line in [*(made.advice.lines() if made.advice else []), *made.lines]:
        log.info(line)
    return _answered(at, made, log) if made.outcome == "waiting" else made.sentence


def _moved_since(project: Project, asked: int) -> str:
    """What has closed the question of an entry of the ledger; empty: it is open."""
    entries = promotion.entries(project, params_file.load(project.root))
    if asked in {entry.number for entry in ledger.questions(entries)}:
        return ""
    later = [e for e in entries if e.number > asked and e.alias == ledger.CHAMPION]
    moves = [entry for entry in later if entry.kind not in ledger.STAYS]
    return f"The champion was moved meanwhile: {moves[0].sentence()}." if moves else ""


def _trigger(slot: str) -> Trigger:
    run, name = runtime.flow_run, runtime.deployment.name
    try:
        due = datetime.fromisoformat(slot) if slot else run.scheduled_start_time
    except ValueError:
        raise ThawlineError(
            f"the slot {slot!r} is no time; write it as 2026-11-28T03:00:00+00:00, or leave it out"
        ) from None
    own = due.astimezone(UTC).isoformat(timespec="seconds")
    return Trigger(f"deployment {name}" if name else "by Prefect", own, str(run.id))


def _later_slot(slot: str) -> str | None:
    """A later slot of this deployment that is due by now, and done or still to be done."""
    from prefect.client.schemas import filters

    if not runtime.deployment.id:
        return None
    own = datetime.fromisoformat(slot).astimezone(UTC)
    since = {"after_": own + timedelta(seconds=1), "before_": datetime.now(UTC)}
    span = filters.FlowRunFilterExpectedStartTime.model_validate(since)
    here = filters.FlowRunFilterDeploymentId(any_=[runtime.deployment.id])
    state = filters.FlowRunFilterState.model_validate({"type": {"any_": GIVES_WAY_TO}})
    wanted = filters.FlowRunFilter(deployment_id=here, expected_start_time=span, state=state)
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(flow_run_filter=wanted)
    others = [run for run in found if str(run.id) != str(runtime.flow_run.id)]
    later = [due for run in others if (due := _slot_of(run)) and due > own]
    return f"{max(later):%Y-%m-%dT%H:%M:%SZ}" if later else None


def _slot_of(run: Any) -> datetime | None:
    """The slot that a run stands for: of one that catches up, an earlier one than its start."""
    named = run.parameters.get("slot")
    return datetime.fromisoformat(named).astimezone(UTC) if named else run.expected_start_time


def _answered(project: Project, made: Retrained, log: Any) -> str:
    """Wait for a person; what they decided.

    Raises `ThawlineError` where it is not about what was asked: see `champion.ask_gate`.
    """
    from prefect.exceptions import FlowPauseTimeout
    from prefect.flow_runs import pause_flow_run

    asked = (made.decision or {})["entry"]
    try:
        pause_flow_run(timeout=int(WAIT.total_seconds()), poll_interval=POLL_SECONDS)
    except FlowPauseTimeout:
        return f"Nobody has answered within {WAIT.days} days: the champion stays."
    if answer := _moved_since(project, asked):
        return answer
    reason = "approved on Prefect's page"
    _, lines = champion.ask_gate(project, None, approved=True, reason=reason, asked=asked)
    log.log(logging.INFO, "; ".join(lines))
    return lines[0]
