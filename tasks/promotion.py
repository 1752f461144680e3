"""Promotion and rollback: what becomes of the champion, decided at its desk (`tasks.desk`).

`challenger` is the packaged model's, and is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from tasks.claim import Claim
from tasks.desk import Desk, Outcome, desk
from tasks.errors import ThawlineError
from tasks.ledger import (
    CHAMPION,
    KEPT,
    PROMOTION,
    ROLLBACK,
    BrokenChain,
    Entry,
    Ledger,
    champion,
    previous,
)
from tasks.params import Params
from tasks.records import Project
from tasks.tracking import registry, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

LAST = 5  # entries that `standing` gives
NOBODY = 0  # expected champion: none

T = TypeVar("T")
# At a desk, with the aliases as the call began and the entry that was just finished; None: again.
Decide = Callable[[Desk, dict[str, int], Entry | None], T | None]


@dataclass(frozen=True)
class Claimed:
    """Whose a retraining is."""

    former: Entry | None  # of somebody else, who has it; None: it is ours
    noticed: list[str]  # what somebody moved by hand, one sentence each


def promote(
    project: Project,
    params: Params,
    version: str,
    evidence: dict[str, Any],
    expected: int | None = None,
    reason: str = "",
) -> Outcome:
    """Make a version (its number, or an alias) the champion.

    `expected` is the champion that the evidence compares it with (`NOBODY`: none); without it, the
    one that there is as the call begins. Promoting the champion changes nothing.
    Raises `ThawlineError` when the champion is another, or was moved by hand since the last entry.
    """

    def decide(at: Desk, aliases: dict[str, int], finished: Entry | None) -> Outcome | None:
        number = registry.require(aliases, at.model, version)
        registry.get(at.client, at.model, number)
        before = champion(at.ledger.entries)
        if before == number:
            return at.outcome("unchanged", before)
        _require_expected(at, aliases, expected)
        entry = at.decide(PROMOTION, number, evidence, reason)
        return at.outcome(PROMOTION, before, entry) if entry else None

    return _decided(project, params, decide)


def keep(
    project: Project,
    params: Params,
    version: int | None,
    evidence: dict[str, Any],
    expected: int | None = None,
    reason: str = "",
    kind: str = KEPT,
) -> Outcome:
    """Record that the champion stays, though `version` was there to take its place.

    `expected` as in `promote`; `kind` is one of `STAYS`; `version` is None where there is none.
    """
    told = evidence if version is None else {"challenger": version, **evidence}

    def decide(at: Desk, aliases: dict[str, int], finished: Entry | None) -> Outcome | None:
        if expected is not None:
            _require_expected(at, aliases, expected)
        entry = at.decide(kind, version, told, reason)
        return at.outcome(kind, entry.from_version, entry) if entry else None

    return _decided(project, params, decide)


def claim(
    project: Project,
    params: Params,
    kind: str,
    wanted: Claim,
    evidence: dict[str, Any],
    reason: str,
) -> Claimed:
    """Note a retraining (`BEGUN` or `SKIPPED`), if nobody else has."""

    def decide(at: Desk, aliases: dict[str, int], finished: Entry | None) -> Claimed | None:
        if former := wanted.taken(at.ledger.entries):
            return Claimed(former, at.noticed)
        written = at.decide(kind, None, evidence | wanted.evidence(), reason)
        return Claimed(None, at.noticed) if written else None

    return _decided(project, params, decide)


def rollback(project: Project, params: Params, to: int | None = None, reason: str = "") -> Outcome:
    """Make the champion before this one (or `to`, an earlier one) the champion again.

    A second rollback goes back one further. One that was killed is finished, not done twice.
    Raises `ThawlineError` when there is nothing to go back to, or the champion was moved meanwhile.
    """

    def decide(at: Desk, aliases: dict[str, int], finished: Entry | None) -> Outcome | None:
        if to is None and finished is not None and finished.kind == ROLLBACK:
            return at.outcome(ROLLBACK, finished.from_version, finished)
        before = champion(at.ledger.entries)
        if to is not None and before == to:
            return at.outcome("unchanged", before)
        _require_expected(at, aliases, None)
        entry = at.decide(ROLLBACK, _target(at, to), {}, reason)
        return at.outcome(ROLLBACK, before, entry) if entry else None

    return _decided(project, params, decide)


def _decided(project: Project, params: Params, decide: Decide[T]) -> T:
    """What `decide` makes of the desk; it is asked again while others' entries come first."""
    name = params.register_.model
    with store.connect(project.root) as client:
        aliases = registry.aliases(client, name)
        with desk(client, project, name) as at:
            while True:
                finished = at.settle()
                if (made := decide(at, aliases, finished)) is not None:
                    return made


def entries(project: Project, params: Params) -> list[Entry]:
    """Of the ledger, oldest first. Raises `BrokenChain`."""
    with store.connect(project.root) as client:
        return Ledger(client, project, params.register_.model).read()


def standing(client: MlflowClient, project: Project, model: str) -> dict[str, Any]:
    """Of the ledger: its file, whether the chain is whole, how many entries, and the last ones."""
    book = Ledger(client, project, model)
    problem = None
    try:
        book.read()
    except BrokenChain as error:
        problem = str(error)
    return {
        "file": str(book.path.relative_to(project.root)),
        "whole": problem is None,
        "problem": problem,
        "unfinished": book.pending is not None,
        "count": len(book.entries),
        "last": [asdict(entry) for entry in book.entries[: -LAST - 1 : -1]],
    }


def _target(at: Desk, to: int | None) -> int:
    """The version to go back to, which is there."""
    entries = [entry for entry in at.ledger.entries if entry.alias == CHAMPION]
    champions = {entry.from_version for entry in entries} | {entry.to_version for entry in entries}
    earlier = sorted(number for number in champions if number and number != champion(entries))
    known = ", ".join(map(str, earlier)) or "none"
    target = to or previous(at.ledger.entries, at.versions())
    if target is None:
        raise ThawlineError(
            f"there is no champion of {at.model!r} to go back to (earlier champions: {known}); "
            "name a version with: thawline promote --version N"
        )
    if to is not None and to not in earlier:
        raise ThawlineError(
            f"version {to} of {at.model!r} was never champion (earlier champions: {known}); "
            f"to make it so: thawline promote --version {to}"
        )
    registry.get(at.client, at.model, target)
    return target


def _require_expected(at: Desk, aliases: dict[str, int], expected: int | None) -> None:
    """Refuse to replace a champion that the caller does not know."""
    if expected is None and at.noticed:
        told = "; ".join(at.noticed)
        raise ThawlineError(f"{told} (recorded; look with thawline status, then ask again)")
    known = aliases.get(CHAMPION, NOBODY) if expected is None else expected
    require_same(at.model, champion(at.ledger.entries) or NOBODY, known)


def require_same(model: str, now: int, expected: int) -> None:
    """Raises `ThawlineError` when the champion of `now` is not the one that was expected."""
    if now != expected:
        there, known = (f"version {each}" if each else "none" for each in (now, expected))
        raise ThawlineError(
            f"the champion of {model!r} is {there}, where {known} was expected: it was moved "
            "since; nothing was changed, look with thawline status and compare with the champion "
            "of now"
        )
