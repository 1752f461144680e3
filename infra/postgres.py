"""A PostgreSQL cluster of one's own: in a folder, on a Unix socket, run by PostgreSQL's tools.

It listens on no port, and nobody but its owner enters the folder of its socket: so it needs no
password. PostgreSQL refuses to be run by root, for whom a system user owns and runs it.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tasks.errors import ThawlineError

USER = "thawline"  # of the database
SYSTEM_USERS = ("postgres", "nobody")  # for root
DEBIAN = Path("/usr/lib/postgresql")
START_SECONDS = 120
SOCKET_BYTES = 103  # what every system's socket address takes


@dataclass(frozen=True)
class Cluster:
    """One cluster: the folder that holds its data, log and socket."""

    folder: Path

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def log(self) -> Path:
        return self.folder / "log"

    def url(self, database: str, driver: str = "postgresql") -> str:
        """The SQLAlchemy address of one of its databases."""
        return f"{driver}://{USER}@/{database}?host={quote(str(self.folder), safe='')}"

    @contextlib.contextmanager
    def started(self, databases: tuple[str, ...]) -> Iterator[None]:
        """Have it run, with these databases, and end it in the end. The data stays.

        Raises `ThawlineError` when PostgreSQL is not installed or does not start.
        """
        self._make()
        if self._run("pg_ctl", "-D", str(self.data), "status", check=False).returncode == 0:
            self._stop()  # a kill left it running, perhaps with other settings
        options = shlex.join(["-k", str(self.folder), "-h", ""])
        wait = ("-w", "-t", str(START_SECONDS))
        self._run(
            "pg_ctl", "-D", str(self.data), "-l", str(self.log), *wait, "-o", options, "start"
        )
        try:
            there = self._ask("SELECT datname FROM pg_database").split()
            for name in databases:
                if name not in there:
                    self._ask(f"CREATE DATABASE {name}")
            yield
        finally:
            self._stop()

    def _make(self) -> None:
        if len(os.fsencode(self.folder / ".s.PGSQL.5432")) > SOCKET_BYTES:
            raise ThawlineError(
                f"{self.folder} is too long a path for a Unix socket; name a shorter one: "
                "make stack STACK=DIR"
            )
        if not self.folder.exists():
            self.folder.mkdir(parents=True, mode=0o700)
            if os.geteuid() == 0:
                owner = _system_user()
                os.chown(self.folder, owner.pw_uid, owner.pw_gid)
        if self._as_owner("test", "-w", str(self.folder)).returncode != 0:
            raise ThawlineError(
                f"{self.folder} cannot be entered by {self.folder.owner()}, who runs PostgreSQL; "
                "name a folder below one that all may enter: make stack STACK=/var/lib/thawline"
            )
        if not self.data.exists():
            new = self.folder / "data.new"  # a kill must leave no half-made cluster behind
            shutil.rmtree(new, ignore_errors=True)
            access = ("-U", USER, "-A", "trust", "-E", "UTF8", "--no-locale")
            self._run("initdb", "-D", str(new), *access)
            new.rename(self.data)

    def _ask(self, sql: str) -> str:
        where = ("-h", str(self.folder), "-U", USER, "-d", "postgres")
        return self._run("psql", "-X", "-At", *where, "-c", sql).stdout

    def _stop(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", "fast", "-w", "stop", check=False)

    def _run(
        self, program: str, *arguments: str, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run one of PostgreSQL's programs as the owner of the folder."""
        done = self._as_owner(find(program), *arguments)
        if check and done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise ThawlineError(f"{program} failed; see {self.log}. It said: {said}")
        return done

    def _as_owner(self, *command: str) -> subprocess.CompletedProcess[str]:
        status = self.folder.stat()
        owner: dict[str, Any] = (
            {"user": status.st_uid, "group": status.st_gid, "extra_groups": []}
            if os.geteuid() == 0
            else {}
        )
        return subprocess.run(
            command,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            **owner,
        )


def find(program: str) -> str:
    """The path of a program of PostgreSQL. Raises `ThawlineError` when it is not installed."""
    if found := shutil.which(program):
        return found
    versions = sorted(
        DEBIAN.glob(f"*/bin/{program}"),
        key=lambda path: [int(number) for number in re.findall(r"\d+", path.parts[-3])],
    )
    if versions:
        return str(versions[-1])
    raise ThawlineError(
        f"PostgreSQL is not installed (no {program} in PATH or {DEBIAN}); install it: "
        "apt-get install postgresql, or brew install postgresql"
    )


def _system_user() -> pwd.struct_passwd:
    for name in SYSTEM_USERS:
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    raise ThawlineError("PostgreSQL refuses root, and there is no user postgres or nobody")
