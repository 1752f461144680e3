from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from flows import process
from tests.small_project import wait_until

# `sleep` is a grandchild behind a shell: nothing but the watcher can tell it of our end.
LEADER = """
import subprocess, sys, time
from flows.process import end_group_with_self
end_group_with_self()
subprocess.Popen(["sh", "-c", "sleep 300; true"])
print("started", flush=True)
time.sleep({seconds})
"""


def start(code: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True
    )


def members(group: int) -> list[int]:
    import os

    found = []
    for pid in psutil.pids():
        try:
            alive = psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
            found += [pid] if os.getpgid(pid) == group and alive else []
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


@pytest.mark.parametrize("kill", [True, False], ids=["killed", "ended"])
def test_a_group_ends_with_its_leader(kill: bool) -> None:
    leader = start(LEADER.format(seconds=60 if kill else 0.3))
    assert leader.stdout is not None and leader.stdout.readline() == b"started\n"
    wait_until(lambda: len(members(leader.pid)) >= 3, 10)
    if kill:
        leader.kill()
    leader.wait(10)
    wait_until(lambda: not members(leader.pid), 10)


def test_past_its_limit_a_group_is_ended() -> None:
    leader = start("import subprocess; subprocess.run('sleep 300; true', shell=True)")
    wait_until(lambda: len(members(leader.pid)) >= 3, 10)
    with pytest.raises(process.TimedOut):
        process.wait(leader, limit=0.2, grace=1)
    wait_until(lambda: not members(leader.pid), 10)


def test_a_stop_interrupts_then_kills(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(2, signal.SIG_IGN); print(); time.sleep(300)"
    leader = start(stubborn.replace("print()", "print(flush=True)"))
    assert leader.stdout is not None
    leader.stdout.readline()
    began = time.monotonic()
    with pytest.raises(process.Stopped):
        process.wait(leader, stopping=lambda: True, grace=0.5)
    assert leader.returncode == -9
    assert 0.5 <= time.monotonic() - began < 5


def test_a_child_whose_parent_is_gone_ends_at_once() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from flows.process import *; die_with_parent(1); print('on')"],
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, b"")
