"""The search for better training parameters: an Optuna study that a kill does not lose.

A trial climbs a ladder of fidelities, as far as `tune.fidelity` says: the head alone on cached
features, a tenth of the steps, the whole training. Hyperband (Li et al., JMLR 2018) ends those
that fall behind, unless the cheap fidelities turn out to order trials otherwise than the dear one.
Trials are judged on one half of validation; the best of many looks better there than it is (the
winner's curse), so it is measured again on the other half, beside the values that were written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from tasks.errors import Diverged
from tasks.params import SearchRange
from tasks.progress import progress

if TYPE_CHECKING:
    from pathlib import Path

    from optuna import Study
    from optuna.trial import FrozenTrial, Trial

LEAST_AGREEMENT, LEAST_PAIRS = 0.3, 5  # rank correlation, over so many trials, to go on pruning
LADDER = ("head", "short", "full")

Values = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """How a trial does at one fidelity."""

    loss: float  # on the half of validation that the search sees
    accuracy: float
    right: npt.NDArray[np.bool_]  # on the other half, example by example


def run(
    file: Path,
    space: dict[str, SearchRange],
    written: Values,
    judge: Callable[[str, Values], Judged],
    *,
    fidelity: str,
    trials: int,
    minutes: float | None,
    seed: int,
) -> tuple[list[Values], Values]:
    """The trials that ended, in order, and what is known of the study.

    `file`: of the study, which goes on where it was. `written`: the values of `params.yaml`, the
    first trial where the space allows them. A trial: `number`, `values`, `losses` by fidelity,
    `validation_loss` and `validation_accuracy` of its highest one, whether it was `pruned`, and
    `right` on the other half of validation as a string of 0 and 1.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    file.parent.mkdir(parents=True, exist_ok=True)
    ladder = LADDER[: LADDER.index(fidelity) + 1]
    study = optuna.create_study(storage=f"sqlite:///{file}", study_name="tune", load_if_exists=True)
    _go_on(study, written if all(allows(space[p], x) for p, x in written.items()) else {})
    begun, before = time.monotonic(), float(study.user_attrs.get("seconds", 0.0))
    with progress("tuning", trials) as advance:
        advance(len(_ended(study)))
        while (done := len(_ended(study))) < trials:
            spent = before + time.monotonic() - begun
            if minutes is not None and done and spent > 60 * minutes:
                break
            # A sampler of its own for each trial, so that a search that was killed goes on alike.
            study.sampler = optuna.samplers.TPESampler(seed=seed + done, multivariate=True)
            study.pruner = _pruner(study, ladder)
            study.optimize(lambda trial: _climb(trial, ladder, space, written, judge), n_trials=1)
            study.set_user_attr("seconds", before + time.monotonic() - begun)
            advance(1)
    found = [_told(trial) for trial in _ended(study)]
    return [trial for trial in found if trial["losses"]], _about(study, ladder)


def _climb(
    trial: Trial,
    ladder: Sequence[str],
    space: dict[str, SearchRange],
    written: Values,
    judge: Callable[[str, Values], Judged],
) -> float:
    import optuna

    values = {
        path: _suggest(trial, path, tried, isinstance(written[path], int))
        for path, tried in space.items()
    }
    losses: dict[str, float] = {}
    for step, fidelity in enumerate(ladder, start=1):
        try:
            judged = judge(fidelity, values)
        except Diverged:  # this trial has failed, others go on
            raise optuna.TrialPruned from None
        losses[fidelity] = round(judged.loss, 6)
        trial.set_user_attr("losses", losses)
        trial.set_user_attr("accuracy", round(judged.accuracy, 6))
        trial.set_user_attr("right", "".join("01"[int(x)] for x in judged.right))
        trial.report(judged.loss, step)
        if fidelity != ladder[-1] and trial.should_prune():
            raise optuna.TrialPruned
    return judged.loss


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


def _go_on(study: Study, written: Values) -> None:
    """Begin with the written values; take up again the trial that a kill has ended."""
    from optuna.trial import TrialState

    for trial in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
        study.tell(trial.number, state=TrialState.FAIL)
        study.enqueue_trial(trial.params)
    if not study.trials and written:
        study.enqueue_trial(written)


def _ended(study: Study) -> list[FrozenTrial]:
    from optuna.trial import TrialState

    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED))


def _pruner(study: Study, ladder: Sequence[str]) -> Any:
    """Hyperband over the rungs of the ladder, or none where they disagree."""
    import optuna

    found = agreement(_ended(study), ladder)
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

    both = [t.user_attrs.get("losses", {}) for t in trials]
    pairs = [(x[ladder[0]], x[ladder[-1]]) for x in both if ladder[-1] in x]
    if len(ladder) == 1 or len(pairs) < LEAST_PAIRS:
        return None
    found = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    return found if math.isfinite(found) else None


def _told(trial: FrozenTrial) -> Values:
    from optuna.trial import TrialState

    losses = trial.user_attrs.get("losses", {})
    return {
        "number": trial.number,
        "values": trial.params,
        "losses": losses,
        "validation_loss": list(losses.values())[-1] if losses else None,
        "validation_accuracy": trial.user_attrs.get("accuracy"),
        "pruned": trial.state == TrialState.PRUNED,
        "right": trial.user_attrs.get("right", ""),
    }


def _about(study: Study, ladder: Sequence[str]) -> Values:
    """`fidelities`, their `agreement`, whether trials were `pruning` at the end, and the share of
    each parameter in the spread of the losses (`importances`)."""
    import optuna

    complete = [t for t in _ended(study) if t.value is not None]
    found = agreement(_ended(study), ladder)
    importances: dict[str, float] = {}
    if len(complete) >= LEAST_PAIRS and len({t.value for t in complete}) > 1:
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
        shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        importances = {path: round(share, 4) for path, share in shares.items()}
    return {
        "fidelities": list(ladder),
        "agreement": None if found is None else round(found, 4),
        "pruning": not isinstance(_pruner(study, ladder), optuna.pruners.NopPruner),
        "importances": importances,
    }
