"""Who does a retraining: one for each slot of a schedule and each version of the data.

The begin of a retraining, and what came of it, are entries of the ledger with the same claim among
their evidence. So one process wins, on whatever machine, and one that was killed is taken up again
where it was.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tasks.ledger import BEGUN, CHAMPION, KEPT, SKIPPED, WAITING, Entry

KEY = "retraining"  # in the evidence of an entry
TRIES = 3  # of a retraining that comes to no end


@dataclass(frozen=True)
class Claim:
    """What is to be done once, and where it is done."""

    deployment: str
    slot: str  # of its schedule, ISO 8601; empty: asked for by hand, as often as one likes
    data: str  # digest of what training sees of it (`DataSummary.digest`)
    params: str  # sha256 of the parameters
    project: str  # folder
    flow_run: str | None = None  # of Prefect, which waits for a person
    host: str = platform.node()

    def evidence(self) -> dict[str, Any]:
        return {KEY: asdict(self)}

    def taken(self, entries: Sequence[Entry]) -> Entry | None:
        """The entry that says that it is done, or begun elsewhere; None: it is free, or ours."""
        if not self.slot:
            return None
        same = [each for each in entries if self._is_same(each.evidence.get(KEY))]
        done = [each for each in same if each.kind != BEGUN]
        return next(iter(done or [each for each in same if not self._is_here(each)]), None)

    def judged(self, entries: Sequence[Entry]) -> Entry | None:
        """The entry that kept out, or left to a person, what this data makes; None: it is open.

        With the same parameters, and the champion that there is still.
        """
        for entry in reversed(entries):
            if entry.alias != CHAMPION or entry.kind in (BEGUN, SKIPPED):
                continue
            other = entry.evidence.get(KEY)
            names = ("data", "params")
            same = other and all(other[name] == getattr(self, name) for name in names)
            if entry.kind not in (KEPT, WAITING):
                return None
            if same and entry.evidence.get("challenger"):
                return entry
        return None

    def tries(self, entries: Sequence[Entry]) -> int:
        """How often it was begun here, with this data and these parameters, and came to no end.

        What has come to none in `TRIES` tries will not come to one by itself.
        """
        begun = 0
        for entry in reversed(entries):
            other = entry.evidence.get(KEY)
            if not other or (other["data"], other["params"]) != (self.data, self.params):
                continue
            if entry.kind == SKIPPED:  # as these tries were enough
                continue
            if entry.kind != BEGUN:
                break
            begun += self._is_here(entry)
        return begun

    def _is_same(self, other: dict[str, Any] | None) -> bool:
        names = ("deployment", "slot", "data")
        return other is not None and all(other[name] == getattr(self, name) for name in names)

    def _is_here(self, entry: Entry) -> bool:
        other = entry.evidence[KEY]
        return (other["host"], other["project"]) == (self.host, self.project)


def last_slot(entries: Sequence[Entry], deployment: str) -> str:
    """The latest slot of a deployment that came to an end; empty: none."""
    known = [each.evidence.get(KEY) for each in entries if each.kind != BEGUN]
    return max((x["slot"] for x in known if x and x["deployment"] == deployment), default="")
