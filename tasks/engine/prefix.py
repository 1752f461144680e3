"""The output of the frozen part at a thaw line, computed once a view.

A view starts from the same one at a lower line where that is kept, so that examples are decoded,
augmented and sent through the lower layers once for all lines. The bits are those of a pass from
the inputs: the same batches of the same rows, in the precision in which they were computed.
"""

from __future__ import annotations

import hashlib
import resource
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from tasks import files
from tasks.engine import lengths
from tasks.engine.ahead import ahead
from tasks.engine.device import Compute
from tasks.engine.fold import folded
from tasks.engine.view_cache import View, ViewCache
from tasks.problems import Examples
from tasks.progress import Advance, progress
from tasks.records import ViewPolicy

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Prefix:
    """The frozen layers below a thaw line and everything that determines their output."""

    cache: ViewCache
    modules: Sequence[nn.Module]  # from the input up, in evaluation mode
    layers: Sequence[str]  # what identifies each
    examples: Examples
    policy: ViewPolicy
    compute: Compute
    batch_size: int
    identity: dict[str, Any]  # whatever else there is: data, threads, versions …

    def below(self, line: int) -> Prefix:
        """The same below a lower line."""
        return replace(self, modules=self.modules[:line], layers=self.layers[:line])

    def keep(self, rows: Rows, view: int, on_the_way: Sequence[int] = ()) -> View:
        """The output for some manifest rows, in order: read when it was kept, else computed.

        Then it is kept at the lower lines `on_the_way` first, of which the lowest is the first.
        """
        sizes = self.examples.lengths(rows)
        key = self._key(rows, view)
        if (found := self.cache.find(key, sizes)) is not None:
            return found
        before = sum(self.below(line).keep(rows, view).computed for line in on_the_way)
        start, lower = self._start(rows, view)
        clock, cpu = time.perf_counter(), cpu_seconds()

        def cost() -> dict[str, float]:
            """From the inputs on, so also what the lower line has cost."""
            return {
                "seconds": time.perf_counter() - clock + (lower.seconds if lower else 0),
                "cpu_seconds": cpu_seconds() - cpu + (lower.cpu_seconds if lower else 0),
            }

        chosen = lengths.batches(len(rows), self.batch_size, sizes)
        with progress(f"frozen part, view {view}", len(rows)) as go:
            batches = self._batches(rows, view, chosen, start, lower, go)
            kept = self.cache.write(key, len(rows), batches, cost, sizes)
        return replace(kept, computed=before + 1)

    def run(self, batches: Iterable[Tensor], start: int = 0) -> Iterator[Tensor]:
        """The outputs for batches at the line `start`, on the compute device."""
        network = folded(nn.Sequential(*self.modules[start:]))
        for values in batches:
            yield self.compute.forward(network, self.compute.send(values))

    def error(self, rows: Rows, view: int) -> float:
        """How far the precision is off: the relative error of a batch against the same layers in
        float32, as the device computes that (a GPU's convolutions in TF32)."""
        inputs = self.examples.batch(rows[: self.batch_size], view)
        exact = replace(self.compute, dtype=torch.float32)
        [kept], [wanted] = self.run([inputs]), replace(self, compute=exact).run([inputs])
        kept = kept.float()
        return float((kept - wanted).norm() / wanted.norm().clamp_min(1e-12))

    def _batches(
        self,
        rows: Rows,
        view: int,
        batches: Sequence[Rows],
        start: int,
        lower: View | None,
        go: Advance,
    ) -> Iterator[tuple[Rows, Tensor]]:
        def inputs(chosen: Rows) -> Tensor:
            return lower.batch(chosen) if lower else self.examples.batch(rows[chosen], view)

        for chosen, values in zip(batches, self.run(ahead(inputs, batches), start), strict=True):
            yield chosen, values
            go(len(values))

    def _start(self, rows: Rows, view: int) -> tuple[int, View | None]:
        """The highest lower line where the view is kept, and the view; (0, None): the inputs."""
        sizes = self.examples.lengths(rows)
        for line in reversed(range(1, len(self.modules))):
            lower = self.cache.find(self.below(line)._key(rows, view), sizes)
            if lower is not None and lower.order is not None:
                return line, lower
        return 0, None

    def _key(self, rows: Rows, view: int) -> str:
        sizes = self.examples.lengths(rows)
        differing = {} if sizes is None else {"lengths": _digest(sizes)}
        return files.sha256_json(
            {
                **self.identity,
                **differing,
                "policy": self.policy.behind(view).as_json(),
                "layers": self.layers,
                "batch_size": self.batch_size,
                "precision": self.compute.precision,
                "device": self.compute.device.type,
                "view": view,
                "rows": _digest(rows),
            }
        )[:32]


@dataclass
class Account:
    """What the views of one training have cost. The lines share the way up from the inputs, so a
    view of some rows is charged once, at the line where it cost most."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    computed: int = 0  # views that no cache had
    sizes: dict[str, int] = field(default_factory=dict)  # of the views used, in bytes
    errors: dict[str, float] = field(default_factory=dict)  # thaw line → of what is kept there
    charged: dict[str, tuple[float, float]] = field(default_factory=dict)  # split and view → cost

    @property
    def spared(self) -> bool:
        """Whether a cache had all that there is to charge."""
        return self.seconds > 0 and not self.computed

    @property
    def found(self) -> int:
        """Views used that a cache had."""
        return max(0, len(self.sizes) - self.computed)

    def charge(self, split: str, view: int, kept: View, paid: bool = False) -> None:
        """Charge what was not charged before, but for what is `paid` on another clock."""
        what = f"{split} {view}"
        seconds, cpu = self.charged.get(what, (0.0, 0.0))
        if not paid:
            self.seconds += max(0.0, kept.seconds - seconds)
            self.cpu_seconds += max(0.0, kept.cpu_seconds - cpu)
        self.charged[what] = max(seconds, kept.seconds), max(cpu, kept.cpu_seconds)
        self.computed += kept.computed
        self.sizes[kept.path.name] = kept.values.nbytes


def _digest(numbers: Rows) -> str:
    return hashlib.sha256(numbers.tobytes()).hexdigest()


def cpu_seconds() -> float:
    """CPU seconds of this process so far, all threads."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime
