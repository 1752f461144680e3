"""What a training goes on from: the inputs of a phase, and the counters of all of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tasks.engine.feeds import Feed
from tasks.engine.prefix import Account


@dataclass(frozen=True)
class OldPredictions:
    """What the pretrained network says of the training examples, or of their classes, with the head
    that says it."""

    train: Feed  # logits [n, old classes] in place of inputs
    head: nn.Module  # reads what the new head reads; never learns


@dataclass(frozen=True)
class PhaseData:
    """What one phase trains on: inputs at its thaw line, and targets of the same examples, [n] or
    of several labels each [n, k] (`tasks.engine.labels`)."""

    train: Feed
    train_targets: Tensor
    validation: Feed
    validation_targets: Tensor
    old: OldPredictions | None = None  # where training is to keep close to them
    steps: int | None = None  # an epoch, at most; None: as many as its examples make


@dataclass
class State:
    """Counters and records of a training; with the tensors, all that a checkpoint holds."""

    phase: int = 0
    phase_step: int = 0  # finished optimizer steps of this phase
    step: int = 0  # of all phases
    epoch: int = 0  # finished epochs of all phases
    loss_sum: float = 0.0  # of the running epoch
    best_loss: float | None = None  # on validation, of the epoch that is kept
    best_epoch: int = 0  # whose weights are kept: see `PhaseRun`
    waited: int = 0  # epochs since the one that is kept
    stopped_early: bool = False
    history: list[dict[str, Any]] = field(default_factory=list)  # a row an epoch
    points: list[dict[str, Any]] = field(default_factory=list)  # for the tracking server
    frozen_before: dict[str, str] = field(default_factory=dict)
    frozen_after: dict[str, str] = field(default_factory=dict)
    spent: dict[str, float] = field(default_factory=dict)  # seconds of the steps, by what they did
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    account: Account = field(default_factory=Account)  # of the views of all phases

    @classmethod
    def of(cls, value: dict[str, Any]) -> State:
        """From what `dataclasses.asdict` made of it."""
        return cls(**{**value, "account": Account(**value.get("account", {}))})
