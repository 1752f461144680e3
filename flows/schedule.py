"""`thawline schedule`: a Prefect deployment that retrains by itself."""

from __future__ import annotations

import asyncio
import os
import platform
from collections.abc import Coroutine
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from rich.console import Console

from flows import flow_runs, notice
from flows.process import started_at, still_runs
from flows.watch import watching
from tasks import claim, files, params_file, promotion
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.records import Project

if TYPE_CHECKING:
    from prefect.deployments.runner import RunnerDeployment

NIGHTLY = "0 3 * * *"
HOST = "host:"  # of a tag of a deployment: the machine whose process serves it


@dataclass(frozen=True)
class Schedule:
    """When to retrain, and who does it."""

    name: str  # of the deployment
    cron: str | None = None  # in UTC
    minutes: float | None = None
    watch: float | None = None  # seconds between two looks at the data
    pool: str | None = None  # a work pool; None: the process `pid`
    pid: int | None = None
    started: float | None = None
    since: str = ""  # when these very slots were first promised, ISO 8601; empty: not known

    @classmethod
    def read(cls, project: Project) -> Schedule | None:
        """The last one; None where there never was one."""
        try:
            return cls(**files.read_json(_path(project)))
        except (OSError, ValueError, TypeError):
            return None

    @property
    def served(self) -> bool:
        """Whether something is there to run it, as far as is known here."""
        return self.pool is not None or bool(self.pid and still_runs(self.pid, self.started or 0.0))

    def missed(self, after: datetime, now: datetime) -> datetime | None:
        """The last slot up to now, if it is after the last one that was seen to; in UTC."""
        if self.cron is not None:
            due = _slot(self.cron, now, reverse=True)
        elif self.minutes:
            step = timedelta(minutes=self.minutes)
            due = after + (now - after) // step * step
        else:
            return None
        return due if due > after else None

    def promised(self, former: Schedule | None, now: datetime) -> str:
        """When its slots were first promised: by a former one of the same slots, or now."""
        if former is not None and former.since:
            mine, theirs = ((x.name, x.cron, x.minutes) for x in (self, former))
            if mine == theirs:
                return former.since
        return now.isoformat(timespec="seconds")

    def line(self) -> str:
        """For people, on one line."""
        if self.cron is not None:
            when = (
                f"next slot {_slot(self.cron, datetime.now(UTC)):%Y-%m-%d %H:%M} UTC ({self.cron})"
            )
        elif self.minutes:
            when = f"every {self.minutes:g} minutes"
            if self.since:
                step = timedelta(minutes=self.minutes)
                anchor, now = datetime.fromisoformat(self.since), datetime.now(UTC)
                due = anchor + ((now - anchor) // step + 1) * step
                when = f"next slot {due:%Y-%m-%d %H:%M} UTC ({when})"
        else:
            when = "when the data changes"
        by = f"by the work pool {self.pool}" if self.pool else f"by process {self.pid}"
        return f"{when}, {by if self.served else 'but nothing serves it now: thawline schedule'}"


def serve(project: Project, wanted: Schedule, console: Console) -> None:
    """Make the deployment; without a pool, also run what is due, until Ctrl-C.

    Raises `ThawlineError` when no Prefect server is known, or the schedule is none.
    """
    if wanted.cron is not None:
        _slot(wanted.cron, datetime.now(UTC))
    if not notice.known_server(project):
        raise ThawlineError(
            "no Prefect server is known that could keep a schedule; start one in another terminal "
            "(thawline ui, or make stack), or name one in PREFECT_API_URL"
        )
    params, former = params_file.load(project.root), Schedule.read(project)
    _require_ours(project, wanted, former)
    known = replace(wanted, since=wanted.promised(former, datetime.now(UTC)))
    deployment = _deployment(project, known)
    if known.pool is not None:
        deployment.apply()
        files.write_json(_path(project), asdict(known))
        console.print(f"deployment retrain/{known.name}: {known.line()}", highlight=False)
        console.print(f"a worker runs it: prefect worker start --pool {known.pool}")
        return
    import prefect.runner

    # One that waits for a person waits inside its process: a few of those must not fill the places.
    runner = prefect.runner.Runner(name=known.name, limit=None)
    identity = runner.add_deployment(deployment)
    if former is not None and former.pid is not None and not former.served:
        _close_dead(identity)
    known = replace(known, pid=os.getpid(), started=started_at(os.getpid()))
    files.write_json(_path(project), asdict(known))
    console.print(f"deployment retrain/{known.name}: {known.line()}", highlight=False)
    _catch_up(project, params, known, identity, console)
    console.print("Ctrl-C ends it; the schedule is paused then", style="dim")
    with watching(
        project, wanted.watch, lambda key: _start(identity, {}, f"{known.started} {key}")
    ):
        asyncio.run(runner.start())


def _require_ours(project: Project, wanted: Schedule, former: Schedule | None) -> None:
    """Raises `ThawlineError` where the server has a deployment of this name that is of another
    project, or served by another machine: it would be taken over, and its runs with it."""
    from prefect import get_client
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        try:
            found = client.read_deployment_by_name(f"retrain/{wanted.name}")
        except ObjectNotFound:
            return
    other = found.parameters.get("project")
    hosts = [tag.removeprefix(HOST) for tag in found.tags if tag.startswith(HOST)]
    # By what is noted here, where the machine has another name now, as a new container has.
    noted = former is not None and former.name == wanted.name
    if other != str(project.root) or (hosts and platform.node() not in hosts and not noted):
        at = f" on {hosts[0]}" if hosts else ""
        raise ThawlineError(
            f"the Prefect server has a deployment retrain/{wanted.name} of the project in "
            f"{other}{at}; give this one a name of its own: thawline schedule --name "
            f"{wanted.name}-2. Or, where that one is no more: prefect deployment delete "
            f"retrain/{wanted.name}"
        )


def _deployment(project: Project, wanted: Schedule) -> RunnerDeployment:
    from prefect.schedules import Cron, Interval
    from prefect.types.entrypoint import EntrypointType

    from flows.scheduled import retrain

    slots = None
    if wanted.cron is not None:
        slots = Cron(wanted.cron, timezone="UTC")
    elif wanted.minutes:
        anchor = datetime.fromisoformat(wanted.since) if wanted.since else None
        slots = Interval(timedelta(minutes=wanted.minutes), anchor_date=anchor, timezone="UTC")
    made = retrain.to_deployment(
        name=wanted.name,
        schedule=slots,
        parameters={"project": str(project.root)},
        description=f"Retrains the project in {project.root}",
        entrypoint_type=EntrypointType.MODULE_PATH,
        work_pool_name=wanted.pool,
        tags=[] if wanted.pool else [f"{HOST}{platform.node()}"],
    )
    assert not isinstance(made, Coroutine)  # as it is where no event loop runs
    return made


def _close_dead(identity: Any) -> None:
    """Runs whose process died with the former one that served them would stay as they are."""
    from prefect import get_client
    from prefect.client.schemas import filters

    left = {"type": {"any_": ["PENDING", "RUNNING", "PAUSED"]}}
    wanted = {"deployment_id": {"any_": [identity]}, "state": left}
    with get_client(sync_client=True) as client:
        chosen = filters.FlowRunFilter.model_validate(wanted)
        for run in client.read_flow_runs(flow_run_filter=chosen):
            flow_runs.crashed(client, run.id)


def _catch_up(
    project: Project, params: Params, known: Schedule, identity: Any, console: Console
) -> None:
    """Start what was due while nothing served the schedule, or was killed: once, however much.

    Where no slot has come to an end yet, from the first promise on.
    """
    last = claim.last_slot(promotion.entries(project, params), f"deployment {known.name}")
    due = known.missed(datetime.fromisoformat(last or known.since), datetime.now(UTC))
    if due is None:
        return
    slot = due.isoformat(timespec="seconds")
    console.print(f"the slot of {slot} was missed: catching up", highlight=False)
    # Of this process: a run that was killed with another one holds the key of that one.
    _start(identity, {"slot": slot}, f"{known.started} {slot}")


def _start(identity: Any, parameters: dict[str, Any], key: str) -> None:
    from prefect import get_client

    with get_client(sync_client=True) as client:
        client.create_flow_run_from_deployment(
            identity, parameters=parameters, idempotency_key=f"{identity} {key}"
        )


def _slot(cron: str, now: datetime, reverse: bool = False) -> datetime:
    """The slot after now, or the last one. Raises `ThawlineError` when it is no cron schedule."""
    from cronsim import CronSim, CronSimError

    try:
        return next(CronSim(cron, now, reverse=reverse))
    except (CronSimError, StopIteration) as error:
        raise ThawlineError(
            f"--cron {cron!r} is no schedule ({error}); minute, hour, day, month and weekday, such "
            f"as {NIGHTLY!r} for 3 o'clock UTC every night"
        ) from None


def _path(project: Project) -> Any:
    return project.scratch / "schedule.json"
