"""The spool: what a run has to tell MLflow, kept in a local append-only file until it is told.

Training writes here only, so that a slow or dead tracking server never holds it up; a drainer
(`tasks.tracking.drainer`) carries the lines over. One JSON object a line: a header, then points,
then an end. A kill can leave half a last line; it does not count and is cut off when the file is
opened again.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypedDict

from tasks import files
from tasks.records import Project


class Point(TypedDict):
    """One value of a curve."""

    key: str
    value: float
    step: int
    timestamp_ms: int


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class Child(TypedDict):
    """A run below another one: what it was, and how it ended."""

    name: str  # other than that of all its siblings
    params: dict[str, str]
    metrics: dict[str, float]
    tags: dict[str, str]
    status: str  # as MLflow names it


@dataclass(frozen=True)
class Header:
    """What is known of a run before its first step."""

    experiment: str
    name: str
    params: dict[str, str]
    tags: dict[str, str]
    dataset: dict[str, str] | None = None  # name, digest, source
    created_ms: int = field(default_factory=now_ms)
    children: list[Child] = field(default_factory=list)  # runs below it, which have ended already


class Spool:
    """One run's spool, open for writing by one process."""

    def __init__(self, path: Path) -> None:
        self.path = path
        lines = complete_lines(path)
        self._ended = b'"end":' in lines[-1][:8]
        self._points = len(lines) - 1 - self._ended
        if path.stat().st_size > sum(map(len, lines)):
            self._rewrite(lines)  # half a line from a kill

    @classmethod
    def open(cls, project: Project, run_key: str, header: Header) -> Spool:
        """Open a run's spool; a spool that is there goes on, with its own header."""
        path = spool_path(project, run_key)
        if not path.exists():
            with files.atomic(path) as temporary:
                temporary.write_bytes(_line({"run_key": run_key, **asdict(header)}))
        return cls(path)

    @classmethod
    def end_if_open(cls, project: Project, run_key: str, status: str) -> None:
        """End a run that nobody writes any more; nothing when it has ended or left no spool."""
        path = spool_path(project, run_key)
        if path.exists():
            cls(path).end(status)

    def extend(self, points: Sequence[Point], start: int | None = None) -> None:
        """Add points; `start` is the place of the first one in the run's list of points.

        Points that the spool has at those places already (after a resume from a checkpoint) stay
        as they are, with their own time stamps, because the server may know them; from the first
        place that holds another (key, step) on, the spool is rewritten. Raises `ValueError` when
        `start` would leave a gap: pass the points from the beginning then.
        """
        start = self._points if start is None else start
        if start > self._points:
            raise ValueError(f"{self.path.name} holds {self._points} points, not {start}")
        new = list(points)
        if start < self._points:
            new = new[self._already_there(new, start) :]
        if new:
            self._append([_line(dict(point)) for point in new])

    def end(self, status: str = "FINISHED") -> None:
        """Note how the run ended, as MLflow names it (FINISHED, FAILED, KILLED)."""
        if not self._ended:
            self._write(_line({"end": status, "timestamp_ms": now_ms()}))
            self._ended = True

    def _already_there(self, points: list[Point], start: int) -> int:
        """How many of `points` the spool has from `start` on; cuts off what contradicts them."""
        lines = complete_lines(self.path)
        known = [json.loads(line) for line in lines[1 + start : 1 + self._points]]
        same = 0
        for old, new in zip(known, points, strict=False):
            if (old["key"], old["step"]) != (new["key"], new["step"]):
                break
            same += 1
        if same < min(len(known), len(points)):
            self._rewrite(lines[: 1 + start + same])
            self._points, self._ended = start + same, False
        return same

    def _append(self, lines: list[bytes]) -> None:
        if self._ended:
            self._rewrite(complete_lines(self.path)[:-1])
            self._ended = False
        self._write(b"".join(lines))
        self._points += len(lines)

    def _write(self, data: bytes) -> None:
        with self.path.open("ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())

    def _rewrite(self, lines: list[bytes]) -> None:
        with files.atomic(self.path) as temporary:  # a new inode tells the drainer to start over
            temporary.write_bytes(b"".join(lines))


def folder(project: Project) -> Path:
    return project.scratch / "spool"


def spool_path(project: Project, run_key: str) -> Path:
    if not re.fullmatch(r"[\w.-]{1,128}", run_key):
        raise ValueError(f"{run_key!r} is not a plain run key")
    return folder(project) / f"{run_key}.jsonl"


def complete_lines(path: Path) -> list[bytes]:
    """The lines that end in a line feed, with it."""
    return [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def status(path: Path) -> str | None:
    """How the run of a spool ended, as MLflow names it; None where it has not, or has no spool."""
    try:
        value = json.loads(complete_lines(path)[-1])
    except (FileNotFoundError, IndexError, ValueError):
        return None
    return str(value["end"]) if "end" in value else None


def read_header(path: Path) -> Header:
    """The header of a spool; raises `ValueError` when it is not one."""
    with path.open("rb") as file:
        value = json.loads(file.readline())
    value.pop("run_key")
    return Header(**value)


def _line(value: object) -> bytes:
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()
