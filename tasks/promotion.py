"""Promotion and rollback: who is champion follows the ledger, whatever is killed or races.

A decision is first an entry of the ledger, which a single process wins; then `previous` and
`champion` are moved to where it says, each in one call of MLflow's, so that there is a champion
throughout; then the entry is marked as done. A kill leaves the old or the new champion, and whoever
comes next moves the aliases on. An alias that is elsewhere though all was done was moved by hand:
that becomes an entry, and stays. `challenger` is the packaged model's, and is left alone.
"""

from __future__ import annotations

import getpass
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tasks.errors import ThawlineError
from tasks.ledger import (
    BY_HAND,
    CHALLENGER,
    CHAMPION,
    FOUND,
    KEPT,
    MOVES,
    PREVIOUS,
    PROMOTION,
    ROLLBACK,
    STAYS,
    BrokenChain,
    Entry,
    Ledger,
    champion,
    previous,
)
from tasks.params import Params
from tasks.records import Project
from tasks.tracking import lock, registry, runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

LAST = 5  # entries that `standing` gives
NOBODY = 0  # expected champion: none


@dataclass(frozen=True)
class Outcome:
    """What a command decided."""

    model: str
    kind: str  # of the ledger's entry; "unchanged" without one
    from_version: int | None
    to_version: int | None
    entry: int | None
    commit: str | None  # of git, from which `to_version` was made
    dirty: bool  # with changes that were not committed
    hashes: dict[str, str]  # of DVC, by path: data and results of `to_version`
    noticed: list[str]  # what somebody moved by hand, one sentence each


class Desk:
    """One model's aliases and ledger, with the lock of this project's processes held."""

    def __init__(self, client: MlflowClient, project: Project, model: str) -> None:
        self.client, self.model = client, model
        self.ledger = Ledger(client, project, model)
        self.noticed: list[str] = []
        self._who = _who(project)

    @property
    def had_champion(self) -> bool:
        """Ever: one that somebody removed is not given again by itself."""
        return any(entry.alias == CHAMPION and entry.to_version for entry in self.ledger.entries)

    def settle(self) -> Entry | None:
        """Finish what a kill left, and record what somebody moved by hand.

        Returns the entry that was finished. Raises `BrokenChain`.
        """
        self.ledger.read()
        finished = self.ledger.pending
        if finished is not None:
            self._follow()
        while not self._recorded_by_hand():
            pass  # another entry came first
        return finished

    def decide(
        self, kind: str, version: int, evidence: dict[str, Any], reason: str = ""
    ) -> Entry | None:
        """Write an entry about `champion`, and follow it; None when another's came first."""
        before = champion(self.ledger.entries)
        after = before if kind in STAYS else version
        return self._write(kind, CHAMPION, before, after, version, evidence, reason)

    def by_hand(
        self, alias: str, before: int | None, after: int | None, kind: str = BY_HAND
    ) -> bool:
        """Record what somebody did to an alias; False when another entry came first."""
        if self._write(kind, alias, before, after, after or before) is None:
            return False
        if kind == BY_HAND:
            self.noticed.append(moved(self.model, alias, before, after))
        return True

    def outcome(self, kind: str, before: int | None, entry: Entry | None = None) -> Outcome:
        """The answer of a command that left the champion where the ledger says."""
        after = entry.to_version if entry else champion(self.ledger.entries)
        tags = self._tags(after)
        return Outcome(
            model=self.model,
            kind=kind,
            from_version=before,
            to_version=after,
            entry=entry.number if entry else None,
            commit=tags.get(runs.COMMIT),
            dirty=tags.get(runs.DIRTY) == "true",
            hashes=_hashes(tags),
            noticed=self.noticed,
        )

    def _write(
        self,
        kind: str,
        alias: str,
        before: int | None,
        after: int | None,
        about: int | None,
        evidence: dict[str, Any] | None = None,
        reason: str = "",
    ) -> Entry | None:
        tags = self._tags(about)
        entry = Entry(
            kind=kind,
            model=self.model,
            alias=alias,
            from_version=before,
            to_version=after,
            evidence=evidence or {},
            reason=reason,
            who=self._who,
            commit=tags.get(runs.COMMIT),
            hashes=_hashes(tags),
        )
        written = self.ledger.append(entry)
        self._follow()
        return written

    def versions(self) -> dict[int, registry.Version]:
        """The versions that there are: some that the ledger names may have been deleted."""
        return {found.number: found for found in registry.versions(self.client, self.model)}

    def _tags(self, number: int | None) -> dict[str, str]:
        found = self.versions().get(number or 0)
        return found.tags if found else {}

    def _follow(self) -> None:
        """Move the aliases to where the last entry says, and mark it as done.

        Until no entry has come since: ours could have been the later of two calls.
        """
        ours: set[int | None] = set()  # where the champion is if none but us moved it
        while True:
            last = self.ledger.entries[-1]
            now, there = registry.aliases(self.client, self.model), self.versions()
            wanted = {PREVIOUS: previous(self.ledger.entries, there)}
            ours.add(last.from_version)
            if last.kind in MOVES and last.to_version in there and now.get(CHAMPION) in ours:
                wanted[CHAMPION] = last.to_version  # else it is there, or was moved by hand since
            for alias, number in wanted.items():
                if now.get(alias) != number:
                    registry.point(self.client, self.model, alias, number)
            ours.add(wanted.get(CHAMPION, last.from_version))
            if self.ledger.read()[-1] == last:
                break
        self.ledger.mark_done()

    def _recorded_by_hand(self) -> bool:
        """Whether each alias is where the ledger says, or the difference is an entry now."""
        entries = list(self.ledger.entries)
        now = registry.aliases(self.client, self.model)
        kind = BY_HAND if entries else FOUND
        there = self.versions()
        for alias, known in ((CHAMPION, champion(entries)), (PREVIOUS, previous(entries))):
            found = now.get(alias)
            if alias == PREVIOUS and known and known not in there:
                continue  # it went with its version
            if found != known and not self.by_hand(alias, known, found, kind):
                return False
        return True


@contextmanager
def desk(client: MlflowClient, project: Project, model: str) -> Iterator[Desk]:
    """The desk of a model, for one process at a time: of this project, and of a shared store."""
    from filelock import FileLock

    project.scratch.mkdir(parents=True, exist_ok=True)
    shared = nullcontext() if store.is_embedded() else lock.held(client, f"{model}.lock")
    with FileLock(project.scratch / "promotion.lock"), shared:
        yield Desk(client, project, model)


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
    name = params.register_.model
    with store.connect(project.root) as client:
        aliases = registry.aliases(client, name)
        number = registry.require(aliases, name, version)
        registry.get(client, name, number)
        with desk(client, project, name) as at:
            while True:
                at.settle()
                before = champion(at.ledger.entries)
                if before == number:
                    return at.outcome("unchanged", before)
                _require_expected(at, aliases, expected)
                if entry := at.decide(PROMOTION, number, evidence, reason):
                    return at.outcome(PROMOTION, before, entry)


def keep(
    project: Project,
    params: Params,
    version: int,
    evidence: dict[str, Any],
    expected: int | None = None,
    reason: str = "",
    kind: str = KEPT,
) -> Outcome:
    """Record that the champion stays, though `version` was there to take its place.

    `expected` as in `promote`; `kind` is one of `STAYS`.
    """
    name = params.register_.model
    with store.connect(project.root) as client:
        aliases = registry.aliases(client, name)
        with desk(client, project, name) as at:
            while True:
                at.settle()
                if expected is not None:
                    _require_expected(at, aliases, expected)
                if entry := at.decide(kind, version, {"challenger": version, **evidence}, reason):
                    return at.outcome(kind, entry.from_version, entry)


def rollback(project: Project, params: Params, to: int | None = None, reason: str = "") -> Outcome:
    """Make the champion before this one (or `to`, an earlier one) the champion again.

    A second rollback goes back one further. One that was killed is finished, not done twice.
    Raises `ThawlineError` when there is nothing to go back to, or the champion was moved meanwhile.
    """
    name = params.register_.model
    with store.connect(project.root) as client:
        aliases = registry.aliases(client, name)
        with desk(client, project, name) as at:
            while True:
                finished = at.settle()
                if to is None and finished is not None and finished.kind == ROLLBACK:
                    return at.outcome(ROLLBACK, finished.from_version, finished)
                before = champion(at.ledger.entries)
                if to is not None and before == to:
                    return at.outcome("unchanged", before)
                _require_expected(at, aliases, None)
                if entry := at.decide(ROLLBACK, _target(at, to), {}, reason):
                    return at.outcome(ROLLBACK, before, entry)


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


def moved(model: str, alias: str, before: int | None, after: int | None) -> str:
    """One sentence about what somebody else did to an alias."""
    if after is None:
        did, how = "removed", ""
    elif before is None:
        did, how = "set", f" to version {after}"
    else:
        did, how = "moved", f" from version {before} to {after}"
    since = "the packaged model has it again" if alias == CHALLENGER else "that is left so"
    return f"somebody else {did} the alias {alias!r} of {model!r}{how}; {since}"


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


def _hashes(tags: dict[str, str]) -> dict[str, str]:
    return {
        key.removeprefix(runs.DVC): value
        for key, value in sorted(tags.items())
        if key.startswith(runs.DVC)
    }


def _who(project: Project) -> str:
    """The git user, and the login: `Ada <ada@example.org> (ada@laptop)`."""
    login = f"{_login()}@{platform.node()}"
    name, address = (runs.git(project.root, "config", f"user.{key}") for key in ("name", "email"))
    return f"{name} <{address}> ({login})" if name else login


def _login() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # no name for this user's number, as in some containers
        return "unknown"
