"""Load a packaged model in a fresh process and predict with it, as one who is given it would.

Nothing that training or evaluation left in memory can help it there, and one that crashes or hangs
takes nobody with it. The child is this module itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import ThawlineError
from tasks.gate.evidence import Loaded

SECONDS = 300.0  # after which a model that does not answer is given up
TIMED = 20  # single examples whose median time is the latency


def load(
    folder: Path,
    problem: str,
    samples: Mapping[str, Any],
    threads: int = 1,
    seconds: float = SECONDS,
) -> Loaded:
    """Predict `samples` (example id → array or text, as the predictor takes it); never raises.

    What went wrong stands in `error`, one sentence.
    """
    with tempfile.TemporaryDirectory() as scratch:
        given = Path(scratch) / "samples.npz"
        with given.open("wb") as file:
            np.savez(file, ids=np.array(list(samples)), **_numbered(samples.values()))
        command = [sys.executable, "-P", "-m", __name__, str(folder), problem]
        try:
            done = subprocess.run(
                [*command, str(given), str(threads)],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return Loaded(f"A fresh process has not answered within {seconds:g} seconds.")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        return Loaded(f"A fresh process cannot use the model: {said[-1]}")
    return Loaded(**json.loads(done.stdout.splitlines()[-1]))


def _numbered(arrays: Any) -> dict[str, Any]:
    return {str(number): array for number, array in enumerate(arrays)}


def _plain(value: Any) -> Any:
    """A text is an array of no dimension on its way through the file."""
    return value if value.ndim else value.item()


def main(folder: str, problem: str, given: str, threads: str) -> None:
    """The child: one line of JSON, a `Loaded`."""
    import torch

    from tasks.problems import predicting

    torch.set_num_threads(int(threads))
    predictor = predicting(problem).Predictor(folder)
    with np.load(given, allow_pickle=False) as read:
        ids = read["ids"].tolist()
        samples = [_plain(read[str(number)]) for number in range(len(ids))]
    found = predictor.predict(samples)
    seconds = []
    for sample in [*samples * TIMED][:TIMED]:
        begun = time.perf_counter()
        predictor.predict([sample])
        seconds.append(time.perf_counter() - begun)
    print(
        json.dumps(
            asdict(
                Loaded(
                    None,
                    predictor.digest,
                    sum(path.stat().st_size for path in Path(folder).iterdir()) / 1e6,
                    1000 * float(np.median(seconds)),
                    dict(zip(ids, found["label"], strict=True)),
                    dict(zip(ids, found["probability"], strict=True)),
                )
            )
        )
    )


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except ThawlineError as error:
        sys.exit(str(error))
