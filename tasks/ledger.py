"""The ledger of a registered model: what became its champion, when, by whom, on what evidence.

Entries are the versions of a registered model beside it, `<model>.ledger`. MLflow numbers versions
one after the other, whatever machine asks, so all who share a registry see the same order: that is
what decides a race between machines. Each entry names the hash of the one before; one that names an
older entry came second, and is void. `ledger/<model>.jsonl` in the project is this machine's copy,
a line an entry, by which a change or a loss in either place is noticed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Container
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import files
from tasks.errors import ThawlineError
from tasks.records import Project
from tasks.redaction import redact, redacted
from tasks.tracking import registry, store

if TYPE_CHECKING:
    from mlflow import MlflowClient

CHAMPION, CHALLENGER, PREVIOUS = "champion", "challenger", "previous"
FIRST, PROMOTION, ROLLBACK = "first champion", "promotion", "rollback"
KEPT, WAITING, BY_HAND, FOUND = "kept", "waiting", "moved by hand", "found"
BEGUN, SKIPPED = "retraining", "not retrained"  # what `thawline retrain` decided of changed data
MOVES = (FIRST, PROMOTION, ROLLBACK)  # kinds by which we move `champion`
STAYS = (KEPT, WAITING, BEGUN, SKIPPED)  # kinds by which the champion stays, for now or for good

ENTRY = "thawline.entry"  # tag of a version: the entry as JSON
DONE = "thawline.done"  # tag of a version: the aliases are where the entry says
SOURCE = "thawline:/ledger"  # of a version: it has no files, MLflow wants a name
LONGEST = 100_000  # characters of a tag that MLflow takes


class BrokenChain(ThawlineError):
    """The ledger is not what was written."""


@dataclass(frozen=True)
class Entry:
    """One decision about an alias."""

    kind: str
    model: str
    alias: str
    from_version: int | None
    to_version: int | None
    evidence: dict[str, Any] = field(default_factory=dict)
    reason: str = ""
    who: str = ""
    commit: str | None = None  # of git, from which the version in question was made
    hashes: dict[str, str] = field(default_factory=dict)  # of DVC, by path: its data and results
    number: int = 0  # 1 for the first
    time: str = ""  # UTC, ISO 8601
    previous_hash: str = ""  # of the entry before; empty for the first
    hash: str = ""  # sha256 of all the rest

    def sentence(self) -> str:
        """For people: `promotion: champion 1 → 2, by Ada`."""
        moved = f"{self.from_version or 'none'} → {self.to_version or 'none'}"
        return f"{self.kind}: {self.alias} {moved}, by {self.who}"


class Ledger:
    """The chain of one model, as it was last read."""

    def __init__(self, client: MlflowClient, project: Project, model: str) -> None:
        self._client, self._project, self.model = client, project, model
        self.name = f"{model}.ledger"
        self.path = copy_path(project.root, model)
        self.entries: list[Entry] = []
        self.pending: Entry | None = None  # the last entry, until the aliases are known to follow
        self._place = 0  # of the last entry: its version's number

    def read(self) -> list[Entry]:
        """All entries, oldest first; the copy in the project is brought up to them.

        Raises `BrokenChain`.
        """
        from filelock import FileLock

        self._project.scratch.mkdir(parents=True, exist_ok=True)
        with FileLock(self._project.scratch / "ledger.lock"):
            self._follow_chain()
            self._copy()
        return self.entries

    def append(self, entry: Entry) -> Entry | None:
        """Seal an entry and put it after the last one read.

        Returns it as it was sealed; None when another's came first: then nothing was decided, and
        `entries` holds that other.
        """
        last = self.entries[-1] if self.entries else None
        entry = replace(
            entry,
            reason=redact(entry.reason),
            evidence=redacted(json.loads(json.dumps(entry.evidence))),  # as it will be read
            number=last.number + 1 if last else 1,
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            previous_hash=last.hash if last else "",
        )
        entry = replace(entry, hash=_digest(entry))
        text = _line(entry)
        if len(text) > LONGEST:
            raise ThawlineError(
                f"the evidence for {entry.sentence()!r} has {len(text)} characters, the ledger in "
                f"MLflow takes {LONGEST}; leave single examples out of it"
            )
        if last is None:
            about = f"The decisions about the champion of {self.model}; do not edit"
            registry.ensure_model(self._client, self.name, about)
        place = self._client.create_model_version(
            self.name,
            source=SOURCE,
            description=entry.sentence(),
            tags={ENTRY: text},
        ).version
        if entry in self.read():
            return entry
        void = f"void, another entry came first: {entry.sentence()}"
        self._client.update_model_version(self.name, str(place), description=void)
        return None

    def mark_done(self) -> None:
        """Note that the aliases are where the last entry says."""
        self._client.set_model_version_tag(self.name, str(self._place), DONE, "true")
        self.pending = None

    def _follow_chain(self) -> None:
        self.entries, self.pending = [], None
        seen = {""}
        for version in reversed(registry.versions(self._client, self.name)):
            where = f"version {version.number} of the registered model {self.name!r}"
            entry = _parsed(version.tags.get(ENTRY, ""))
            if entry is None:
                raise self._broken(f"{where} is not what was written")
            if entry.previous_hash not in seen:
                raise self._broken(f"the entry before {where} is gone")
            if entry.previous_hash == (self.entries[-1].hash if self.entries else ""):
                self.entries.append(entry)
                seen.add(entry.hash)
                self.pending = None if DONE in version.tags else entry
                self._place = version.number

    def _copy(self) -> None:
        """Append to the project's copy what it lacks, durably; what a kill left torn goes first."""
        kept = self._kept()
        for mine, theirs in zip(kept, self.entries, strict=False):
            if mine != theirs:
                raise self._broken(f"entry {mine.number} differs between {self.path} and MLflow")
        if len(kept) > len(self.entries):
            gone = f"entry {len(self.entries) + 1}, which {self.path} holds"
            raise self._broken(f"the registered model {self.name!r} lacks {gone}")
        new = "".join(f"{_line(entry)}\n" for entry in self.entries[len(kept) :])
        if new:
            with self.path.open("ab") as file:
                file.write(new.encode())
                file.flush()
                os.fsync(file.fileno())
            files.fsync_folder(self.path.parent)

    def _kept(self) -> list[Entry]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self.path, len(whole))
        kept = []
        for number, line in enumerate(whole.decode(errors="replace").split("\n")[:-1], 1):
            entry = _parsed(line)
            if entry is None:
                raise self._broken(f"line {number} of {self.path} is not what was written")
            kept.append(entry)
        return kept

    def _broken(self, what: str) -> BrokenChain:
        return BrokenChain(
            f"the ledger of {self.model!r} was changed: {what}; nothing is decided until it is put "
            f"right from the other of the two ({self.path}, which is written anew from MLflow when "
            "it is gone), or both are renamed, which begins a new ledger"
        )


def champion(entries: list[Entry]) -> int | None:
    """The champion by the ledger."""
    line = _succession(entries)
    return line[-1] if line else None


def previous(entries: list[Entry], there: Container[int] | None = None) -> int | None:
    """The version to which a rollback goes, by the ledger; of those that are `there`."""
    before = _succession(entries)[:-1]
    known = [n for n in before if there is None or n is None or n in there]
    return known[-1] if known else None


def questions(entries: list[Entry]) -> list[Entry]:
    """What a person was asked since the champion was last moved, the newest first."""
    found = []
    for entry in reversed(entries):
        if entry.alias == CHAMPION and entry.kind not in STAYS:
            break
        if entry.kind == WAITING:
            found.append(entry)
    return found


def closed(entries: list[Entry]) -> list[Entry]:
    """All that a person was asked before the champion was last moved."""
    open_ = questions(entries)
    return [entry for entry in entries if entry.kind == WAITING and entry not in open_]


def _succession(entries: list[Entry]) -> list[int | None]:
    """The champions through which rollbacks would go back, the one of now last.

    None stands for an alias that somebody removed.
    """
    line: list[int | None] = []
    for entry in entries:
        after = entry.to_version
        if entry.alias == PREVIOUS:
            line[-2:] = [after, *(line[-1:] or [None])]
        elif entry.alias != CHAMPION or entry.kind in STAYS:
            continue
        elif entry.kind == ROLLBACK and after in line[:-1]:
            del line[len(line) - 1 - line[-2::-1].index(after) :]
        elif line and line[-1] is None:
            line[-1] = after
        else:
            line.append(after)
    return line


def copy_path(root: Path, model: str) -> Path:
    """This machine's copy; one for each store that the project has used."""
    name = store.store_name(root)
    used = "" if store.is_embedded() else f"-{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return root / "ledger" / f"{model}{used}.jsonl"


def _line(entry: Entry) -> str:
    return json.dumps(asdict(entry), ensure_ascii=False)


def _parsed(text: str) -> Entry | None:
    """The entry in a line; None when it is not one, or not as it was sealed."""
    try:
        entry = Entry(**json.loads(text))
    except (ValueError, TypeError):
        return None
    return entry if entry.hash == _digest(entry) else None


def _digest(entry: Entry) -> str:
    return files.sha256_json({**asdict(entry), "hash": ""})
