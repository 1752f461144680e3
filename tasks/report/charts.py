"""The geometry of the report's charts; how they look is in `charts.html.j2`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True)
class Axis:
    """Values `low`..`high` along pixels `start`..`end`, with round ticks."""

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)

    def label(self, tick: float) -> str:
        """The tick with as many decimals as tell it from the next."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1
        return f"{tick:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"


@dataclass(frozen=True)
class Series:
    """A line of a chart; `kind` is its CSS class."""

    name: str
    kind: str
    points: list[Point]

    def path(self, x: Axis, y: Axis) -> str:
        """An SVG path through the points, broken where a value is missing."""
        commands, pen = [], "M"
        for across, up in self.points:
            if math.isfinite(across) and math.isfinite(up):
                commands.append(f"{pen}{x.at(across)},{y.at(up)}")
                pen = "L"
            else:
                pen = "M"
        return " ".join(commands)


def axis(values: Iterable[float], start: float, end: float, count: int = 4) -> Axis:
    """An axis that holds all finite `values`, widened to ticks of 1, 2 or 5 · 10ⁿ."""
    finite = [v for v in values if math.isfinite(v)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(round(i * step, 10) for i in range(first, last + 1))
    return Axis(ticks[0], ticks[-1], start, end, ticks)


def counting_axis(values: Sequence[float], start: float, end: float) -> Axis:
    """An axis of whole numbers, such as epochs, from the first to the last."""
    low, high = min(values), max(values)
    step = max(1, math.ceil((high - low) / 8))
    ticks = tuple(float(t) for t in range(int(low), int(high) + 1, step))
    return Axis(low - 0.5, high + 0.5, start, end, ticks)
