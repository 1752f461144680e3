"""The baseline that a fine-tuned language model must beat: counted words and a linear model.

TF-IDF of words and pairs of words, or of short runs of characters where these do better on
validation, as they do where a script puts no spaces between words; then logistic regression.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from tasks import labelling
from tasks.baselines import Baseline
from tasks.labelling import Ints, Labelling, Labels
from tasks.problems.text_classification import similarity
from tasks.records import DataSummary

if TYPE_CHECKING:
    import pandas as pd

    from tasks.records import Project

NAME = "counted_words"  # in metrics.json
WORD = rf"(?u)[\w{similarity.MARKS}]+"
UNITS: dict[str, dict[str, Any]] = {  # the first one, where both do as well
    "words": {"token_pattern": WORD, "ngram_range": (1, 2)},
    "characters": {"analyzer": "char_wb", "ngram_range": (1, 4)},
}
STRENGTHS = (1.0, 5.0, 25.0)  # C: the inverse of the regularisation
READ = 10_000  # characters of a text that are counted
CHOOSING = 1_000_000  # characters to choose by: some ten seconds
FITTING = {"words": 100_000_000, "characters": 10_000_000}  # to learn from: about a minute
FEATURES = 200_000  # the commonest ones
RARE_FROM = 1_000  # texts from which on what occurs in one alone is not counted
RECUR = 0.2  # share of words that come again, from which on words are told, not characters
TELLING = 10  # words of a class that are told


@dataclass(frozen=True)
class Texts:
    """Some texts and their labels."""

    texts: list[str]
    targets: Labels

    def part(self, rows: Sequence[int] | Ints) -> Texts:
        return Texts([self.texts[row] for row in rows], self.targets[list(rows)])


@dataclass(frozen=True)
class Choice:
    """A regularisation, and what it scored on validation: accuracy, mean log-likelihood."""

    strength: float
    score: tuple[float, float]


@dataclass(frozen=True)
class Counted:
    """A fitted model of counted units."""

    units: str  # a key of `UNITS`
    strength: float
    vectorizer: Any
    model: Any  # sklearn's LogisticRegression, or one a label
    found_in: Ints  # [features]: training texts that have it

    def answers(self, texts: Sequence[str]) -> Labels:
        """What it says of each text."""
        counts = self.vectorizer.transform(texts)
        return np.asarray(self.model.predict(counts), np.int64)


def baselines(project: Project) -> list[Baseline]:
    """What counted words say of the test texts, in the order of the manifest.

    Units and regularisation are chosen on validation; what is judged has learned from training and
    validation. None where there is nothing to count, as in texts without a letter.
    """
    import pandas as pd

    manifest = pd.read_parquet(project.manifest)
    known_labels = DataSummary.read(project.summary).labelling
    drawn = _drawn(manifest)
    splits = manifest["split"].to_numpy()
    texts = _read(project, manifest, known_labels)
    train, validation = (
        texts.part(drawn[splits[drawn] == split]) for split in ("train", "validation")
    )
    train, validation = _within(train, CHOOSING), _within(validation, CHOOSING)
    found = choose(train, validation)
    if not found:
        return []
    units = max(found, key=lambda each: found[each].score)

    @cache
    def fitted(of: str) -> Counted:
        of = of if of in found else units
        known = texts.part(drawn[splits[drawn] != "test"])
        return fit(_within(known, FITTING[of]), of, found[of].strength)

    try:
        counted = fitted(units)
    except ValueError:  # all units are of one text each, now that rare ones are left out
        return []
    readable = "words" if _recur(train, validation) else "characters"
    details: dict[str, Any] = {
        "units": units,
        "C": counted.strength,
        "features": len(counted.found_in),
        "validation_accuracy": round(found[units].score[0], 6),
        "readable": readable,
        "telling": _told(fitted, readable, known_labels.classes),
    }
    tested = texts.part(np.flatnonzero(splits == "test"))
    title = f"A linear model of counted {units} (TF-IDF)"
    return [Baseline(NAME, title, counted.answers(tested.texts), details)]


def choose(train: Texts, validation: Texts) -> dict[str, Choice]:
    """Of each kind of units, what does best on validation; of equals the likelier one.

    Without units that cannot be counted; nothing where training knows one class only.
    """
    if len(np.unique(train.targets)) < 2:
        return {}
    found: dict[str, Choice] = {}
    for units in UNITS:
        for counted in _stronger(train, units, STRENGTHS):
            score = _score(counted, validation)
            if units not in found or score > found[units].score:
                found[units] = Choice(counted.strength, score)
    return found


def _recur(train: Texts, validation: Texts) -> bool:
    """Whether words make sense to people: do they come again, other than what stands between two
    spaces or commas of Chinese, or numbers of parts?"""
    known = {word for text in train.texts for word in words(text)}
    asked = [word for text in validation.texts for word in words(text)]
    return bool(asked) and sum(word in known for word in asked) >= RECUR * len(asked)


def words(text: str) -> list[str]:
    """The words of a text, as they are counted."""
    return re.findall(WORD, text.lower())


def fit(known: Texts, units: str, strength: float) -> Counted:
    """The model of some units and C. Raises `ValueError` where there is nothing to count."""
    return next(_stronger(known, units, (strength,), strict=True))


def _told(
    fitted: Callable[[str], Counted], readable: str, classes: Sequence[str]
) -> list[dict[str, Any]]:
    """What tells most, in readable units; of a class that has no such words, in characters, as
    where texts are of several languages."""
    told = telling(fitted(readable), classes)
    if all(each["units"] for each in told):
        return told
    runs = telling(fitted("characters"), classes)
    return [one if one["units"] else run for one, run in zip(told, runs, strict=True)]


def telling(counted: Counted, classes: Sequence[str]) -> list[dict[str, Any]]:
    """`label` and `units`: what speaks most for each class, the strongest first.

    What stands in one training text alone tells nothing of others; of units that contain each
    other, such as `good` and `very good`, the stronger one is told.
    """
    names = counted.vectorizer.get_feature_names_out()
    common = counted.found_in > 1
    edge, least = (" ", 1) if counted.units == "words" else ("", 2)  # of characters, a pair
    told = []
    for target, own in zip(
        counted.model.classes_, _weights(counted.model, len(names)), strict=True
    ):
        ranked = np.argsort(-own, kind="stable")
        strongest = (names[i].strip() for i in ranked if own[i] > 0 and common[i])
        long = (name for name in strongest if len(name) >= least)
        told.append({"label": classes[int(target)], "units": _apart(long, edge)})
    return told


def _weights(model: Any, features: int) -> Any:
    """What each unit counts for each class: [classes, features]."""
    if not hasattr(model, "coef_"):  # a model a label; of one that all or no texts have, nothing
        none = np.zeros((1, features))
        return np.concatenate([getattr(each, "coef_", none) for each in model.estimators_])
    weights = model.coef_
    # Of two classes, they are the weights for the second.
    return np.concatenate([-weights, weights]) if len(weights) == 1 else weights


def _apart(names: Iterator[str], edge: str) -> list[str]:
    """The first `TELLING` of which none contains another; `edge`: what a unit ends with."""
    kept: list[str] = []
    for name in names:
        whole = f"{edge}{name}{edge}"
        if not any(whole in other or other in whole for other in kept):
            kept.append(whole)
        if len(kept) == TELLING:
            break
    return [name.removeprefix(edge).removesuffix(edge) for name in kept]


def _stronger(
    known: Texts, units: str, strengths: Sequence[float], strict: bool = False
) -> Iterator[Counted]:
    """A model for each C, in rising order, each starting where the one before has ended.

    Nothing where nothing can be counted; `strict`: `ValueError` instead.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    rare = 2 if len(known.texts) >= RARE_FROM else 1
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, min_df=rare, max_features=FEATURES, dtype=np.float32, **UNITS[units]
    )
    try:
        counts = vectorizer.fit_transform(known.texts)
    except ValueError:  # no vocabulary
        if strict:
            raise
        return
    found_in = np.asarray(counts.getnnz(axis=0), np.int64)
    linear = LogisticRegression(max_iter=200, tol=1e-3, warm_start=True)
    several = known.targets.ndim == 2
    for strength in strengths:
        model = OneVsRestClassifier(linear) if several else linear
        linear.set_params(C=strength)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # close enough for a baseline
            warnings.filterwarnings("ignore", "Label .* is present in all")  # or not in any
            model.fit(counts, known.targets)
        yield Counted(units, strength, vectorizer, model, found_in)


def _score(counted: Counted, validation: Texts) -> tuple[float, float]:
    """Accuracy, and the mean log-likelihood."""
    shares = counted.model.predict_proba(counted.vectorizer.transform(validation.texts))
    if validation.targets.ndim == 2:
        right = labelling.right(validation.targets, labelling.answers(shares, several=True))
        likely = labelling.log_likelihood(shares, validation.targets, 1e-12)
        return float(right.mean()), float(likely.mean())
    said = counted.model.classes_[shares.argmax(1)]
    place = {int(target): column for column, target in enumerate(counted.model.classes_)}
    true = [
        shares[row, place[int(target)]] if int(target) in place else 0.0
        for row, target in enumerate(validation.targets)
    ]
    accuracy = float((said == validation.targets).mean())
    return accuracy, float(np.log(np.maximum(true, 1e-12)).mean())


def _read(project: Project, manifest: pd.DataFrame, known: Labelling) -> Texts:
    from tasks.problems.text_classification.text_store import TextStore

    store = TextStore(project.prepared, manifest)
    texts = [store.text(row)[:READ] for row in range(len(manifest))]
    return Texts(texts, known.truth(manifest["target"].to_numpy(np.int64)))


def _drawn(manifest: pd.DataFrame) -> Ints:
    """All rows in an order by chance, which their ids are, but two of each class and split first:
    so that the first of them know every class."""
    by_chance = manifest[["id", "target", "split"]].sort_values("id")
    place = by_chance.groupby(["target", "split"]).cumcount() >= 2
    rows = place.sort_values(kind="stable").index
    return np.asarray(manifest.index.get_indexer(rows), np.int64)


def _within(texts: Texts, characters: int) -> Texts:
    """The first ones, of so many characters together; at least two."""
    sizes = np.cumsum([len(text) for text in texts.texts])
    most = max(2, int(np.searchsorted(sizes, characters, side="right")))
    return texts.part(range(min(most, len(texts.texts))))
