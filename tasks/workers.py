"""The same work in several processes, none of which holds up the others when it is killed."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection, wait

from tasks.errors import ThawlineError
from tasks.progress import PROCESS

POLL_SECONDS = 1.0


def run(
    work: Callable[[], None], count: int, threads: int, watch: Callable[[], None] = lambda: None
) -> None:
    """Do `work`, which is pickled, in `count` processes of so many threads until all have ended.

    `watch` is called now and then. They end with this process, however that ends. A killed one is
    let go; raises `ThawlineError` when one has failed by itself, and ends the others.
    """
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads, halted
    told, tell = context.Pipe(duplex=False)
    processes = [context.Process(target=_work, args=(work, threads, tell)) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        while left := [process for process in processes if process.is_alive()]:
            wait([process.sentinel for process in left], POLL_SECONDS)
            watch()
            if told.poll():
                raise ThawlineError(told.recv())
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
                process.join()


def _work(work: Callable[[], None], threads: int, tell: Connection) -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ[PROCESS] = "1"  # one bar is enough
    import torch

    torch.set_num_threads(threads)
    try:
        work()
    except Exception as error:
        tell.send(str(error) if isinstance(error, ThawlineError) else repr(error))
        raise SystemExit(1) from error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
