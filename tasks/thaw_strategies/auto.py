"""The thaw line and its schedule: by the data's size, what the head alone does, and a short race.

- Data that a linear head already tells apart needs nothing thawed.
- Few examples cannot tell depths apart on their validation part: the line is then one that does
  well on so few, without a race.
- Where the recipe is so short that a race is no shorter, as those of texts are, racing would cost
  more than it can save: all that `thaw_fraction` allows then thaws, unless time is limited.
- Else a race of the head alone and ever more of the last blocks, up to `thaw_fraction` of the
  compute, which is by far the dearest and only tried where the one before it does best; then of the
  best depth at once against in two steps, from the top down. What takes longer than `epoch_minutes`
  an epoch is out.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tasks.params import FreezeParams
from tasks.records import Layer, Phase, Selection
from tasks.thaw_strategies import _layers

FRACTIONS = (0.1, 0.25, 0.5, 0.75, 1.0)
SEPARATED = 0.995  # leave-one-out accuracy of a linear head that is enough
FEW, FEW_FRACTION = 1000, 0.5  # examples below which nothing is raced, and what thaws then
SHORT = 0.5  # share of the epochs of a training up to which a race is a short one
PHASES = 2

Race = Callable[[Sequence[list[Phase]]], list[float]]


def choose(
    selection: Selection, params: FreezeParams, race: Race, share: float
) -> tuple[list[Phase], str]:
    """The phases and why. `race` trains each of some plans for a `share` of the epochs and says
    their validation losses, infinite where one diverged or takes too long; the deepest plan is the
    last."""
    layers = selection.layers
    head = len(layers) - 1
    alone = next(c.ridge for c in selection.candidates if c.backbone == selection.backbone)
    if alone >= SEPARATED:
        why = f"the head alone is right on {alone:.1%} of the examples that it was not fitted to"
        return _at_once(layers, head, params), why
    if selection.examples < FEW:
        start = _layers.line(layers, min(FEW_FRACTION, params.thaw_fraction))
        why = f"{selection.examples} training examples are too few to tell depths apart in a race"
        return _at_once(layers, start, params), why
    if share > SHORT and params.epoch_minutes is None:
        start = _layers.line(layers, params.thaw_fraction)
        why = f"a race would take {share:.0%} of the epochs of a training for each depth"
        return _at_once(layers, start, params), why
    fractions = [each for each in FRACTIONS if each < params.thaw_fraction]
    lines = {_layers.line(layers, each) for each in (*fractions, params.thaw_fraction)}
    starts = [head, *sorted(lines, reverse=True)]
    *others, deepest = [_at_once(layers, start, params) for start in starts]
    losses = race(others)
    if losses[-1] == min(losses) < math.inf:
        losses += race([deepest])
    best = losses.index(min(losses))
    start = starts[best]
    chosen, why = _at_once(layers, start, params), "the lowest validation loss in a short race"
    if math.isinf(losses[best]):
        return chosen, "even the head alone takes longer than freeze.epoch_minutes an epoch"
    middle = _halfway(layers, start)
    if start < middle < head:
        in_steps = [*_at_once(layers, middle, params, params.phase_epochs), *chosen]
        [loss] = race([in_steps])
        if loss < losses[best]:
            return in_steps, why
    return chosen, why


def _at_once(
    layers: Sequence[Layer], start: int, params: FreezeParams, epochs: int | None = None
) -> list[Phase]:
    return [Phase(f"from {layers[start].name}", epochs, _layers.rates(layers, start, params))]


def _halfway(layers: Sequence[Layer], start: int) -> int:
    """The line with half of the compute that is above a line."""
    total = sum(layer.flops for layer in layers)
    above = sum(layer.flops for layer in layers[start:])
    return _layers.line(layers, above / total / 2)
