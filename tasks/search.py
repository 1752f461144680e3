"""The search for better training parameters: an Optuna study that a kill does not lose.

A trial climbs a ladder of fidelities, as far as `tune.fidelity` says: the head alone on cached
features, a tenth of the epochs, the whole training. Hyperband (Li et al., JMLR 2018) ends those
that fall behind, unless the cheap fidelities turn out to order trials otherwise than the dear one.
Trials are judged on one half of validation; the best of many looks better there than it is (the
winner's curse), so it is measured again on the other half, beside the values that were written.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks import study as studies
from tasks import workers
from tasks.errors import Diverged, ThawlineError
from tasks.params import SearchRange
from tasks.progress import Advance, progress

if TYPE_CHECKING:
    from filelock import FileLock
    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

LEAST_AGREEMENT, LEAST_PAIRS = 0.3, 5  # rank correlation, over so many trials, to go on pruning
LADDER = ("head", "short", "full")
MOST = 1000  # trials of a search that only its minutes end

Values = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """How a trial does at one fidelity."""

    loss: float  # on the half of validation that the search sees
    accuracy: float
    right: npt.NDArray[np.bool_]  # on the other half, example by example


class Beyond(Exception):
    """What a trial makes is beyond a limit: its key path, and by how much (above 0)."""

    def __init__(self, limit: str, excess: float) -> None:
        super().__init__(limit, excess)
        self.limit, self.excess = limit, excess


@dataclass(frozen=True)
class Search:
    """What is searched, how far, and who searches."""

    file: Path  # of the study, which is named as it and goes on where it was
    space: dict[str, SearchRange]
    written: Values  # of `params.yaml`, the first trial where the space allows them
    # Of a fidelity and values; raises `Diverged` or `Beyond`. Workers pickle it.
    judge: Callable[[str, Values], Judged]
    fidelity: str
    trials: int  # at most; 0: as many as `minutes` allow, up to `MOST`
    minutes: float | None
    seed: int
    workers: int = 1  # processes; with several, the order in which trials end changes what is tried
    threads: int = 1  # of each of several
    storage: str | None = None  # a database in place of the file, see `tasks.study`

    @property
    def ladder(self) -> tuple[str, ...]:
        return LADDER[: LADDER.index(self.fidelity) + 1]

    @property
    def most(self) -> int:
        """Trials, at most."""
        return self.trials or MOST

    def is_late(self, seconds: float) -> bool:
        return self.minutes is not None and seconds > 60 * self.minutes


def run(search: Search) -> tuple[list[Values], Values]:
    """The trials that ended, in order, and what is known of the study.

    A trial: `number`, `values`, `losses` by fidelity, `validation_loss` and `validation_accuracy`
    of its highest one, whether it was `pruned`, the limit that it is `beyond` (or empty), and
    `right` on the other half of validation as a string of 0 and 1.
    """
    study, lock = studies.opened(search.file, search.storage)
    take_up(study, search)
    seconds = math.ceil(60 * (search.minutes or 0))
    with progress("tuning", search.trials or seconds) as go:
        advance = go if search.trials else _in_seconds(study, go)
        advance(len(ended(study)))
        if search.workers == 1:
            work(search, study, lock, advance)
        else:
            _in_parallel(search, study, advance)
    # A study that has gone further before tells what this search would have found.
    found = [_told(trial) for trial in ended(study)[: search.trials or None]]
    return [t for t in found if t["losses"] or t["beyond"]], _about(study, search.ladder)


def _in_seconds(study: Study, go: Advance) -> Advance:
    """How far a search is that ends by the clock."""
    spent, told = _clock(study), 0

    def advance(n: int = 1, **figures: Any) -> None:
        nonlocal told
        now = int(spent())
        go(now - told, trials=len(ended(study)), **figures)
        told = now

    return advance


def work(search: Search, study: Study, lock: FileLock, advance: Advance) -> None:
    """Make trials until there are enough, or the time is up; others may do so too."""
    spent = _clock(study)
    while True:
        with lock:
            started = len(_trials(study, "COMPLETE", "PRUNED", "RUNNING"))
            if started >= search.most or (started and search.is_late(spent())):
                return
            trial = _asked(study, search, started)
        _climb(study, trial, search)
        if search.minutes:
            study.set_user_attr("seconds", spent())
        advance(1)


def _in_parallel(search: Search, study: Study, advance: Advance) -> None:
    """Let workers make the trials, and others those that killed workers have left.

    Raises `ThawlineError` when all were killed before they ended a trial.
    """
    spent, seen = _clock(study), len(ended(study))

    def watch() -> None:
        nonlocal seen
        new = len(ended(study)) - seen
        seen += new
        advance(new)

    while seen < search.most and not (seen and search.is_late(spent())):
        before, count = seen, min(search.workers, search.most - seen)
        workers.run(functools.partial(_worker, search), count, search.threads, watch)
        watch()
        if seen == before:
            raise ThawlineError(
                f"all {count} tuning workers were killed before one trial ended; fewer of "
                "tune.workers need less memory"
            )
        take_up(study, search)


def _worker(search: Search) -> None:
    work(search, *studies.opened(search.file, search.storage), lambda n=1, **figures: None)


def _clock(study: Study) -> Callable[[], float]:
    """Seconds that the study has taken so far."""
    begun, before = time.monotonic(), float(study.user_attrs.get("seconds", 0.0))
    return lambda: before + time.monotonic() - begun


def _asked(study: Study, search: Search, started: int) -> Trial:
    import optuna

    # A sampler of its own for each trial, so that a search that was killed goes on alike.
    study.sampler = optuna.samplers.TPESampler(seed=search.seed + started, multivariate=True)
    study.pruner = _pruner(study, search.ladder)
    return study.ask()


def _climb(study: Study, trial: Trial, search: Search) -> None:
    """Judge a trial at one fidelity after the other, and note how it ended."""
    from optuna.trial import TrialState

    values = {
        path: _suggest(trial, path, tried, isinstance(search.written[path], int))
        for path, tried in search.space.items()
    }
    losses: dict[str, float] = {}
    for step, fidelity in enumerate(search.ladder, start=1):
        try:
            judged = search.judge(fidelity, values)
        except Diverged:  # this trial has failed, others go on
            break
        except Beyond as beyond:  # which the sampler learns from
            trial.set_constraint(beyond.limit, beyond.excess)
            break
        losses[fidelity] = round(judged.loss, 6)
        right = as_text(judged.right)
        told = {"losses": losses, "accuracy": round(judged.accuracy, 6), "right": right}
        trial.set_user_attr("judged", told)
        if fidelity == search.ladder[-1]:
            study.tell(trial, judged.loss)
            return
        trial.report(judged.loss, step)
        if trial.should_prune() and values != search.written:  # the best stands beside these
            break
    study.tell(trial, state=TrialState.PRUNED)


def as_text(right: npt.NDArray[np.bool_]) -> str:
    """Which examples are right, as a string of 0 and 1."""
    return "".join("01"[int(x)] for x in right)


def _suggest(trial: Trial, path: str, tried: SearchRange, whole: bool) -> Any:
    if tried.choices is not None:
        return trial.suggest_categorical(path, tried.choices)
    low, high = tried.low, tried.high
    assert low is not None and high is not None  # as the schema has it
    if whole:
        return trial.suggest_int(path, int(low), int(high), log=tried.log)
    return trial.suggest_float(path, low, high, log=tried.log)


def allows(tried: SearchRange, value: Any) -> bool:
    """Whether a value is in the range."""
    if tried.choices is not None:
        return value in tried.choices
    if tried.low is None or tried.high is None or not isinstance(value, int | float):
        return False
    return tried.low <= value <= tried.high


def take_up(study: Study, search: Search) -> None:
    """Begin with the written values; try again what kills have broken off. Nobody may be at work.

    A trial that had not drawn all its values yet is drawn again, as it was.
    """
    from optuna.trial import TrialState

    for trial in _trials(study, "RUNNING"):
        study.tell(trial.number, state=TrialState.FAIL)
        if len(trial.params) == len(search.space):
            study.enqueue_trial(trial.params)
    allowed = all(allows(search.space[p], x) for p, x in search.written.items())
    if allowed and not _trials(study, "COMPLETE", "PRUNED", "WAITING"):
        study.enqueue_trial(search.written)


def ended(study: Study) -> list[FrozenTrial]:
    return _trials(study, "COMPLETE", "PRUNED")


def _trials(study: Study, *states: str) -> list[FrozenTrial]:
    return [t for t in study.get_trials(deepcopy=False) if t.state.name in states]


def _pruner(study: Study, ladder: Sequence[str]) -> Any:
    """Hyperband over the rungs of the ladder, or none where they disagree."""
    import optuna

    found = agreement(ended(study), ladder)
    disagree = found is not None and found < LEAST_AGREEMENT
    if len(ladder) == 1 or disagree:
        return optuna.pruners.NopPruner()
    return optuna.pruners.HyperbandPruner(
        min_resource=1, max_resource=len(ladder), reduction_factor=2
    )


def agreement(trials: Sequence[FrozenTrial], ladder: Sequence[str]) -> float | None:
    """Rank correlation (Spearman) of the trials' losses at the first and the last rung; None where
    too few have both, or nothing differs."""
    from scipy.stats import spearmanr

    both = [_told(trial)["losses"] for trial in trials]
    pairs = [(x[ladder[0]], x[ladder[-1]]) for x in both if ladder[-1] in x]
    if len(ladder) == 1 or len(pairs) < LEAST_PAIRS:
        return None
    found = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return found if math.isfinite(found) else None


def _told(trial: FrozenTrial) -> Values:
    told = trial.user_attrs.get("judged", {})
    losses = told.get("losses", {})
    return {
        "number": trial.number,
        "values": trial.params,
        "losses": losses,
        "validation_loss": list(losses.values())[-1] if losses else None,
        "validation_accuracy": told.get("accuracy"),
        "pruned": trial.state.name == "PRUNED",
        "beyond": next(iter(trial.constraints), ""),
        "right": told.get("right", ""),
    }


def _about(study: Study, ladder: Sequence[str]) -> Values:
    """`fidelities`, their `agreement`, whether trials were `pruning` at the end, and the share of
    each parameter in the spread of the losses (`importances`)."""
    import optuna

    complete = _trials(study, "COMPLETE")
    found = agreement(ended(study), ladder)
    importances: dict[str, float] = {}
    if len(complete) >= LEAST_PAIRS and len({t.value for t in complete}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(n_trees=16, seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        importances = {path: round(share, 4) for path, share in shares.items()}
    return {
        "fidelities": list(ladder),
        "agreement": None if found is None else round(found, 4),
        "pruning": not isinstance(_pruner(study, ladder), optuna.pruners.NopPruner),
        "importances": importances,
    }
