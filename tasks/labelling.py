"""How many labels an example has: exactly one, or any number of them, also none.

What is true of examples, and what is said of them, has one of two forms, and its number of
dimensions tells which:

- numbers of classes [n], of one label an example;
- members [n, k], 1 for each of the k classes that an example has, 0 for the others.

With one label classes exclude each other: probabilities are a softmax, the answer is the likeliest
class. With several each class is a question of its own: probabilities are sigmoids, the answer is
all classes that are likelier than not. An answer is right when all of it is, as in scikit-learn's
`accuracy_score`. `tasks.engine.labels` says the same of tensors.

In a manifest both have one text in `label`, that of several being their names joined, and one
number in `target`: that of the class, or that of the combination of classes.

A packaged model carries this module, so it needs NumPy and pandas alone.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pandas as pd

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
Labels = npt.NDArray[Any]  # numbers [n], or members [n, k]

BETWEEN = " | "  # the labels of one example, where they are one text
NONE = "(none)"  # that text where an example has no label
CUT = 0.5  # of a probability, or of a ridge score, from which on one of several labels is said


@dataclass(frozen=True)
class Labelling:
    """The classes of some data, and what the numbers in `target` stand for."""

    classes: list[str]
    combinations: list[list[int]] | None = None  # numbers of classes; None: one label an example

    @property
    def several(self) -> bool:
        return self.combinations is not None

    @property
    def names(self) -> list[str]:
        """What each `target` is called, as in `label`."""
        if self.combinations is None:
            return self.classes
        return [joined(self.classes[number] for number in each) for each in self.combinations]

    def truth(self, targets: Ints) -> Labels:
        """What the numbers [n] of a manifest mean."""
        return targets if self.combinations is None else self._members[targets]

    def answers(self, probabilities: Labels) -> Labels:
        return answers(probabilities, self.several)

    def called(self, said: Labels) -> npt.NDArray[np.object_]:
        """Each answer as a text."""
        names = np.asarray(self.classes, dtype=object)
        if not self.several:
            return np.asarray(names[said])
        return np.array([joined(names[row.astype(bool)]) for row in said] or [], dtype=object)

    @property
    def _members(self) -> Bools:
        found = np.zeros((len(self.combinations or []), len(self.classes)), np.bool_)
        for row, numbers in enumerate(self.combinations or []):
            found[row, numbers] = True
        return found


def of(labels: Iterable[str], several: bool) -> Labelling:
    """The classes of the texts in `label`, in order; the targets are the sorted texts' places."""
    texts = sorted(set(labels))
    if not several:
        return Labelling(texts)
    classes = sorted({name for text in texts for name in parts(text)})
    place = {name: number for number, name in enumerate(classes)}
    return Labelling(classes, [[place[name] for name in parts(text)] for text in texts])


def targets(labels: pd.Series[Any]) -> Ints:
    """The number of each text among all of them, in order: [n]."""
    import pandas as pd

    return np.asarray(pd.factorize(labels, sort=True)[0], np.int64)


def joined(names: Iterable[str]) -> str:
    """Several labels as one text, the same whatever their order."""
    return BETWEEN.join(sorted(names)) or NONE


def parts(text: str) -> list[str]:
    """The labels that were `joined`."""
    return [] if text == NONE else text.split(BETWEEN)


def canonical(values: Iterable[Any]) -> str:
    """Labels as they were found, without spaces around them, in Unicode's NFC, once each, joined.

    Raises `ValueError` with the reason where one could not be told from several, or from none.
    """
    names = {unicodedata.normalize("NFC", str(value).strip()) for value in values} - {""}
    for name in names:
        if BETWEEN in name or name == NONE:
            what = f"“{BETWEEN}” inside" if BETWEEN in name else "the meaning of no label"
            raise ValueError(f"the label {name!r} has {what} in what Thawline writes: rename it")
    return joined(names)


def pairs(labels: pd.Series[Any], several: bool) -> tuple[list[str], Ints, Ints]:
    """The names of all classes in order, and each pair of a row and a class that it has."""
    found = of(labels.unique(), several)
    numbers = targets(labels)
    if not found.several:
        return found.classes, np.arange(len(labels)), numbers
    rows, classes = np.nonzero(found.truth(numbers))
    return found.classes, rows.astype(np.int64), classes.astype(np.int64)


def width(labels: Labels) -> int:
    """How many classes there are, as far as these labels tell."""
    return labels.shape[1] if labels.ndim == 2 else int(labels.max()) + 1


def members(labels: Labels, classes: int) -> Floats:
    """1 where an example has a class, else 0: [n, classes]."""
    if labels.ndim == 2:
        return labels.astype(np.float64)
    found: Floats = np.eye(classes)[labels]
    return found


def has(labels: Labels, number: int) -> Bools:
    """Which examples have a class: [n]."""
    return labels[:, number] > 0 if labels.ndim == 2 else labels == number


def right(labels: Labels, said: Labels) -> Bools:
    """Which answers are right as a whole: [n]."""
    found = labels == said
    return np.asarray(found.all(1) if labels.ndim == 2 else found)


def rarest(labels: Labels) -> Ints:
    """One number an example to divide by: its rarest class; where it has none, one of its own."""
    if labels.ndim == 1:
        return labels
    counts = labels.sum(0)
    place = np.where(labels > 0, counts, len(labels) + 1).argmin(1)
    return np.where(labels.any(1), place, labels.shape[1]).astype(np.int64)


def votes(labels: Labels, nearest: Ints, weights: Any, classes: int) -> Floats:
    """The classes of some neighbours [n, m] of each example, added up by their weights [n, m]."""
    found = np.zeros((len(nearest), classes))
    if labels.ndim == 2:
        for place in range(nearest.shape[1]):
            found += labels[nearest[:, place]] * weights[:, place, None]
        return found
    rows = np.repeat(np.arange(len(nearest)), nearest.shape[1])
    np.add.at(found, (rows, labels[nearest].ravel()), weights.ravel())
    return found


def probabilities(logits: Labels, several: bool, temperature: float = 1.0) -> Floats:
    """Of logits [n, classes] at a temperature, in double precision: softmax, or sigmoids."""
    if not several:
        return softmax(logits, temperature)
    return np.exp(-np.logaddexp(0.0, -logits.astype(np.float64) / temperature))


def softmax(logits: Labels, temperature: float = 1.0) -> Floats:
    """Probabilities [n, classes] of logits [n, classes] at a temperature, in double precision."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def centred(scores: Floats, several: bool) -> Floats:
    """Ridge scores [n, classes] as logits of no scale yet: 0 is where one of several labels begins
    to be said, or what the likeliest class has."""
    return scores - (CUT if several else scores.max(1, keepdims=True))


def answers(shares: Labels, several: bool, cut: float = CUT) -> Labels:
    """What is said by probabilities, or ridge scores, [n, classes]; of logits with `cut` 0."""
    return shares > cut if several else shares.argmax(axis=1)


def confidence(shares: Floats, several: bool) -> Floats:
    """How probable each whole answer is, the questions of several labels taken as independent."""
    if not several:
        return np.asarray(shares.max(axis=1))
    return np.asarray(np.maximum(shares, 1 - shares).prod(axis=1))


def log_likelihood(shares: Floats, labels: Labels, least: float) -> Floats:
    """Of what is true, in nats, by probabilities [n, classes] of which none counts as less than
    `least`: [n]."""
    if labels.ndim == 1:
        found: Floats = np.log(np.maximum(shares[np.arange(len(labels)), labels], least))
        return found
    true = np.where(labels > 0, shares, 1 - shares)
    return np.asarray(np.log(np.maximum(true, least)).sum(axis=1))


def surprise(logits: Floats, labels: Labels) -> Floats:
    """The negative log-likelihood of what is true by logits [n, classes]: [n]."""
    if labels.ndim == 2:
        return np.asarray((np.logaddexp(0.0, logits) - labels * logits).sum(axis=1))
    from scipy.special import logsumexp

    true = np.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
    return np.asarray(logsumexp(logits, axis=1) - true)
