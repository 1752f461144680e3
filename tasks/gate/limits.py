"""The rules on the challenger alone: what it may cost, and whether it is what it is said to be."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from tasks import files
from tasks.calibration import BINS
from tasks.gate.evidence import Evidence
from tasks.gate.verdict import Rule, State
from tasks.params import PromoteParams

CHANCE = 0.99  # of a model without calibration error to show less than is allowed for
TOLERANCE = 0.01  # of a probability, evaluated and computed again


def judge(challenger: Evidence, rules: PromoteParams, max_drop: float | None) -> Iterator[Rule]:
    """All of them; `max_drop`: the budget `retention.max_drop`."""
    loaded = challenger.loaded
    yield _calibration(challenger, rules.max_calibration_error)
    yield _at_most(
        "retention", challenger.retention_drop, max_drop, "loss of what the backbone knew"
    )
    milliseconds = loaded.milliseconds if loaded else None
    yield _at_most("latency", milliseconds, rules.max_latency_ms, "milliseconds an example")
    megabytes = loaded.megabytes if loaded else None
    yield _at_most("size", megabytes, rules.max_megabytes, "megabytes")
    yield certificate(challenger.certificate, challenger.data, rules.require_certificate)
    yield from _loads(challenger)


def _at_most(name: str, found: float | None, limit: float | None, what: str) -> Rule:
    if limit is None:
        return Rule(name, "skipped", "No limit is set.")
    if found is None:
        return Rule(name, "failed", f"A limit is set, but the {what} is not known.")
    state: State = "passed" if found <= limit else "failed"
    told = f"{what}: {found:.3g}, allowed are {limit:g}."
    return Rule(name, state, told[0].upper() + told[1:], {"value": found, "limit": limit})


def _calibration(challenger: Evidence, limit: float | None) -> Rule:
    """The calibration error (Guo et al. 2017), less what chance makes of none at all.

    Under no error the gap of a bin is that of independent answers with the stated probabilities
    (Bröcker and Smith 2007), close to normal; its size has a mean of √(2/π) and a variance of
    1 - 2/π of the gap's variance.
    """
    from scipy.special import ndtri

    frame = challenger.predictions
    if limit is None or "probability" not in frame:
        return Rule("calibration", "skipped", "No limit is set, or no probabilities are known.")
    said = frame["probability"].to_numpy(np.float64)
    right = (frame["predicted"] == frame["label"]).to_numpy(np.float64)
    place = np.clip(np.ceil(said * BINS).astype(np.int64) - 1, 0, BINS - 1)
    gaps = np.bincount(place, said - right, BINS)
    cells = pd.factorize(frame["group"])[0] * BINS + place
    spreads = np.bincount(cells, np.sqrt(said * (1 - said)), (cells.max() // BINS + 1) * BINS)
    variances = (spreads**2).reshape(-1, BINS).sum(axis=0)  # members of a group may err together
    error = float(np.abs(gaps).sum() / len(frame))
    mean = np.sqrt(2 / np.pi * variances).sum()
    spread = np.sqrt((1 - 2 / np.pi) * variances.sum())
    chance = float((mean + ndtri(CHANCE) * spread) / len(frame))
    state: State = "passed" if error <= limit + chance else "failed"
    told = f"Calibration error {error:.3f}; allowed are {limit:g}, and {chance:.3f} for chance."
    return Rule("calibration", state, told, {"value": error, "limit": limit, "chance": chance})


def certificate(found: dict[str, Any] | None, data: str | None, required: bool) -> Rule:
    """That no split leaks into another, of the very `data` that the model was trained on."""
    name = "certificate"
    if not required:
        return Rule(name, "skipped", "No certificate is asked for (promote.require_certificate).")
    if found is None:
        return Rule(name, "failed", "There is no certificate that no split leaks into another.")
    content = {key: value for key, value in found.items() if key != "sha256"}
    numbers: dict[str, Any] = {"sha256": found.get("sha256"), "data": found.get("data")}
    if files.sha256_json(content) != found.get("sha256"):
        told = "The certificate is not the one that was written: its sha256 differs."
    elif found.get("data") != data:
        told = "The certificate is of other data than the model was trained on."
    elif not found.get("holds"):
        told = "The splits leak, or near-duplicates were not looked for (prepare.near_duplicates)."
    else:
        return Rule(name, "passed", "No split leaks into another; certified.", numbers)
    return Rule(name, "failed", told, numbers)


def _loads(challenger: Evidence) -> Iterator[Rule]:
    """That a fresh process finds the model that was judged, and gets the answers that were."""
    loaded = challenger.loaded
    if loaded is None or loaded.error:
        told = loaded.error if loaded else "Nobody has loaded the model in a process of its own."
        yield Rule("digest", "failed", "The model's files were not checked.")
        yield Rule("loads", "failed", str(told))
        return
    numbers: dict[str, Any] = {"digest": loaded.digest}
    if loaded.digest == challenger.digest:
        yield Rule("digest", "passed", "The files are those of the model that was judged.", numbers)
    else:
        told = "The files are of another model than the one that was judged."
        yield Rule("digest", "failed", told, numbers | {"judged": challenger.digest})
    answers = loaded.labels or {}
    frame = challenger.predictions if challenger.sampled is None else challenger.sampled
    again = loaded.probabilities or {}
    asked = frame[frame["id"].isin(list(answers))]
    if "probability" in asked:  # of equal ones, either label may come out on top
        pairs = zip(asked["id"], asked["probability"], strict=True)
        wrong = sum(not abs(again[name] - said) <= TOLERANCE for name, said in pairs)
    else:
        pairs = zip(asked["id"], asked["predicted"], strict=True)
        wrong = sum(answers[name] != said for name, said in pairs)
    count = len(asked)
    numbers = {"examples": count, "other_answers": wrong, "milliseconds": loaded.milliseconds}
    if wrong or not count:
        told = f"A fresh process gives other answers on {wrong} of {count} examples."
        yield Rule("loads", "failed", told, numbers)
    else:
        told = f"A fresh process gives the same answers on {count} examples."
        yield Rule("loads", "passed", told, numbers)
