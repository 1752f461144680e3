"""Tells Prefect what came of a retraining: an event, which automations can react to, and a page.

Where no server is known, nobody is told: the answer and the ledger have it all.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from datetime import timedelta
from typing import TYPE_CHECKING

from flows.ui import running_server
from tasks.params import Params
from tasks.records import Project
from tasks.redaction import redact, redacted

if TYPE_CHECKING:
    from flows.retrain import Retrained

WAIT = timedelta(days=7)  # for a person's answer
EVENT = "thawline.retrain"  # then a dot and the outcome, such as thawline.retrain.promoted
log = logging.getLogger(__name__)


def send(project: Project, params: Params, made: Retrained) -> None:
    """Emit the event and write the page; what Prefect refuses is logged, as all is done by then."""
    if not known_server(project):
        return
    from prefect.artifacts import create_markdown_artifact
    from prefect.events import emit_event

    name = params.register_.model
    text = redact("\n\n".join([f"# {name}: {made.outcome}", made.sentence, *made.lines]))
    key = "retrain-" + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    sentence, decision = redact(made.sentence), redacted(made.decision)
    outcome = made.outcome.replace(" ", "_")
    resource = {"prefect.resource.id": f"thawline.model.{name}", "project": str(project.root)}
    try:
        create_markdown_artifact(markdown=text, key=key, description=sentence)
        emit_event(
            f"{EVENT}.{outcome}",
            resource=resource,
            payload={"sentence": sentence, "decision": decision, "commit": made.commit},
        )
    except Exception as error:
        log.warning("Prefect was not told what came of it: %s", error)


def resume(flow_run: str) -> None:
    """Let a flow go on that waits for a person; one that waits no more is left alone."""
    from uuid import UUID

    from prefect.flow_runs import resume_flow_run

    with contextlib.suppress(Exception):
        resume_flow_run(UUID(flow_run))


def known_server(project: Project) -> bool:
    """Whether a server is named, or runs for this project (`thawline ui`): then it is named."""
    if "PREFECT_API_URL" not in os.environ and (url := running_server(project)):
        os.environ["PREFECT_API_URL"] = url
    return "PREFECT_API_URL" in os.environ
