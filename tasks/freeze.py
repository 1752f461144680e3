"""freeze: the thaw plan, from the names and costs of the layers alone."""

from __future__ import annotations

from collections.abc import Sequence

import tasks.thaw_strategies
from tasks import plugins
from tasks.errors import ThawlineError
from tasks.params import FreezeParams, Params
from tasks.records import Layer, Phase, Project, Selection, ThawPlan, ViewPolicy

CACHE_LIMIT_BYTES = 8 * 2**30  # beyond this, `cache: auto` computes the frozen part every epoch


def run(project: Project, params: Params) -> None:
    """Write the thaw plan of the selected backbone."""
    selection = Selection.read(project.selection)
    policy = ViewPolicy.read(project.augment / "policy.json")
    make(selection, params.freeze, policy).write(project.thaw_plan)


def make(selection: Selection, params: FreezeParams, policy: ViewPolicy) -> ThawPlan:
    """Plan the phases and decide what is worth keeping.

    Raises `UnknownName` for a strategy that does not exist and `ThawlineError` when
    `freeze.cache: on` meets a strategy that leaves nothing to cache.
    """
    layers = selection.layers
    phases = plugins.load(tasks.thaw_strategies, params.strategy).plan(layers, params)
    first = min(start(layers, phase) for phase in phases)
    cached = [layers[start(layers, p) - 1].output_bytes for p in phases if start(layers, p) > 0]
    views = (policy.views if policy.transforms else 0) + 1
    cache_bytes = sum(cached) * selection.examples * views
    cache, cache_why = _cache(params, cached, cache_bytes)
    total = sum(layer.flops for layer in layers)
    frozen = sum(layer.flops for layer in layers[:first])
    line = layers[first].name
    return ThawPlan(
        strategy=params.strategy,
        backbone=selection.backbone,
        weights_sha256=selection.weights_sha256,
        layers=layers,
        phases=phases,
        thaw_line=line,
        frozen_share=round(frozen / total, 4),
        cache=cache,
        cache_bytes=cache_bytes if cache else 0,
        batch_norm=params.batch_norm,
        why=f"{params.strategy}: {line} and above learn, {frozen / total:.0%} of the forward "
        f"compute stays frozen; {cache_why}",
    )


def start(layers: Sequence[Layer], phase: Phase) -> int:
    """Index of the lowest layer that learns in a phase."""
    return next(i for i, layer in enumerate(layers) if layer.name in phase.learning_rates)


def _cache(params: FreezeParams, cached: list[int], cache_bytes: int) -> tuple[bool, str]:
    """Whether to keep the frozen part's output, and why."""
    size = f"{cache_bytes / 2**20:,.0f} MiB"
    if not cached:
        if params.cache == "on":
            raise ThawlineError(
                f"freeze.cache is on, but strategy {params.strategy!r} freezes no layer from the "
                "input up, so there is nothing to cache; set freeze.cache to auto"
            )
        return False, "nothing below the thaw line, so nothing to cache"
    if params.cache == "off":
        return False, "the frozen part is computed every epoch, as freeze.cache is off"
    if params.cache == "auto" and cache_bytes > CACHE_LIMIT_BYTES:
        return False, f"the frozen part is computed every epoch: its output would take {size}"
    return True, f"its output is kept in {size} of scratch, computed once a view"
