"""`thawline start-from`: a model or file of weights becomes the backbone of a project."""

from __future__ import annotations

import contextlib
import io
import json
import logging
from collections.abc import Sequence

from flows import repository
from tasks import params_file, start
from tasks.records import Project


def start_from(
    project: Project, source: str, backbone: str | None = None, classes: Sequence[str] | None = None
) -> list[str]:
    """Copy a start into the project, track it by DVC, write it into `params.yaml`.

    `classes`: the project's, where the caller knows them. Returns what to tell the user. Raises
    `ThawlineError` when there is no such start or it does not fit.
    """
    params = params_file.load(project.root)
    taken = start.take(project, params, source, backbone, classes)
    logging.getLogger("dvc").setLevel(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), repository.opened(project) as repo:
        repo.add(taken.file)  # which gives advice on git there
    params_file.set_values(
        project.root,
        [f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in taken.values.items()],
    )
    written = {**taken.values, "embed.weights": taken.file}
    shown = "; ".join(f"{key}: {value}" for key, value in written.items())
    return [*taken.told, f"written into params.yaml: {shown}"]
