"""`thawline stage NAME`: what `dvc.yaml` calls to do the work of one stage."""

from __future__ import annotations

import importlib
import logging
import os
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

from flows.process import die_with_parent
from tasks import files, params_file, versions
from tasks.errors import ThawlineError, UnknownName
from tasks.records import Project
from tasks.redaction import redact

ERROR_FILE = "THAWLINE_ERROR"  # environment variable: where the flow wants to read the sentence
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def run(project: Project, stage: str) -> None:
    """Run one stage (`train`, or `embed@mobilenet_v2` for one item of a matrix).

    Raises `ThawlineError` when parameters, data or the recorded code version do not allow it.
    """
    die_with_parent()
    os.chdir(project.root)
    try:
        with _recorded(project, stage):
            _work(project, stage)
    except ThawlineError as error:
        _tell_flow(str(error))
        raise
    except OSError as error:
        if error.errno != 28:  # ENOSPC
            raise
        message = f"stage {stage!r}: the disk is full ({error.filename or project.root}); free some"
        _tell_flow(message)
        raise ThawlineError(message) from error
    except Exception as error:
        _tell_flow(f"stage {stage!r} failed: {type(error).__name__}: {error}")
        raise


def _work(project: Project, stage: str) -> None:
    name, _, item = stage.partition("@")
    if name not in versions.VERSIONS:
        raise UnknownName("stage", name, versions.VERSIONS)
    values = params_file.load(project.root)
    _check_version(project, name)
    for variable in THREAD_VARIABLES:  # must stand before numpy and torch are first imported
        os.environ[variable] = str(values.threads)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # others keep what was freed
    module = importlib.import_module(f"tasks.{name}")
    if name == "embed":
        if item not in values.embed.backbones:
            raise UnknownName("backbone of embed.backbones", item, values.embed.backbones)
        module.run(project, values, item)
    elif item:
        raise ThawlineError(f"stage {name!r} has no items; run it as: thawline stage {name}")
    else:
        module.run(project, values)


def _check_version(project: Project, name: str) -> None:
    change = versions.changes(project.root).get(name)
    if change is not None:
        raise ThawlineError(
            f"{versions.CODE_FILE} has version {change[0]} of stage {name!r}, the installed code "
            f"is version {change[1]}; `thawline run` brings it up to date"
        )


class _Warnings(logging.StreamHandler[TextIO]):
    """Keeps what a stage warns of, and prints it as it would be without a handler."""

    def __init__(self) -> None:
        super().__init__()
        self.setLevel(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = redact(record.getMessage())
        if message not in self.messages:
            self.messages.append(message)
        super().emit(record)


class _recorded:
    """Record what a stage cost and warned of, as `.thawline/stages/<stage>.json`, when it
    succeeds."""

    def __init__(self, project: Project, stage: str) -> None:
        self.project, self.stage = project, stage

    def __enter__(self) -> None:
        self.started, self.warnings = time.perf_counter(), _Warnings()
        logging.getLogger("tasks").addHandler(self.warnings)

    def __exit__(self, kind: object, *_: object) -> None:
        logging.getLogger("tasks").removeHandler(self.warnings)
        if kind is not None:
            return
        own = resource.getrusage(resource.RUSAGE_SELF)
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        unit = 1e6 if sys.platform == "darwin" else 1e3  # ru_maxrss: bytes there, kB on Linux
        record(
            self.project,
            self.stage,
            seconds=time.perf_counter() - self.started,
            cpu_seconds=own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime,
            peak_mb=own.ru_maxrss / unit,
            warnings=self.warnings.messages,
        )


def record_file(project: Project, stage: str) -> Path:
    return project.scratch / "stages" / f"{stage}.json"


def record(
    project: Project, stage: str, seconds: float, warnings: Sequence[str] = (), **cost: float
) -> None:
    """Write the cost of a stage's last run: `seconds`, perhaps `cpu_seconds` and `peak_mb`; and
    what it warned of."""
    rounded = {name: round(value, 3) for name, value in {"seconds": seconds, **cost}.items()}
    files.write_json(
        record_file(project, stage),
        {
            "stage": stage,
            **rounded,
            "finished_at": round(time.time(), 3),
            "warnings": list(warnings),
        },
    )


def recorded_seconds(project: Project, stage: str) -> float | None:
    """What the stage took when it last ran here."""
    try:
        return float(files.read_json(record_file(project, stage))["seconds"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def warned(project: Project, stage: str) -> list[str]:
    """What the stage warned of when it last ran here."""
    try:
        return [str(each) for each in files.read_json(record_file(project, stage))["warnings"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def _tell_flow(message: str) -> None:
    message, path = redact(message), os.environ.get(ERROR_FILE)
    # What follows a first error, as in other processes of the same training, explains less.
    if path and not Path(path).exists():
        files.write_json(Path(path), {"message": message})
