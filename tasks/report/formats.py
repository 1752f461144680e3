"""Numbers as people read them."""

from __future__ import annotations

import math

UNKNOWN = "–"
THIN = "\u202f"  # a narrow space that does not break


def percent(share: float | None, digits: int = 1) -> str:
    """0.853 → 85.3%"""
    return UNKNOWN if share is None else f"{100 * share:.{digits}f}%"


def span(interval: dict[str, float]) -> str:
    """{low: 0.84, high: 0.865} → 84.0–86.5%"""
    return f"{100 * interval['low']:.1f}–{100 * interval['high']:.1f}%"


def signed(share: float) -> str:
    """A difference of shares in points: -0.023 → −2.3"""
    return f"{100 * share:+.1f}".replace("-", "−")


def sentence(text: str) -> str:
    """With a capital, unless it begins with a name such as `mobilenet_v2`, and a full stop."""
    first = text.split(maxsplit=1)[0] if text.strip() else ""
    start = text[:1].upper() if first.isalpha() else text[:1]
    return f"{start}{text[1:]}{'' if text.endswith(('.', '!', '?')) else '.'}"


def number(value: float | None, digits: int = 3) -> str:
    return UNKNOWN if value is None or not math.isfinite(value) else f"{value:.{digits}f}"


def significant(value: float) -> str:
    """A rate such as 0.00085 with three significant digits."""
    return f"{value:.3g}"


def count(value: float | None) -> str:
    """12345 → 12,345"""
    return UNKNOWN if value is None else f"{value:,.0f}"


def scaled(value: float | None) -> str:
    """3504872 → 3.50 M"""
    if value is None:
        return UNKNOWN
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{THIN}{unit}"
    return f"{value:.3g}"


def size(value: float | None) -> str:
    """Bytes → MiB or GiB."""
    if value is None:
        return UNKNOWN
    power, unit = (2**30, "GiB") if value >= 2**30 else (2**20, "MiB")
    return f"{value / power:.3g}{THIN}{unit}" if value else "0"


def duration(seconds: float | None) -> str:
    """Seconds as 8.4 s, 2 min 05 s or 1 h 12 min."""
    if seconds is None:
        return UNKNOWN
    if seconds < 99.5:
        return f"{seconds:.1f}{THIN}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 100:
        return f"{minutes}{THIN}min {rest:02d}{THIN}s"
    return f"{minutes // 60}{THIN}h {minutes % 60:02d}{THIN}min"


def ending(text: str, length: int = 26) -> str:
    """The end of a long path, which tells it from others better than its beginning."""
    return text if len(text) <= length else f"…{text[1 - length :]}"


FILTERS = {
    f.__name__: f
    for f in (
        percent,
        span,
        signed,
        sentence,
        number,
        significant,
        count,
        scaled,
        size,
        duration,
        ending,
    )
}
