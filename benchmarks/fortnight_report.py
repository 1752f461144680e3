"""The table, the checks and the plot of a fortnight."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks import plots
from tasks import paired
from tasks.ledger import CHAMPION, FIRST, KEPT, PROMOTION, SKIPPED, Entry

CONFIDENCE = 0.95
COLOURS = {"sealed": "tab:blue", "shifted": "tab:orange"}

Days = Sequence[dict[str, Any]]
Flags = npt.NDArray[np.bool_]  # [n], which answers are right
Answers = Mapping[int, Mapping[str, Flags]]  # version → images → right answers


def outcome(new: list[Entry], state: dict[str, Any]) -> str:
    """What came of a slot, by its entries in the ledger and the state of its run."""
    kinds = {entry.kind: entry for entry in new if entry.alias == CHAMPION}
    if FIRST in kinds:
        return "first champion"
    if PROMOTION in kinds:
        return "promoted"
    if KEPT in kinds:
        verdict = kinds[KEPT].evidence.get("verdict") or {}
        return "undecided" if verdict.get("decision") == "undecided" else "kept"
    if state["type"] != "COMPLETED":
        return "failed"
    return "skipped" if SKIPPED in kinds else "nothing"


def line(entry: Entry) -> str:
    """One entry for people, without who and where."""
    told = verdict(entry) or entry.reason
    moved = f"{entry.from_version or '-'} → {entry.to_version or '-'}"
    return f"{entry.number}. {entry.kind}, {moved}" + (f": {told}" if told else "")


def advice(entry: Entry) -> str:
    """Whether to retrain, and why; empty: an entry of another kind."""
    advised = str(entry.evidence.get("decision", {}).get("sentence", ""))
    return entry.reason if entry.kind == SKIPPED else advised


def verdict(entry: Entry) -> str:
    """What the gate said; empty: it was not asked."""
    return str((entry.evidence.get("verdict") or {}).get("sentence", ""))


def worse(days: Days, answers: Answers) -> list[dict[str, Any]]:
    """Each champion and each that came after, and whether accuracy was lost beyond chance: exact
    McNemar."""
    found = []
    champions = dict.fromkeys(day["champion"] for day in days if day["champion"])
    for old, new in itertools.combinations(champions, 2):
        for name, before in answers[old].items():
            after = answers[new][name]
            gained, lost = int((after & ~before).sum()), int((before & ~after).sum())
            p = float(paired.p_values(lost, gained))
            told = {"from": old, "to": new, "images": name, "gained": gained, "lost": lost, "p": p}
            found.append({**told, "worse": p <= (1 - CONFIDENCE) / 2})
    return found


def worst_class(before: Flags, after: Flags, labels: Any, margin: float) -> dict[str, Any]:
    """The class that loses most, how much, and whether that is beyond a margin and no chance
    (exact McNemar, Holm over the classes)."""
    names = sorted(set(labels))
    here = [labels == name for name in names]
    gained = np.array([(after & ~before & rows).sum() for rows in here])
    lost = np.array([(before & ~after & rows).sum() for rows in here])
    losses = (lost - gained) / np.array([rows.sum() for rows in here])
    p = paired.holm(paired.p_values(lost, gained))
    most = int(losses.argmax())
    no_chance = bool(((losses > margin) & (p <= 1 - CONFIDENCE)).any())
    return {"class": names[most], "loss": float(losses[most]), "no_chance": no_chance}


def lines(values: dict[str, Any]) -> list[str]:
    days, sizes = values["days"], values["sealed"]
    seconds = [day["seconds"] for day in days]
    settings = ", ".join(f"`{key}: {value}`" for key, value in values["settings"].items())
    told = [
        f"The servers of `make stack`, a project by `thawline new` with {settings} (the rest of "
        "`promote` and `retrain` as it comes), `thawline schedule --cron "
        f"'{values['cron']}'`. A version of the data arrives once no run is at work; the next "
        "slot takes it. *To learn from*: images to train and validate on, once copies are left "
        f"out. *Sealed*: {sizes['sealed']:,} official test images that no version holds; "
        "*shifted*: the same through the other camera. Intervals: Wilson, 95 %. *Seconds*: of "
        "the flow run.",
        "",
        "| day | what came | to learn from | worth it? | outcome | champion | sealed | shifted | "
        "seconds | |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for number, day in enumerate(days, 1):
        shown = [accuracy(day, name, sizes[name]) for name in sizes]
        told.append(
            f"| {number} | {day['what']} | {day['learned']:,} | {_short(day['changes'])} | "
            f"{day['outcome']} | {day['champion'] or '-'} | {' | '.join(shown)} | "
            f"{day['seconds']:.0f} | {_state(day)} |"
        )
    told += ["", *_count(days), *filter(None, map(_copies, days)), ""]
    told += [*_gate(days, sizes["sealed"]), "", *_changes(values["worse"]), ""]
    whole = "whole" if values["whole"] else "**not whole**"
    told += [f"The ledger's chain is {whole}. Its entries:", ""]
    told += [*map(_as_text, values["ledger"]), ""]
    if values["rollbacks"]:
        back = [f"{x['seconds']:.1f} s to version {x['champion']}" for x in values["rollbacks"]]
        told += [f"`thawline rollback`, the whole command: {', '.join(back)}.", ""]
    told.append(
        f"All of it took {values['seconds'] / 60:.0f} minutes, the flow runs "
        f"{sum(seconds) / 60:.0f}; the longest {max(seconds):.0f} seconds."
    )
    return told


def accuracy(day: dict[str, Any], name: str, count: int) -> str:
    """`84.1 (83.4–84.8)`, in percent."""
    if name not in day["hits"]:
        return "-"
    value, low, high = interval(day["hits"][name], count)
    return f"{100 * value:.1f} ({100 * low:.1f}–{100 * high:.1f})"


def interval(hits: int, count: int) -> tuple[float, float, float]:
    """A share with the ends of its interval (Wilson 1927)."""
    from scipy.stats import binomtest

    ends = binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson")
    return hits / count, float(ends.low), float(ends.high)


def plot(values: dict[str, Any], path: Path) -> list[str]:
    """Accuracy of the champion by day; returns the line that shows it."""
    days = [(i, day) for i, day in enumerate(values["days"], 1) if day["champion"]]
    with plots.drawn(path) as [axis]:
        for name, count in values["sealed"].items():
            found = 100 * np.array([interval(day["hits"][name], count) for _, day in days])
            middle, low, high = found.T
            spans = [middle - low, high - middle]
            axis.errorbar([i for i, _ in days], middle, spans, fmt="o-", color=COLOURS[name],
                          label=name, capsize=3)  # fmt: skip
        axis.set(xlabel="day", ylabel="accuracy of the champion, %")
        axis.set_xticks([i for i, _ in days])
        axis.legend()
    return [f"![Accuracy of the champion by day]({path.name})"]


def _state(day: dict[str, Any]) -> str:
    if not day["right"]:
        return "**wrong**"
    return "as expected" if day["outcome"] in day["expected"] else "borne out"


def _count(days: Days) -> list[str]:
    states = [_state(day) for day in days]
    expected, borne_out = states.count("as expected"), states.count("borne out")
    return [
        f"{expected} of {len(days)} days came out as expected; {borne_out} did not, but are borne "
        "out: the gate kept a challenger out that the sealed images, too, show to lose a class by "
        f"more than `promote.class_margin`; {states.count('**wrong**')} were wrong."
    ]


def _copies(day: dict[str, Any]) -> str:
    """How many copies of test images got among the images to learn from, where some were sown."""
    if not day["planted"]:
        return ""
    return f"Of {day['planted']:,} copies of test images, {day['leaked']:,} were learned from."


def _gate(days: Days, sealed: int) -> list[str]:
    told = ["What the gate said, and what the sealed images say of those that it kept out:", ""]
    for number, day in enumerate(days, 1):
        if not day["gate"]:
            continue
        line = f"- day {number}: {_as_text(day['gate'])}"
        if refused := day["refused"]:
            sure = (
                "beyond the margin and chance" if refused["no_chance"] else "no more than allowed"
            )
            line += (
                f" *Sealed*: {100 * refused['hits'] / sealed:.1f} against "
                f"{100 * day['hits']['sealed'] / sealed:.1f}; {refused['class']} loses most, "
                f"{100 * refused['loss']:.1f} points, {sure}."
            )
        told.append(line)
    return told


def _changes(found: list[dict[str, Any]]) -> list[str]:
    told = [
        f"- {each['from']} → {each['to']}, {each['images']}: {each['gained']:,} answers gained, "
        f"{each['lost']:,} lost" + ("; **worse beyond chance**" if each["worse"] else "")
        for each in found
    ]
    lost = sum(each["worse"] for each in found)
    verdict = f"**{lost} were worse beyond chance**" if lost else "none was worse beyond chance"
    return [f"Changes of champion, on what no version holds ({verdict}):", "", *told]


def _short(sentence: str) -> str:
    """The first reason alone."""
    return _as_text(sentence.split("; ")[0].rstrip("."))


def _as_text(sentence: str) -> str:
    return sentence.replace("|", "\\|").replace("*", "\\*")
