"""What the gate said last in this project, of which versions: `reports/gate.json`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tasks import files
from tasks.records import Project

if TYPE_CHECKING:
    from tasks.gate import Verdict


@dataclass(frozen=True)
class Judgement:
    """A verdict, the versions that it is about, and what follows from it."""

    model: str
    challenger: int
    champion: int | None  # that it was compared with
    action: Literal["promote", "keep", "ask"]
    verdict: Verdict
    note: str = ""  # why the action is another than the verdict and the parameters say

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "verdict": self.verdict.as_json()}

    def write(self, project: Project) -> None:
        files.write_json(_path(project), self.as_json())

    def line(self) -> str:
        """For people: `promote, version 2 against version 1: …`."""
        rival = f"version {self.champion}" if self.champion else "no champion"
        return f"{self.action}, version {self.challenger} against {rival}: {self.verdict.sentence}"


def read(project: Project) -> Judgement | None:
    """The last judgement; None where the gate was never asked."""
    try:
        found = files.read_json(_path(project))
    except (OSError, ValueError):
        return None
    from tasks.gate import Verdict

    return Judgement(**{**found, "verdict": Verdict.from_json(found["verdict"])})


def current(project: Project) -> Judgement | None:
    """The last judgement, if it is about the model that is packaged now."""
    try:
        digest = files.read_json(project.models / "digests.json")["model_digest"]
    except (OSError, ValueError, KeyError):
        return None
    found = read(project)
    return found if found and found.verdict.challenger == digest else None


def _path(project: Project) -> Path:
    return project.reports / "gate.json"
