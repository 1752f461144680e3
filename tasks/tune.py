"""tune: the merged training parameters, and the search behind them where one was asked for.

Only what `tune.space` names may change, and only for something better: the best trial of the
search (`tasks.search`) has to do as well as the written values on validation data that the search
did not see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from tasks import evidence, files, metrics, paired, recipes, search, side_training, versions
from tasks.errors import Diverged, ThawlineError
from tasks.fidelities import Halves, Ladder
from tasks.freeze import epochs_of
from tasks.metrics import Bootstrap
from tasks.params import NEVER_CHANGES_A_RESULT, Params, get
from tasks.params import replace as replace_params
from tasks.records import Project, ThawPlan, Tuning
from tasks.search import LADDER, Beyond, Search

FIDELITIES = {
    "head": "of a head on frozen features",
    "short": "of a short training",
    "full": "of a whole training",
}
FACTORS = (0.3, 1.0, 3.0, 10.0, 30.0)  # of `train.learning_rate: auto`, on the standard recipe's


def run(project: Project, params: Params) -> None:
    """Write the merged training parameters and the evidence behind what was tuned.

    Raises `ThawlineError` when the phases of the thaw plan take more than `train.epochs`.
    """
    epochs_of(ThawPlan.read(project.thaw_plan).phases, params.train.epochs)  # or refused
    halves = Halves.of(project, params) if params.tune.searches else None
    params, raced, why_rate = _rate(project, params, halves)
    rates = {"train.learning_rate": float(params.train.learning_rate)} if raced else {}
    if halves is None:
        why = why_rate or "not tuned: neither tune.trials nor tune.minutes is set"
        Tuning(_train(params), rates, raced, why).write(project.tuning)
        return
    ladder = Ladder(project, params, halves)
    trials, study = _searched(project, params, ladder)
    if not trials:
        raise ThawlineError("no tuning trial ended with a finite loss; narrow tune.space")
    chosen, why, study["confirmed"] = _confirmed(params, trials, ladder)
    tuned = _train(replace_params(params, chosen))
    told = [{key: x for key, x in trial.items() if key != "right"} for trial in trials]
    why = f"{why}; {why_rate}".rstrip("; ")
    Tuning(tuned, {**rates, **chosen}, told, why, study).write(project.tuning)


def _train(params: Params) -> dict[str, Any]:
    return params.train.model_dump(exclude=NEVER_CHANGES_A_RESULT)


def _rate(
    project: Project, params: Params, halves: Halves | None
) -> tuple[Params, list[dict[str, Any]], str]:
    """The parameters with a rate in place of `auto`, the standings of the race, and why.

    Where a search follows, the race is judged on its half of validation alone.
    """
    if params.train.learning_rate != "auto":
        return params, [], ""
    from tasks import race
    from tasks.engine.setup import Setup

    plan = ThawPlan.read(project.thaw_plan)
    usual = recipes.training(params.problem).learning_rate
    assert usual != "auto"
    rates = [float(f"{factor * usual:.3g}") for factor in FACTORS]
    entrants = [
        race.Entrant(f"{rate:g}", plan, params.train.model_copy(update={"learning_rate": rate}))
        for rate in rates
    ]
    setup = Setup.make(project, params, plan, entrants[0].settings)
    if halves is not None:
        side_training.learn_from(setup, {"train": halves.train, "validation": halves.search})
    standings = race.run(setup, entrants)
    race.check(standings)
    losses = race.losses(standings)
    rate = rates[losses.index(min(losses))]
    trials = [
        {"number": number, "values": {"train.learning_rate": tried}, **row}
        for number, (tried, row) in enumerate(zip(rates, standings, strict=True))
    ]
    why = f"of {len(rates)} rates, {rate:g} has the lowest validation loss in a short race"
    return replace_params(params, {"train.learning_rate": rate}), trials, why


def _searched(
    project: Project, params: Params, ladder: Ladder
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The trials of the study, which is kept in scratch under all that determines it."""
    from tasks.engine.device import resolve

    options, compute = params.tune, resolve(params.device, params.precision)
    threads = max(1, params.threads // options.workers)
    key = {
        "tune": options.model_dump(exclude={"trials", "minutes", "workers", "storage"}),
        "train": _train(params),
        "inputs": [files.sha256_file(path) for path in (project.manifest, project.thaw_plan)],
        "policy": files.sha256_file(project.augment / "policy.json"),
        "seed": params.seed,
        "threads": threads,
        "device": [compute.device.type, compute.precision],
        "batch_size": params.embed.batch_size,
        "libraries": versions.libraries(params.problem),
        "versions": [versions.VERSIONS[name] for name in ("tune", "train")],
    }
    return search.run(
        Search(
            project.scratch / "tune" / f"{files.sha256_json(key)[:24]}.journal",
            options.space,
            _written(params),
            ladder.judge,
            fidelity=options.fidelity,
            trials=options.trials,
            minutes=options.minutes,
            seed=params.seed,
            workers=options.workers,
            threads=threads,
            storage=options.storage,
        )
    )


def _written(params: Params) -> dict[str, Any]:
    return {path: get(params, path) for path in params.tune.space}


def _confirmed(
    params: Params, trials: Sequence[dict[str, Any]], ladder: Ladder
) -> tuple[dict[str, Any], str, dict[str, Any]]:
    """The values to train with, why, and how the best trial does on the half of validation that the
    search did not see: `examples`, `accuracy`, and beside the written values a `Comparison`, or
    `uncompared`: why there is none."""
    # What is forgotten is measured at `full` alone, which `max_drop` asks for.
    rungs = 1 if params.tune.max_drop is None else len(LADDER)
    best, written, halves = _best(trials, rungs), _written(params), ladder.halves
    why = _praise(best, trials, params)
    options, groups = params.evaluate, metrics.group_index(halves.groups[halves.confirm])
    resamples = Bootstrap(groups, options.bootstrap, options.confidence, params.seed)
    ours = _answers(best["right"])
    accuracy = metrics.answers(np.ones_like(ours), ours, 2, resamples)["accuracy"]
    told = {"examples": len(ours), "accuracy": asdict(accuracy)}
    where = f"on {len(ours)} validation examples that the search did not see"
    theirs, unknown = None, "it has the written values itself"
    if best["values"] != written:
        fidelity = list(best["losses"])[-1]
        theirs, unknown = _right_as_written(written, fidelity, trials, ladder)
    if theirs is None:
        why = f"{why}; {where} it is right on {accuracy.value:.1%}; {unknown}"
        return best["values"], why, evidence.plain({**told, "uncompared": unknown})
    judged = paired.compare(np.ones_like(ours), ours, _answers(theirs), groups, options.confidence)
    told = evidence.plain({**told, **asdict(judged)})
    gap = f"{100 * judged.difference.value:+.1f} points"
    if judged.difference.value < 0:
        why = f"{why}; but {where} it does worse than the written values ({gap}), which stay"
        return written, why, told
    return best["values"], f"{why}; {where}: {gap}, {judged.verdict}", told


def _praise(best: dict[str, Any], trials: Sequence[dict[str, Any]], params: Params) -> str:
    shown = ", ".join(
        f"{k.removeprefix('train.')} {v:.3g}" if isinstance(v, float) else f"{k[6:]} {v}"
        for k, v in best["values"].items()
    )
    how = FIDELITIES[list(best["losses"])[-1]]
    why = (
        f"trial {best['number']} of {len(trials)} has the lowest validation loss {how} "
        f"({best['validation_loss']:.4f}): {shown}"
    )
    if beyond := sum(bool(trial["beyond"]) for trial in trials):
        why = f"{why}; {beyond} trials were beyond a limit"
    if params.tune.workers > 1:
        why = f"{why}; {params.tune.workers} workers, so another search may try other values"
    return why


def _right_as_written(
    written: dict[str, Any], fidelity: str, trials: Sequence[dict[str, Any]], ladder: Ladder
) -> tuple[str | None, str]:
    """What the written values get right at a fidelity, or why that cannot be known.

    Where no trial tells, as the space does not allow them or their trial ended early, they are
    judged now: a whole training and a head of forty steps are no pair.
    """
    known = next((trial for trial in trials if trial["values"] == written), None)
    limit = known["beyond"] if known else ""
    if known and not limit and list(known["losses"])[-1] == fidelity:
        return str(known["right"]), ""
    try:
        if not limit:
            return search.as_text(ladder.judge(fidelity, written).right), ""
    except Diverged:
        return None, "the written values diverge, so there is nothing to compare it with"
    except Beyond as beyond:
        limit = beyond.limit
    return None, f"the written values are beyond {limit}, so there is nothing to compare it with"


def _best(trials: Sequence[dict[str, Any]], rungs: int = 1) -> dict[str, Any]:
    """The trial of the lowest loss at the highest fidelity, within all limits.

    `rungs`: fidelities that it must have climbed. Raises `ThawlineError` where none is within.
    """
    within = [t for t in trials if not t["beyond"] and len(t["losses"]) >= rungs]
    if not within:
        limits = ", ".join(sorted({t["beyond"] for t in trials if t["beyond"]})) or "all limits"
        raise ThawlineError(
            f"none of {len(trials)} tuning trials is within {limits}; raise a limit, or let "
            "tune.space reach values that keep it"
        )
    highest = max(len(trial["losses"]) for trial in within)
    reached = [trial for trial in within if len(trial["losses"]) == highest]
    ended = [trial for trial in reached if not trial["pruned"]] or reached
    return min(ended, key=lambda trial: (trial["validation_loss"], trial["number"]))


def _answers(right: str) -> metrics.Ints:
    """A string of 0 and 1, example by example, as numbers."""
    return np.array([int(x) for x in right], np.int64)
