"""What a process of its own does in tests of promotion; light, so that many start quickly."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks import ledger
from tasks.claim import Claim
from tasks.desk import Outcome
from tasks.errors import ThawlineError
from tasks.ledger import BEGUN
from tasks.params import Params
from tasks.promotion import claim, keep, promote, rollback
from tasks.records import Project
from tasks.tracking import registry, store

PROCESSES = multiprocessing.get_context("forkserver")  # each a process, with MLflow imported
PROCESSES.set_forkserver_preload(
    ["mlflow", "mlflow.store.model_registry.sqlalchemy_store", "tests.tasks.rivals"]
)
WRITES = (  # all that a decision calls of MLflow's to change something
    "create_registered_model",
    "create_model_version",
    "set_registered_model_alias",
    "delete_registered_model_alias",
    "set_model_version_tag",
    "delete_registered_model",
)
PARAMS = Params.model_validate(
    {
        "threads": 1,
        "prepare": {"data": "data/shoes.parquet"},
        "embed": {"backbones": ["mobilenet_v2"]},
        "register": {"experiment": "shoes", "model": "shoes"},
    }
)


def aliases(project: Project) -> dict[str, int]:
    with store.connect(project.root) as client:
        return registry.aliases(client, "shoes")


def die_at(step: int) -> None:
    """Kill this process before the step-th (even: 2k) or after the k-th (odd: 2k + 1) write."""
    import mlflow

    count = 0

    def deadly(write: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal count
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            result = write(*arguments, **named)
            if count + 1 == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 2
            return result

        return wrapped

    for name in WRITES:
        setattr(mlflow.MlflowClient, name, deadly(getattr(mlflow.MlflowClient, name)))
    ledger.os.fsync = deadly(os.fsync)  # type: ignore[attr-defined]


def command_that_dies(root: Path, command: str, step: int, uri: str | None) -> None:
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    die_at(step)
    COMMANDS[command](Project(root))


COMMANDS: dict[str, Callable[[Project], Outcome]] = {
    "promote": lambda project: promote(project, PARAMS, "3", {}, expected=2),
    "rollback": lambda project: rollback(project, PARAMS),
    "keep": lambda project: keep(project, PARAMS, 3, {}),
}


def race(start: float, root: Path, uri: str | None, number: int, answers: Any) -> None:
    """Promote a version unless the champion is better; the higher number is the better model."""
    if uri:
        os.environ["MLFLOW_TRACKING_URI"] = uri
    project = Project(root)
    won = 0
    time.sleep(max(0.0, start - time.time()))
    while (now := aliases(project)["champion"]) < number:
        try:
            made = promote(project, PARAMS, str(number), {"beats": now}, expected=now)
            won += made.kind == "promotion"
        except ThawlineError as error:
            if "expected" not in str(error):
                answers.put(str(error))
                raise
    answers.put(won)


def ask(root: Path, wanted: Claim, barrier: Any, answers: Any) -> None:
    """Claim a retraining when all others do."""
    barrier.wait()
    answers.put(claim(Project(root), PARAMS, BEGUN, wanted, {}, "").former is None)
