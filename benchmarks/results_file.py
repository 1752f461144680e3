"""The results of a benchmark: NAME.json for programs and NAME.md for people, with the same header.

The header says what was measured where: benchmark, date, machine, versions, Thawline's commit, and
the load of the machine when the benchmark began and ended, since others may compute on it too.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks import files

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
RUNS = (
    Path(__file__).parent / "runs"
)  # single runs of other libraries, by kind of machine and data set


def machine() -> str:
    """The machine and the versions that bear on speed, on one line."""
    torch = importlib.metadata.version("torch")
    return (
        f"{os.cpu_count()} cores ({_processor()}, {_vectors()}), {platform.machine()}, "
        f"Python {platform.python_version()}, torch {torch}"
    )


def machine_kind() -> str:
    """A name for machines whose CPU seconds may be compared, such as `amd-epyc-avx512_bf16`."""
    return re.sub(r"[^a-z0-9_]+", "-", f"{_processor()} {_vectors()}".lower())


def commit() -> str:
    """Thawline's commit; a `+` after it when its code differs from that commit."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "tasks", "flows", "params.yaml", "dvc.yaml")
    return (git("rev-parse", "--short=10", "HEAD") or "unknown") + ("+" if changed else "")


def kept(path: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What was measured and kept before, or is measured now."""
    if not path.exists():
        files.write_json(path, measure())
    return dict(files.read_json(path))


def load() -> float:
    """The load average of the last minute, which counts the benchmark itself."""
    return round(os.getloadavg()[0], 2)


@dataclass(frozen=True)
class Results:
    """One benchmark's results file; make it when the measuring begins."""

    name: str  # of the module
    title: str
    folder: Path = RESULTS
    some: Sequence[str] = ()  # data sets, where these are not all that the benchmark has
    variant: str = ""  # the option, if any, that makes it another benchmark
    load_at_start: float = field(default_factory=load)

    @property
    def stem(self) -> str:
        """The name of the files: results of some data sets replace no others."""
        return "_".join(filter(None, [self.name, self.variant, *self.some]))

    def header(self) -> dict[str, Any]:
        options = [f"--{self.variant} …"] if self.variant else []
        options += ["--data", *self.some] if self.some else []
        return {
            "benchmark": " ".join([f"python -m benchmarks.{self.name}", *options]),
            "date": datetime.date.today().isoformat(),
            "machine": machine(),
            "commit": commit(),
            "load": [self.load_at_start, load()],
        }

    def write(self, values: dict[str, Any], lines: list[str]) -> None:
        """Write the values below the header, and the lines (Markdown) below it as text."""
        header = self.header()
        files.write_json(self.folder / f"{self.stem}.json", header | values)
        before, after = header["load"]
        text = [
            f"# {self.title}",
            "",
            f"`{header['benchmark']}`, {header['date']}, {header['machine']}; Thawline "
            f"{header['commit']}; load average {before} at the start, {after} at the end.",
            "",
            *lines,
        ]
        with files.atomic(self.folder / f"{self.stem}.md") as temporary:
            temporary.write_text("\n".join(text) + "\n", encoding="utf-8")
        print(f"wrote {self.folder / self.stem}.json and .md", flush=True)


def _vectors() -> str:
    """The widest vectors that the processor computes with: processors of one name may differ."""
    import torch

    able = torch.cpu.get_capabilities()
    known = ("amx_bf16", "avx512_bf16", "avx512_f", "avx2", "bf16")
    return next((name for name in known if able.get(name)), "no vectors known")


def _processor() -> str:
    """The processor's name where the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"
