"""The desk at which decisions about a champion are made: aliases that follow the ledger.

A decision is first an entry of the ledger, which a single process wins; then `previous` and
`champion` are moved to where it says, each in one call of MLflow's, so that there is a champion
throughout; then the entry is marked as done. A kill leaves the old or the new champion, and whoever
comes next moves the aliases on. An alias that is elsewhere though all was done was moved by hand:
that becomes an entry, and stays.
"""

from __future__ import annotations

import getpass
import platform
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.ledger import (
    BY_HAND,
    CHALLENGER,
    CHAMPION,
    FOUND,
    MOVES,
    PREVIOUS,
    STAYS,
    Entry,
    Ledger,
    champion,
    previous,
)
from tasks.records import Project
from tasks.tracking import lock, registry, runs, store

if TYPE_CHECKING:
    from mlflow import MlflowClient


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
        self, kind: str, version: int | None, evidence: dict[str, Any], reason: str = ""
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
