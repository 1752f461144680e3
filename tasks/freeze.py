"""freeze: the thaw plan, from the names and costs of the layers alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from itertools import pairwise
from typing import Any

import tasks.thaw_strategies
from tasks import plugins, race, recipes
from tasks.errors import ThawlineError
from tasks.params import FreezeParams, Params
from tasks.records import Layer, Phase, Project, Reading, Selection, ThawPlan, ViewPolicy

# Below so many multiply-adds for each byte at the thaw line (in 2-byte floats: others cost more to
# compute, too), reading it back takes longer than computing it: early layers of large maps.
LEAST_FLOPS_A_BYTE = 20
EVERY_EPOCH = "the frozen part is computed every epoch"


def run(project: Project, params: Params) -> None:
    """Write the thaw plan of the selected backbone."""
    selection = Selection.read(project.selection)
    policy = ViewPolicy.read(project.augment / "policy.json")
    strategy = plugins.load(tasks.thaw_strategies, params.freeze.strategy)
    if not hasattr(strategy, "choose"):
        make(selection, params.freeze, policy).write(project.thaw_plan)
        return
    recipe = recipes.training(params.problem)
    # As many for all, also for those in steps, which need two.
    epochs = max(race.least_epochs(selection.examples, recipe), 2)
    standings: list[dict[str, Any]] = []

    def planned(phases: Sequence[Phase]) -> ThawPlan:
        # Of what freezes nothing there is nothing to keep, whatever is asked of the others.
        freezes = any(start(selection.layers, phase) for phase in phases)
        changes = {} if freezes else {"cache": "auto"}
        return make(selection, params.freeze.model_copy(update=changes), policy, phases)

    def raced(tried: Sequence[Sequence[Phase]]) -> list[float]:
        from tasks.engine.setup import Setup

        plans = [planned(phases) for phases in tried]
        entrants = [race.Entrant(_called(plan), plan, recipe, epochs) for plan in plans]
        setup = Setup.make(project, params, plans[0], recipe)
        found = race.run(setup, entrants, params.freeze.epoch_minutes)
        standings.extend(found)
        return race.losses(found)

    phases, why = strategy.choose(selection, params.freeze, raced, epochs / recipe.epochs)
    plan = planned(phases)
    if standings:
        race.check(standings)
        why = f"{why}: {race.told(standings)}"
    replace(plan, race=standings, why=f"{plan.why}; {why}").write(project.thaw_plan)


def _called(plan: ThawPlan) -> str:
    return plan.thaw_line if len(plan.phases) == 1 else f"{plan.thaw_line} in steps"


def make(
    selection: Selection,
    params: FreezeParams,
    policy: ViewPolicy,
    phases: Sequence[Phase] | None = None,
) -> ThawPlan:
    """Complete the phases of the strategy, or those given, and decide what is worth keeping.

    Raises `UnknownName` for a strategy that does not exist and `ThawlineError` when a glob matches
    no layer, or when `freeze.cache: on` meets a strategy that leaves nothing to cache.
    """
    layers = selection.layers
    strategy = plugins.load(tasks.thaw_strategies, params.strategy)
    if phases is None:
        phases = strategy.plan(layers, params)
    reading = strategy.reading(layers, params) if hasattr(strategy, "reading") else None
    phases = _overridden(phases, layers, params)
    lines = [start(layers, phase) for phase in phases]
    if lines != sorted(lines, reverse=True):
        raise ThawlineError(
            f"thaw strategy {params.strategy!r} raises the thaw line from one phase to the next; "
            "what has learned cannot be taken for frozen, so let each phase reach as deep as the "
            "one before"
        )
    if any(phase.epochs is None for phase in phases[:-1]):
        raise ThawlineError(
            f"thaw strategy {params.strategy!r} gives the rest of train.epochs to a phase that is "
            "not the last; give that phase a number of epochs"
        )
    if reading and lines != [len(layers) - 1]:
        raise ThawlineError(
            f"thaw strategy {params.strategy!r} lets layers learn that its head reads; what a head "
            "on many layers reads is computed once, so let the head alone learn, in one phase"
        )
    fresh = _reinitialised(params, layers, phases)
    cache, why, size = _cache(params, _seen(layers, reading), lines, selection.examples, policy)
    total = sum(layer.flops for layer in layers)
    frozen = sum(layer.flops for layer in layers[: lines[-1]])
    line = layers[lines[-1]].name
    return ThawPlan(
        strategy=params.strategy,
        backbone=selection.backbone,
        weights_sha256=selection.weights_sha256,
        layers=layers,
        phases=phases,
        thaw_line=line,
        frozen_share=round(frozen / total, 4),
        cache=cache,
        cache_bytes=size if cache else 0,
        batch_norm=params.batch_norm,
        why=f"{params.strategy}: {line} and above learn, {frozen / total:.0%} of the forward "
        f"compute stays frozen; {_told(reading)}{_renewed(fresh)}{why}",
        lora_rank=params.lora_rank,
        reading=reading,
        reinitialised=fresh,
    )


def with_new_head(plan: ThawPlan, classes: int, hidden: Sequence[int]) -> ThawPlan:
    """The plan for people, with the head that is trained in place of the pretrained one.

    Thaw lines and the frozen share are reckoned with the pretrained head, since the plan depends
    on no parameter of training.
    """
    *below, head = plan.layers
    inputs = plan.reading.kept if plan.reading else below[-1].width
    if not inputs:  # a record from before widths were noted
        return plan
    sizes = [inputs, *hidden, classes]
    flops = sum(a * b for a, b in pairwise(sizes))
    new = replace(
        head,
        parameters=flops + sum(sizes[1:]),
        flops=flops,
        output_bytes=2 * classes,
        width=classes,
    )
    return replace(plan, layers=[*below, new])


def epochs_of(phases: Sequence[Phase], epochs: int) -> list[int]:
    """The epochs of each phase: its own, or for the last what the others leave of `epochs`.

    Raises `ThawlineError` when they leave none.
    """
    fixed = sum(phase.epochs or 0 for phase in phases)
    if fixed + (phases[-1].epochs is None) > epochs:
        raise ThawlineError(
            f"train.epochs is {epochs}, but the phases of the thaw plan before its last take "
            f"{fixed}; raise train.epochs above {fixed}, or lower freeze.phase_epochs"
        )
    return [epochs - fixed if phase.epochs is None else phase.epochs for phase in phases]


def must_try(params: FreezeParams) -> bool:
    """Whether the strategy may have to try, so that its plan is not known beforehand."""
    return hasattr(plugins.load(tasks.thaw_strategies, params.strategy), "choose")


def start(layers: Sequence[Layer], phase: Phase) -> int:
    """Index of the lowest layer that learns in a phase."""
    return next(i for i, layer in enumerate(layers) if layer.name in phase.learning_rates)


def _seen(layers: Sequence[Layer], reading: Reading | None) -> Sequence[Layer]:
    """The layers with what the head reads as the output of the one below it."""
    if reading is None:
        return layers
    *below, top, head = layers
    item_bytes = max(layer.item_bytes for layer in layers if layer.name in reading.layers)
    return [*below, replace(top, output_bytes=2 * reading.width, item_bytes=item_bytes), head]


def _told(reading: Reading | None) -> str:
    if reading is None:
        return ""
    return (
        f"the head reads {reading.kept:,} of the {reading.width:,} pooled features of "
        f"{len(reading.layers)} layers; "
    )


def _reinitialised(
    params: FreezeParams, layers: Sequence[Layer], phases: Sequence[Phase]
) -> list[str]:
    """The layers that start anew: the last ones below the head, as in Zhang et al., ICLR 2021,
    arXiv:2006.05987. Each has to learn in every phase, or it would stay random."""
    below = [layer.name for layer in layers[:-1]]
    fresh = below[len(below) - params.reinitialise :] if params.reinitialise else []
    for phase in phases:
        still = [name for name in fresh if name not in phase.learning_rates]
        if still or (fresh and phase.learns != "all"):
            raise ThawlineError(
                f"freeze.reinitialise is {params.reinitialise}, but {(still or fresh)[0]} does not "
                f"learn as a whole in phase {phase.name!r}; lower it, or choose a strategy that "
                "thaws so many layers from the first step on, such as last_blocks or all"
            )
    return fresh


def _renewed(fresh: Sequence[str]) -> str:
    return f"{', '.join(fresh)} start anew; " if fresh else ""


def _overridden(
    phases: Sequence[Phase], layers: Sequence[Layer], params: FreezeParams
) -> list[Phase]:
    """The phases with the rates that `freeze.learning_rates` gives by glob, the last match wins."""
    overrides = params.learning_rates
    learned = {name for phase in phases for name in phase.learning_rates}
    for glob in overrides:
        found = [layer.name for layer in layers if fnmatchcase(layer.name, glob)]
        if not found:
            names = ", ".join(layer.name for layer in layers)
            raise ThawlineError(
                f"freeze.learning_rates: {glob!r} matches no layer; the layers are {names}"
            )
        if learned.isdisjoint(found) and not must_try(params):
            raise ThawlineError(
                f"freeze.learning_rates: {glob!r} matches {', '.join(found)}, which strategy "
                f"{params.strategy!r} leaves frozen; leave it out, or thaw that (see thawline plan)"
            )

    def rate(name: str, planned: float) -> float:
        given = [value for glob, value in overrides.items() if fnmatchcase(name, glob)]
        return given[-1] if given else planned

    return [
        replace(p, learning_rates={n: rate(n, r) for n, r in p.learning_rates.items()})
        for p in phases
    ]


def _cache(
    params: FreezeParams,
    layers: Sequence[Layer],
    lines: Sequence[int],
    examples: int,
    policy: ViewPolicy,
) -> tuple[bool, str, int]:
    """Whether to keep the output of the frozen part of each phase, why, and its bytes."""
    kept = [(layers[line - 1], layers[:line]) for line in lines if line]
    if not kept:
        if params.cache == "on":
            raise ThawlineError(
                f"freeze.cache is on, but strategy {params.strategy!r} freezes no layer from the "
                "input up, so there is nothing to cache; set freeze.cache to auto"
            )
        return False, "nothing below the thaw line, so nothing to cache", 0
    views = (policy.views if policy.transforms else 0) + 1
    bytes_a_view = sum(top.output_bytes for top, _ in kept)
    flops = sum(layer.flops for _, below in kept for layer in below)
    size = sum(top.kept_bytes for top, _ in kept) * examples * views
    shown = f"{size / 2**20:,.0f} MiB"
    if params.cache == "off":
        return False, f"{EVERY_EPOCH}, as freeze.cache is off", size
    if params.cache == "auto" and size > params.cache_gigabytes * 1e9:
        return False, f"{EVERY_EPOCH}: its output would take {shown}", size
    if params.cache == "auto" and flops < LEAST_FLOPS_A_BYTE * bytes_a_view:
        share = f"{flops / bytes_a_view:.0f} multiply-adds a byte of its output"
        return False, f"{EVERY_EPOCH}: at {share} that is quicker than reading it back", size
    return True, f"its output is kept in {shown} of scratch, computed once a view", size
