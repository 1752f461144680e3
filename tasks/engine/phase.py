"""One phase of the training loop: its steps, its epochs, and how it judges them.

Everything random is drawn from a generator seeded with (seed, place in the training), and the
schedule is a function of the step, so a checkpoint holds tensors and counters only.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from tasks.engine import checkpoint, labels, lengths, optimizer, schedule
from tasks.engine.average import Average, statistics
from tasks.engine.fold import folded
from tasks.engine.network import Network, digest
from tasks.engine.objective import Objective
from tasks.engine.pooling import Pool
from tasks.engine.prefix import cpu_seconds
from tasks.engine.state import PhaseData
from tasks.errors import Diverged, ThawlineError
from tasks.progress import Advance, progress

if TYPE_CHECKING:
    from tasks.engine.loop import Trainer

SKIPPED = 25  # steps in a row that a float16 scaler may skip; it halves its factor at each
VALIDATED = 256  # validation examples a forward pass …
VALIDATED_ALIKE = 32  # … and of different lengths, where the longest decides for all of a batch

log = logging.getLogger(__name__)


def parts_of(batch: int, ranks: int, micro_batch: int) -> int:
    """In how many parts, of nearly one size, each rank computes its slice of a batch.

    In as many on every rank, though slices differ by one: batch norms that learn on several ranks
    wait for each other in each part. No part is empty.
    """
    return min(math.ceil(math.ceil(batch / ranks) / micro_batch), batch // ranks)


class PhaseRun:
    """One phase: the layers that learn, their optimizer and their running average."""

    def __init__(self, trainer: Trainer, index: int, data: PhaseData) -> None:
        self.trainer, self.data = trainer, data
        self.state, self.params = trainer.state, trainer.params
        self.network, self.compute = trainer.network, trainer.compute
        self.ranks = trainer.ranks
        self.phase = trainer.phases[index]
        if self.params.learning_rate == "auto":
            raise ValueError("tune puts a number in place of learning_rate: auto")
        self.rate = self.params.learning_rate
        self.name = f"{index + 1} {self.phase.name}"
        self.learned = set(self.phase.learning_rates)
        self.start = min(self.network.index(name) for name in self.learned)
        self.network.learn(self.learned, trainer.frozen_norms, self.phase.learns)
        self.suffix = self.network.run(self.start)
        self.body, self.head, self.pool = self.suffix[:-1], self.suffix[-1], Pool()
        self.statistics = list(statistics(self.suffix).values())
        self.old = data.old if self.params.keep_close_to != "none" else None
        self.examples = len(data.train_targets)
        self.batch = min(self.params.batch_size, self.examples)
        self.micro_batch = min(self.params.micro_batch or self.batch, self.batch)
        self.objective = Objective.of(self.params, data.train_targets)
        whole = self.examples // self.batch
        self.steps_an_epoch = min(whole, data.steps or whole)
        self.epochs = trainer.epochs_of(index)
        decay = self.params.weight_decay
        self.optimizer = optimizer.adamw(self.network, self.phase, self.rate, decay, self.compute)
        self.learning = optimizer.learning(self.optimizer)
        self.average = Average(self.suffix, self.params.ema) if self.params.ema else None
        self.skipped = 0  # steps in a row
        self.scaler = torch.amp.GradScaler(
            self.compute.device.type, enabled=self.compute.dtype == torch.float16
        )
        self.saved = time.monotonic()  # when the last checkpoint was written
        self._restore()

    def run(self) -> None:
        self.state.frozen_before.setdefault(self.name, digest(self.network.frozen()))
        done = self.state.phase_step
        clock = time.perf_counter(), cpu_seconds()
        if not self.state.history:
            self._judge(None, 0.0)  # epoch 0: a start in closed form may be the best there is
        clock = self._charge(*clock)
        if not done:
            self._save()  # what to go back to, before the first step
        self._charge(*clock)
        with progress(f"training, {self.phase.name}", self.epochs * self.steps_an_epoch) as go:
            go(done)
            for epoch in range(done // self.steps_an_epoch, self.epochs):
                if self._exhausted():
                    break
                self._epoch(epoch, done % self.steps_an_epoch, go)
                done = 0

    def prove(self) -> None:
        """Note that what was frozen is what it was, in the weights that are kept."""
        self.state.frozen_after[self.name] = digest(self.network.frozen())
        if self.state.frozen_after[self.name] != self.state.frozen_before[self.name]:
            raise ThawlineError(
                f"phase {self.name!r}: frozen layers changed while training; this is a defect"
            )

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint needs beyond the network itself."""
        found = checkpoint.prefixed("opt/", optimizer.tensors(self.optimizer))
        if self.average is not None:
            found |= checkpoint.prefixed("ema/", self.average.averaged)
        return found

    def _epoch(self, epoch: int, done: int, go: Advance) -> None:
        order = _generator(self.trainer.seed, "order", self.state.phase, epoch)
        drawn = self.objective.order(self.data.train_targets, order)
        shuffled = drawn[: self.steps_an_epoch * self.batch]
        whole = lengths.alike(shuffled, self.batch, self.data.train.lengths, order)
        batches = self.ranks.columns(whole[done:])
        clock, cpu = time.perf_counter(), cpu_seconds()
        old_outputs = (
            self.old.train.batches(batches, epoch) if self.old else repeat(None, len(batches))
        )
        inputs_of = self._timed("inputs", self.data.train.batches(batches, epoch))
        for inputs, before, chosen in zip(inputs_of, old_outputs, batches, strict=True):
            loss = self._step(inputs, self.data.train_targets[torch.from_numpy(chosen)], before)
            go(1, loss=loss)
            last = self.state.phase_step % self.steps_an_epoch == 0
            if last:
                self._finish_epoch()
            pause = time.monotonic() - self.saved
            due = pause >= self.params.checkpoint_seconds or bool(self.trainer.terminated)
            if self.ranks.highest(due):
                clock, cpu = self._charge(clock, cpu)
                self._save()
        self._charge(clock, cpu)

    def _save(self) -> None:
        with self._spent("checkpoints"):
            self.trainer.save(self)
        self.saved = time.monotonic()

    def _charge(self, clock: float, cpu: float) -> tuple[float, float]:
        """Add the time since to the record; returns the new start."""
        now, cpu_now = time.perf_counter(), cpu_seconds()
        self.state.seconds += now - clock
        self.state.cpu_seconds += self.ranks.total(cpu_now - cpu)[0]
        return now, cpu_now

    def _step(self, inputs: Tensor, targets: Tensor, before: Tensor | None) -> float:
        state = self.state
        rate = self._set_rates()
        with self._spent("gradients"):
            value = self._gradients(inputs, self.compute.send(targets), before)
            value = self.ranks.sum_gradients(self.learning, value)
        with self._spent("update"):
            self.scaler.unscale_(self.optimizer)
            self._admit(value, optimizer.clip(self.learning, self.params.gradient_clip))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if self.average is not None:
                self.average.update(first=state.phase_step == 0)
        state.step += 1
        state.phase_step += 1
        state.loss_sum += value
        if state.step % 10 == 0:
            self._point("step_loss", value, state.step)
            self._point("learning_rate", rate, state.step)
        return value

    def _admit(self, loss: float, norm: float) -> None:
        """Raises `Diverged` rather than take a step with a loss or gradients that are not finite.

        With a scaler, gradients beyond float16 make it skip the step; so many in a row are no
        accident.
        """
        self.skipped = 0 if math.isfinite(norm) else self.skipped + 1
        most = SKIPPED if self.scaler.is_enabled() else 0
        if math.isfinite(loss) and self.skipped <= most:
            return
        what, number = ("gradient", norm) if math.isfinite(loss) else ("loss", loss)
        raise Diverged(
            f"the training {what} became {number} at step {self.state.step + 1}; lower "
            f"train.learning_rate{self.trainer.kept()}"
        )

    def _gradients(self, inputs: Tensor, targets: Tensor, before: Tensor | None) -> float:
        """Set the gradients of one batch, in as many parts as fit; returns its loss.

        Parts that do not fit in the device's memory are halved, for this step and all that follow:
        the step stays that of the whole batch, but for batch norms that learn, which see the parts.
        """
        seed = _seed(self.trainer.seed, "step", self.state.phase, self.state.phase_step)
        as_before = [statistic.clone() for statistic in self.statistics]
        while True:
            self.compute.seed(seed + self.ranks.rank)
            try:
                return self._accumulate(inputs, targets, before)
            except ValueError as error:
                if "more than 1 value per channel" not in str(error):
                    raise
                raise ThawlineError(
                    "a batch norm that learns has no statistics of one example; raise "
                    "train.batch_size or train.micro_batch, or set freeze.batch_norm: frozen"
                ) from None
            except torch.OutOfMemoryError:
                if self.micro_batch == 1:
                    raise self.compute.too_small() from None
                if self.params.contrast:  # of parts, it would be another loss
                    raise ThawlineError(
                        f"a batch of {self.batch} examples does not fit in the memory of "
                        f"{self.compute.device}, and train.contrast needs it whole; lower "
                        "train.batch_size"
                    ) from None
                if self.ranks.size > 1:  # the others may not have run out, and would wait
                    size = min(self.micro_batch, len(inputs))
                    raise ThawlineError(
                        f"{size} examples do not fit in the memory of {self.compute.device}; set "
                        f"train.micro_batch to {math.ceil(size / 2)}"
                    ) from None
                self.micro_batch = math.ceil(self.micro_batch / 2)
                log.warning(
                    "a batch does not fit in the memory of %s: parts of %d from here on; "
                    "train.micro_batch says so from the start",
                    self.compute.device,
                    self.micro_batch,
                )
                for statistic, value in zip(self.statistics, as_before, strict=True):
                    statistic.copy_(value)  # some parts may have fitted

    def _accumulate(self, inputs: Tensor, targets: Tensor, before: Tensor | None) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        if before is not None:
            before = self.objective.softened(before)
        inputs, targets, before = self.objective.mixed(inputs, targets, before)
        total = 0.0
        count = parts_of(self.batch, self.ranks.size, self.micro_batch)

        def parted(values: Tensor) -> tuple[Tensor, ...]:
            return torch.tensor_split(values, count)

        old_outputs = repeat(None) if before is None else parted(before)
        parts = zip(parted(inputs), parted(targets), old_outputs, strict=False)
        for part, wanted, kept in parts:
            loss = self._loss(part, wanted, kept) * (len(part) / self.batch)
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            total += loss.item()
        return total

    def _loss(self, inputs: Tensor, targets: Tensor, before: Tensor | None) -> Tensor:
        with self.compute.learning():
            top = self.body(inputs)
            logits = self.head(top)
            now = self.old.head(top) if self.old else None
        loss = self.objective(logits.float(), targets)
        if self.params.contrast:
            loss = loss + self.objective.contrast(self.pool(top), targets)
        if now is None or before is None:
            return loss
        return loss + self.objective.drift(now.float(), before)

    def _finish_epoch(self) -> None:
        self.state.epoch += 1
        train_loss = self.state.loss_sum / self.steps_an_epoch
        self.state.loss_sum = 0.0
        self._judge(train_loss, self.optimizer.param_groups[-1]["lr"])
        self._point("train_loss", train_loss, self.state.epoch)

    def _judge(self, train_loss: float | None, rate: float) -> None:
        """Note how the network does on validation, and keep it if it is the one to keep so far."""
        state = self.state
        with self._spent("validation"):
            loss, accuracy = self._validate()
        if not math.isfinite(loss):
            cure = "lower train.learning_rate" if state.epoch else "set precision to float32"
            raise Diverged(
                f"the validation loss became {loss} in epoch {state.epoch}; {cure}"
                f"{self.trainer.kept()}"
            )
        row = {
            "epoch": state.epoch,
            "phase": self.phase.name,
            "learning_rate": rate,
            "train_loss": train_loss,
            "validation_loss": loss,
            "validation_accuracy": accuracy,
        }
        state.history.append(row)
        self._point("validation_loss", loss, state.epoch)
        self._point("validation_accuracy", accuracy, state.epoch)
        if self._lower(loss, accuracy) if self.params.patience else self._as_good(accuracy):
            state.best_loss, state.best_epoch, state.waited = loss, state.epoch, 0
            kept = self._judged().state(self.trainer.learned)
            self.trainer.best = {k: v.detach().clone() for k, v in kept.items()}
        else:
            state.waited += 1
            state.stopped_early = state.stopped_early or self._exhausted()

    def _lower(self, loss: float, accuracy: float) -> bool:
        """Whether an epoch's loss is the lowest so far, or it is the first that is as often right
        as the start, which is there to fall back to."""
        state = self.state
        start = state.history[0]["validation_accuracy"]
        over_start = state.best_epoch == 0 and state.epoch > 0 and accuracy >= start
        return state.best_loss is None or loss < state.best_loss or over_start

    def _as_good(self, accuracy: float) -> bool:
        """Whether an epoch is not worse than those before it, as far as validation can tell.

        The rate falls to the end of a schedule, so later is better: of all epochs within a standard
        error of the highest accuracy, the last is kept (the rule of one standard error of Breiman
        et al. 1984). The lowest loss comes earlier, where a network is less sure of itself but also
        less often right. The start is there to fall back to: what replaces it is as often right.
        """
        accuracies = [row["validation_accuracy"] for row in self.state.history]
        start, highest = accuracies[0], max(accuracies)
        error = math.sqrt(highest * (1 - highest) / len(self.data.validation_targets))
        return accuracy >= max(start, highest - error)

    def _exhausted(self) -> bool:
        """Whether the validation loss has not improved for `patience` epochs."""
        return 0 < self.params.patience <= self.state.waited

    def _judged(self) -> Network:
        """The network as it is judged: with averaged weights where they are kept."""
        if self.average is None:
            return self.network
        averaged = list(self.average.module.children())
        return Network(self.network.names, [*self.network.modules[: self.start], *averaged])

    def _validate(self) -> tuple[float, float]:
        """Loss and accuracy on the validation examples.

        The plain loss, without smoothing, class weights or focus: what trainings are compared by
        must not depend on what each of them minimises.
        """
        model = folded(self._judged().run(self.start))
        targets = self.data.validation_targets
        sizes = self.data.validation.lengths
        order = lengths.in_order(len(targets), sizes)
        most = VALIDATED if sizes is None else VALIDATED_ALIKE
        whole = np.array_split(order, math.ceil(len(targets) / most))
        batches = self.ranks.share(whole)
        total, right = 0.0, 0.0
        for inputs, chosen in zip(self.data.validation.batches(batches, 0), batches, strict=True):
            logits = self.compute.forward(model, inputs).float().cpu()
            wanted = targets[torch.from_numpy(chosen)]
            total += labels.loss(logits, wanted, reduction="sum").item()
            right += int(labels.right(logits, wanted).sum())
        total, right = self.ranks.total(total, right)
        return total / len(targets), right / len(targets)

    def _set_rates(self) -> float:
        """Set each group's rate for this step; returns the head's."""
        factor = schedule.factor(
            self.params.schedule,
            self.state.phase_step,
            self.epochs * self.steps_an_epoch,
            self.params.warmup,
            self._losses(),
        )
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * group["rate"] * factor
        return self.rate * factor

    def _losses(self) -> list[float]:
        """Validation losses of this phase's finished epochs."""
        done = self.state.phase_step // self.steps_an_epoch
        return [row["validation_loss"] for row in self.state.history][-done:] if done else []

    def _restore(self) -> None:
        """Take the optimizer and the average of this phase from the checkpoint, if it has them."""
        found, self.trainer.restored = self.trainer.restored, None
        if found is None or not self.state.phase_step:
            return
        optimizer.load(self.optimizer, checkpoint.under(found.tensors, "opt/"))
        self.scaler.load_state_dict(found.values["scaler"])
        if self.average is not None:
            self.average.load(checkpoint.under(found.tensors, "ema/"))

    @contextmanager
    def _spent(self, what: str) -> Iterator[None]:
        """Count the seconds within for the record of what bounds the speed."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            spent = self.state.spent
            spent[what] = spent.get(what, 0.0) + time.perf_counter() - begun

    def _timed(self, what: str, items: Iterator[Tensor]) -> Iterator[Tensor]:
        """The items, counting the seconds of waiting for them."""
        end = object()
        while True:
            with self._spent(what):
                item = next(items, end)
            if item is end:
                return
            yield item  # type: ignore[misc]

    def _point(self, key: str, value: float, step: int) -> None:
        now = int(time.time() * 1000)
        self.state.points.append({"key": key, "value": value, "step": step, "timestamp_ms": now})


def _seed(*parts: object) -> int:
    text = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


def _generator(*parts: object) -> np.random.Generator:
    return np.random.default_rng(_seed(*parts))
