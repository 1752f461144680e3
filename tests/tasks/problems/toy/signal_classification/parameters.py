from __future__ import annotations

from tasks.params import AugmentParams, Count, Fraction, PrepareParams


class SignalPrepare(PrepareParams):
    """A column of numbers with spaces between."""

    signal_column: str = "signal"
    length: Count = 8


class SignalAugment(AugmentParams):
    """Noise, as a share of the signal's range."""

    policy: str = "noise"
    noise: Fraction = 0.1
