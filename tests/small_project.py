"""A small real project, made and run as a user would: real images, weights, DVC, Prefect, MLflow.

Three classes of the embedded sample, so small that a whole run takes well under a minute.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import psutil

from flows import cli
from flows.project import QUIET
from tasks import files, params_file
from tasks.records import Project
from tests.tasks.embedded import stored_sample

BIN = Path(sys.executable).parent
CLASSES = {"Bag": "包", "Ankle boot": "短靴 (Größe 38)", "Trouser": "长裤"}
EACH, MORE = 40, 5  # images of a class; images of two classes that are added later
TRUNCATED, DUPLICATE = "包/截断.png", "包/重复.png"
SETTINGS = [
    "threads=1",
    "select.race=0",
    "augment.image_size=64",
    "augment.views=2",
    "train.epochs=4",
    "train.batch_size=8",
    "evaluate.bootstrap=200",
    "register.experiment=clothes",
    "register.model=clothes",
]
# What a guarded run knows of the tester's environment: the libraries keep quiet by themselves under
# pytest and in continuous integration, and would hide that Thawline has not told them to.
KNOWN = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "THAWLINE_WEIGHTS",
    "TMPDIR",
    "XDG_CACHE_HOME",
)

# Loaded by every Python process at its start; a hook sees what all libraries do with sockets.
NO_NETWORK = """\
import os, socket, sys

FOLDER, OWN = os.environ["NETWORK_LOG"], {"localhost", "::1", "0.0.0.0", "::", socket.gethostname()}


def note(name, text):
    with open(os.path.join(FOLDER, name), "a") as file:
        print(text, file=file)


def guard(event, arguments):
    if event in ("socket.connect", "socket.sendto"):
        address = arguments[1]
        host = address[0] if isinstance(address, tuple) else None  # a file's name: a local socket
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if not host or host in OWN or host.startswith("127."):
        return
    note("asked", f"{event} {host} by {sys.argv}")
    raise OSError(f"blocked: {event} {host}")


note("guarded", " ".join(sys.orig_argv))
sys.addaudithook(guard)
"""


def environment(**more: str) -> dict[str, str]:
    """That of the tests, without servers that the tester may use; a guarded one has little else."""
    path = {"PATH": os.pathsep.join([str(BIN), os.environ["PATH"]])}
    if "NETWORK_LOG" in more:
        return {k: os.environ[k] for k in KNOWN if k in os.environ} | path | more
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PREFECT_"))}
    return own | QUIET | path | more


def call(
    folder: Path, *command: str, limit: float = 480, **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=folder,
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=limit,
        check=False,
    )


def here(place: Project | Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """As the command `thawline`, in this process: for what it does and says, not how it starts.

    The same entry point; spares the seconds that a process of its own takes to import everything.
    """
    folder = place.root if isinstance(place, Project) else place
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        contextlib.chdir(folder),
        mock.patch.dict(os.environ, environment(), clear=True),
        mock.patch.object(sys, "argv", ["thawline", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
            if isinstance(end.code, str):  # as the interpreter tells it
                print(end.code, file=sys.stderr)
    return subprocess.CompletedProcess(arguments, code, out.getvalue(), err.getvalue())


def succeed(folder: Path, *command: str, limit: float = 480, **variables: str) -> str:
    done = call(folder, *command, limit=limit, **variables)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}\n{last_log(folder)}"
    return done.stdout


def run(project: Project, *options: str, limit: float = 480, **variables: str) -> dict[str, Any]:
    """`thawline run` that must succeed; its summary, with `states`: stage → state."""
    command = ("thawline", "run", "--json", *options)
    result = json.loads(succeed(project.root, *command, limit=limit, **variables))
    return {**result, "states": {s["stage"]: s["state"] for s in result["stages"]}}


def wait_until(holds: Callable[[], bool], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.05)


def last_log(folder: Path) -> str:
    logs = sorted((folder / "logs").glob("*.log"), key=lambda path: path.stat().st_mtime)
    return logs[-1].read_text(errors="replace")[-4000:] if logs else ""


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=A Tester", "-c", "user.email=tester@example.org"]
    return succeed(folder, "git", *identity, *arguments)


def commit(project: Project) -> None:
    git(project.root, "add", "--all")
    git(project.root, "commit", "--quiet", "--message", "as it is now")


def clone(project: Project, folder: Path) -> Project:
    """A fresh clone of what is committed; nothing of DVC's cache, MLflow or scratch comes along."""
    git(folder.parent, "clone", "--quiet", str(project.root), str(folder))
    return Project(folder)


def draw(folder: Path) -> tuple[Path, Path]:
    """Class folders with a truncated image and a duplicate; a copy of them with more images."""
    import pandas as pd

    sample = pd.read_parquet(stored_sample())
    data, grown = folder / "图片 raw", folder / "图片 grown"
    for label, name in CLASSES.items():
        (data / name).mkdir(parents=True)
        for number, image in enumerate(sample[sample["label"] == label]["image"].iloc[:EACH]):
            (data / name / f"图{number:03}.png").write_bytes(image)
    whole = (data / "包/图000.png").read_bytes()
    (data / DUPLICATE).write_bytes(whole)
    (data / TRUNCATED).write_bytes(whole[: len(whole) // 2])
    shutil.copytree(data, grown)
    for label in list(CLASSES)[:2]:
        images = sample[sample["label"] == label]["image"].iloc[EACH : EACH + MORE]
        for number, image in enumerate(images):  # first in the listing, so that all rows move
            (grown / CLASSES[label] / f"0新{number}.png").write_bytes(image)
    return data, grown


def new(folder: Path, data: Path) -> Project:
    succeed(folder.parent, "thawline", "new", folder.name, "--data", str(data))
    params_file.set_values(folder, SETTINGS)
    return Project(folder)


def digests(project: Project) -> dict[str, str]:
    """sha256 of what makes up the packaged model."""
    names = ("model.safetensors", "model.json")
    return {name: files.sha256_file(project.models / name) for name in names}


def processes_in(project: Project, name: str = "") -> Iterator[psutil.Process]:
    """Everything, or what has a certain name, that runs in a project's folder."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):  # it may end while we look
            here = process.cwd() == str(project.root)
            if here and process.status() != psutil.STATUS_ZOMBIE and name in ("", process.name()):
                yield process


def kill_all(project: Project) -> None:
    """SIGKILL to all that works in a project, at once."""
    for process in list(processes_in(project)):
        with contextlib.suppress(psutil.Error):
            process.kill()


def guarded(folder: Path) -> dict[str, str]:
    """Variables under which no Python process reaches anything but loopback.

    `folder`/log then holds `guarded`, the command lines, and `asked`, what was blocked.
    """
    (folder / "log").mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths), "NETWORK_LOG": str(folder / "log")}
