"""The training loop: phases of a thaw plan, resumable to the bit after any step."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from tasks import freeze
from tasks.engine import checkpoint
from tasks.engine.device import Compute
from tasks.engine.network import Network
from tasks.engine.parallel import Ranks
from tasks.engine.phase import PhaseRun
from tasks.engine.state import PhaseData, State
from tasks.params import TrainParams
from tasks.records import Phase


class Trainer:
    """Trains a network through the phases of a plan.

    `fit` leaves the state of `State.best_epoch` (of the averaged weights, with `ema`) in the
    network. `on_checkpoint` is called with the state after each durable checkpoint.
    """

    def __init__(
        self,
        network: Network,
        phases: list[Phase],
        params: TrainParams,
        *,
        seed: int,
        compute: Compute,
        frozen_norms: bool,
        folder: Path | None,
        on_checkpoint: Callable[[State], None] = lambda state: None,
        ranks: Ranks | None = None,
    ) -> None:
        self.network = network
        self.phases = phases
        self.params = params
        self.seed = seed
        self.compute = compute
        self.frozen_norms = frozen_norms
        self.folder = folder
        self.on_checkpoint = on_checkpoint
        self.ranks = ranks or Ranks()
        self.state = State()
        self.resumed_from_step = 0
        self.learned = {name for phase in phases for name in phase.learning_rates}
        self.best: dict[str, Tensor] = {}
        self.restored: checkpoint.Checkpoint | None = None
        self.saved_step = 0  # of the newest checkpoint
        self.terminated = 0  # the signal that asked for an end
        self.ranks.admit(network, self.learned, frozen_norms)

    def restore(self) -> bool:
        """Take up the newest whole checkpoint; False when there is none."""
        found = checkpoint.load(self.folder) if self.folder else None
        if found is None:
            return False
        self.restored = found
        self.state = State.of(found.values["state"])
        self.resumed_from_step = self.saved_step = self.state.step
        self.network.load(checkpoint.under(found.tensors, "net/"))
        self.best = checkpoint.under(found.tensors, "best/")
        return True

    def fit(self, data: Callable[[int], PhaseData]) -> State:
        """Train; `data(i)` gives the inputs of phase i when it begins.

        Raises `Diverged` when the loss is no longer finite, before that step is taken.
        """
        self.ranks.level(self.network.state().values())
        while self.state.phase < len(self.phases):
            index = self.state.phase
            inputs = data(index)
            with self._terminable():
                running = PhaseRun(self, index, inputs)
                running.run()
                self.network.load(self.best)
                running.prove()
                self.state.phase += 1
                self.state.phase_step = 0
                self.state.waited = 0
                self.save(None)
        self.network.learn((), frozen_norms=False)
        return self.state

    def epochs_of(self, index: int) -> int:
        """Epochs of a phase: its own, or what the others leave of `train.epochs`."""
        return freeze.epochs_of(self.phases, self.params.epochs)[index]

    def kept(self) -> str:
        """Which state there is to go back to, as the end of a sentence."""
        return f" (the state after step {self.saved_step} is kept)" if self.folder else ""

    def save(self, running: PhaseRun | None) -> None:
        """Write a checkpoint, with the optimizer and the average of a running phase."""
        if self.folder is not None and self.ranks.rank == 0:
            extra: dict[str, Any] = {"state": asdict(self.state)}
            tensors = checkpoint.prefixed("net/", self.network.state(self.learned))
            tensors |= checkpoint.prefixed("best/", self.best)
            if running is not None:
                tensors |= running.tensors()
                extra["scaler"] = running.scaler.state_dict()
            checkpoint.save(self.folder, checkpoint.Checkpoint(self.state.step, tensors, extra))
            self.saved_step = self.state.step
        self.on_checkpoint(self.state)
        asked = self.ranks.highest(self.terminated)
        if asked:  # the end of the first process says why
            raise SystemExit(0 if self.ranks.rank else 128 + asked)

    @contextmanager
    def _terminable(self) -> Iterator[None]:
        """Turn SIGTERM and Ctrl-C into a checkpoint and an orderly end (main thread only)."""

        def note(number: int, _: object) -> None:
            self.terminated = number

        asked = (signal.SIGTERM, signal.SIGINT)
        try:
            before = {number: signal.signal(number, note) for number in asked}
        except ValueError:  # not the main thread, which alone may set handlers
            yield
            return
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
