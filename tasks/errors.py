"""Errors whose message is meant for the user: one clear sentence of what, where and what next."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tasks.redaction import redact


class ThawlineError(Exception):
    """A mistake or a state that the user can mend; shown without a traceback, exit code 1.

    Its sentence may quote what a library said, so secrets are taken out of it here, once for all.
    """

    def __init__(self, *arguments: object) -> None:
        super().__init__(*(redact(a) if isinstance(a, str) else a for a in arguments))


class ParamsError(ThawlineError):
    """`params.yaml` cannot be used; lists every problem with its key path."""


class DataError(ThawlineError):
    """The user's data cannot be used as it is."""


class Diverged(ThawlineError):
    """A training whose loss or gradients are no longer finite."""


class UnknownName(ThawlineError):
    """A name that is not in a known list; suggests the nearest ones."""

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        known = sorted(known)
        text = f"unknown {kind} {name!r}{nearest(name, known)}"
        if len(known) <= 30:
            text += f"; known: {', '.join(known)}"
        text = text if not hint or text.endswith("?") else f"{text}."
        super().__init__(f"{text} {hint}".rstrip())


def nearest(name: str, known: Iterable[str], n: int = 3) -> str:
    """A phrase such as `: did you mean 'a' or 'b'?`, or nothing when nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=n, cutoff=0.6)
    return f": did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
