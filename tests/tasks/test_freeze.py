"""Thaw plans, from the names and costs of layers alone; the contract of all strategies."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import tasks.thaw_strategies
from tasks import freeze, plugins
from tasks.errors import ThawlineError
from tasks.params import FreezeParams, TrainParams
from tasks.records import Candidate, Layer, Phase, Selection, ThawPlan, ViewPolicy
from tasks.thaw_strategies import auto, last_blocks

COSTS = [30, 20, 10, 20, 10, 9, 1]
NAMES = ["stem", "block1", "block2", "block3", "block4", "block5", "head"]
LAYERS = [
    Layer(name, parameters=10, buffers=2, flops=1000 * cost, output_bytes=1000 // (i + 1), width=8)
    for i, (name, cost) in enumerate(zip(NAMES, COSTS, strict=True))
]
SELECTION = Selection("net", "", [], "0" * 64, "", "", "", LAYERS, examples=100, classes=3)
POLICY = ViewPolicy(
    "image_classification",
    0,
    4,
    {"image_size": 96, "resize": "squash"},
    [{"name": "x", "arguments": {}}],
)


def plan(policy: ViewPolicy = POLICY, **params: object) -> ThawPlan:
    if params.get("strategy") == "pattern":
        params.setdefault("layers", ["block[25]"])
    return freeze.make(SELECTION, FreezeParams(**params), policy)


def test_there_are_strategies() -> None:
    known = plugins.names(tasks.thaw_strategies)
    assert {"head_only", "last_blocks", "head_then_all", "gradual", "all", "pattern"} <= set(known)


PLANNED = [n for n in plugins.names(tasks.thaw_strategies) if n != "auto"]


@pytest.mark.parametrize("strategy", PLANNED)
class TestEveryStrategy:
    def test_names_layers_that_exist_with_rates_that_make_sense(self, strategy: str) -> None:
        for phase in plan(strategy=strategy).phases:
            assert phase.learning_rates
            assert set(phase.learning_rates) <= set(NAMES)
            assert all(0 < rate <= 1 for rate in phase.learning_rates.values())
            assert "head" in phase.learning_rates

    def test_ends_with_a_phase_that_takes_the_remaining_epochs(self, strategy: str) -> None:
        *before, last = plan(strategy=strategy).phases
        assert last.epochs is None
        assert all(phase.epochs for phase in before)

    def test_fits_into_the_default_epochs(self, strategy: str) -> None:
        phases = plan(strategy=strategy).phases
        assert sum(freeze.epochs_of(phases, TrainParams().epochs)) == TrainParams().epochs

    def test_deeper_layers_never_learn_faster(self, strategy: str) -> None:
        for phase in plan(strategy=strategy).phases:
            rates = [phase.learning_rates[n] for n in NAMES if n in phase.learning_rates]
            assert rates == sorted(rates)

    def test_survives_a_round_trip(self, strategy: str, tmp_path: Path) -> None:
        made = plan(strategy=strategy)
        made.write(tmp_path / "plan.json")
        assert ThawPlan.read(tmp_path / "plan.json") == made


@pytest.mark.parametrize(
    ("fraction", "line"), [(0.01, "block5"), (0.1, "block5"), (0.2, "block4"), (1.0, "stem")]
)
def test_last_blocks_thaws_as_much_compute_as_allowed(fraction: float, line: str) -> None:
    assert plan(strategy="last_blocks", thaw_fraction=fraction).thaw_line == line


def test_rates_fall_by_layer_decay_from_the_fraction() -> None:
    rates = (
        plan(strategy="all", learning_rate_fraction=0.1, layer_decay=0.5).phases[0].learning_rates
    )
    assert rates["head"] == 1.0
    assert rates["block5"] == pytest.approx(0.1)
    assert rates["block4"] == pytest.approx(0.05)
    assert rates["stem"] == pytest.approx(0.1 * 0.5**5)


def test_layers_that_start_anew_must_learn_from_the_first_step_on() -> None:
    assert plan().reinitialised == []
    found = plan(thaw_fraction=0.9, reinitialise=2)
    below = [layer.name for layer in found.layers[:-1]]
    assert found.reinitialised == below[-2:]
    assert f"{below[-2]}, {below[-1]} start anew" in found.why
    for params in (
        {"strategy": "head_only"},
        {"strategy": "head_then_all", "thaw_fraction": 0.9},
        {"strategy": "norms_only", "thaw_fraction": 0.9},
    ):
        with pytest.raises(
            ThawlineError, match=r"freeze\.reinitialise is 1, but .* does not learn"
        ):
            plan(reinitialise=1, **params)


def test_head_only_keeps_all_but_the_head() -> None:
    made = plan(strategy="head_only")
    assert made.frozen_share == 0.99
    assert made.cache
    # Four augmented views and the plain one of the last layer below the head.
    assert made.cache_bytes == LAYERS[5].output_bytes * 100 * 5


def test_without_augmentation_one_view_is_kept() -> None:
    policy = ViewPolicy("image_classification", 0, 4, {"image_size": 96, "resize": "squash"}, [])
    assert plan(policy, strategy="head_only").cache_bytes == LAYERS[5].output_bytes * 100


def test_float32_takes_twice_the_bytes() -> None:
    layers = [replace(layer, item_bytes=4) for layer in LAYERS]
    made = freeze.make(
        replace(SELECTION, layers=layers), FreezeParams(strategy="head_only"), POLICY
    )
    assert made.cache_bytes == 2 * plan(strategy="head_only").cache_bytes


def test_all_says_that_nothing_can_be_kept() -> None:
    made = plan(strategy="all")
    assert not made.cache and made.cache_bytes == 0 and made.frozen_share == 0
    assert "nothing to cache" in made.why


def test_cache_on_with_nothing_frozen_is_refused() -> None:
    with pytest.raises(ThawlineError, match=r"nothing to cache; set freeze\.cache"):
        plan(strategy="all", cache="on")


def test_a_cache_beyond_the_limit_is_not_kept() -> None:
    made = plan(strategy="head_only", cache_gigabytes=1e-5)
    assert not made.cache
    assert "every epoch: its output would take" in made.why
    assert plan(strategy="head_only", cache_gigabytes=1e-5, cache="on").cache


def test_a_boundary_that_costs_more_than_computing_it_is_not_kept() -> None:
    layers = [replace(layer, output_bytes=10_000) for layer in LAYERS]
    big = replace(SELECTION, layers=layers)
    low = freeze.make(big, FreezeParams(thaw_fraction=0.7), POLICY)  # 30,000 flops below the line
    assert low.thaw_line == "block1"
    assert not low.cache and "3 multiply-adds a byte" in low.why
    assert freeze.make(big, FreezeParams(thaw_fraction=0.7, cache="on"), POLICY).cache


def test_gradual_moves_the_line_down_in_steps_of_equal_compute() -> None:
    phases = plan(strategy="gradual", thaw_fraction=0.6, phase_epochs=2).phases
    lowest = [next(iter(phase.learning_rates)) for phase in phases]
    assert lowest == ["head", "block4", "block3", "block2"]
    assert [phase.epochs for phase in phases] == [2, 2, 2, None]


def test_the_last_phase_has_what_the_others_leave() -> None:
    phases = plan(strategy="gradual", thaw_fraction=0.6, phase_epochs=2).phases
    assert freeze.epochs_of(phases, 10) == [2, 2, 2, 4]
    assert freeze.epochs_of(phases[-1:], 10) == [10]


@pytest.mark.parametrize(
    ("strategy", "learns"), [("norms_only", "norms"), ("biases_only", "biases"), ("lora", "lora")]
)
def test_a_part_of_the_layers_above_the_line_learns(strategy: str, learns: str) -> None:
    made = plan(strategy=strategy, thaw_fraction=0.2)
    assert (made.thaw_line, made.phases[0].learns, made.cache) == ("block4", learns, True)
    assert "nothing to cache" in plan(strategy=strategy, thaw_fraction=1).why


def test_lora_without_its_library_is_told_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ThawlineError, match=r"'lora' needs .* pip install 'thawline\[lora\]'"):
        plan(strategy="lora")


class Raced:
    """A race whose losses are given by the lowest layer of each plan; `in_steps`: of two phases."""

    def __init__(self, in_steps: float = math.inf, **losses: float) -> None:
        self.in_steps, self.given = in_steps, losses
        self.tried: list[list[str]] = []

    def __call__(self, plans: Sequence[Sequence[Phase]]) -> list[float]:
        self.tried += [[next(iter(phase.learning_rates)) for phase in phases] for phases in plans]
        return [
            self.given.get(lowest, 1.0) if len(rest) == 0 else self.in_steps
            for *rest, lowest in self.tried[-len(plans) :]
        ]


def auto_choice(
    raced: Raced, examples: int = 1000, ridge: float = 0.8, share: float = 0.2, **params: object
) -> tuple[list[str], str]:
    """The lowest layer of each phase that `auto` chooses, and why."""
    known = [Candidate("net", 10, 100, ridge, 0.8, 0.8, 1)]
    selection = replace(SELECTION, candidates=known, examples=examples)
    phases, why = auto.choose(selection, FreezeParams(strategy="auto", **params), raced, share)
    return [next(iter(phase.learning_rates)) for phase in phases], why


def test_auto_races_ever_deeper_lines_up_to_the_fraction() -> None:
    others = [["head"], ["block5"], ["block4"], ["block2"], ["block1"]]
    raced = Raced(head=0.5)
    assert auto_choice(raced, thaw_fraction=1.0)[0] == ["head"]
    assert raced.tried == others  # all of it is dear, and the way there does not pay
    raced = Raced(block1=0.5, stem=0.4)
    assert auto_choice(raced, thaw_fraction=1.0)[0] == ["stem"]
    assert raced.tried[:6] == [*others, ["stem"]]
    raced = Raced(block4=0.5)
    assert auto_choice(raced, thaw_fraction=0.2)[0] == ["block4"]
    assert raced.tried[:3] == [["head"], ["block5"], ["block4"]]


def test_auto_goes_to_the_best_depth_in_steps_where_that_does_better() -> None:
    raced = Raced(stem=0.5, in_steps=0.6)
    assert auto_choice(raced, thaw_fraction=1.0)[0] == ["stem"]
    assert raced.tried[-1] == ["block2", "stem"]
    assert auto_choice(Raced(stem=0.5, in_steps=0.4), thaw_fraction=1.0)[0] == ["block2", "stem"]


def test_auto_races_nothing_that_it_cannot_tell_apart_or_need_not() -> None:
    raced = Raced()
    lines, why = auto_choice(raced, examples=999, thaw_fraction=1.0)
    assert lines == ["block2"] and "999 training examples are too few" in why
    assert auto_choice(raced, examples=999, thaw_fraction=0.1)[0] == ["block5"]
    lines, why = auto_choice(raced, share=0.6, thaw_fraction=0.7)
    assert lines == ["block1"] and "60% of the epochs" in why
    lines, why = auto_choice(raced, ridge=0.996)
    assert lines == ["head"] and "right on 99.6%" in why
    assert not raced.tried
    assert auto_choice(raced, share=0.6, epoch_minutes=1.0)[0] == ["head"]
    assert raced.tried  # how long an epoch takes is only known by trying


def test_auto_takes_the_head_when_nothing_is_quick_enough() -> None:
    out = dict.fromkeys(NAMES, math.inf)
    lines, why = auto_choice(Raced(**out))
    assert lines == ["head"] and "freeze.epoch_minutes" in why


def test_a_pattern_thaws_what_it_names() -> None:
    made = plan(strategy="pattern", layers=["block[25]"])
    assert list(made.phases[0].learning_rates) == ["block2", "block5", "head"]
    assert made.thaw_line == "block2"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"strategy": "pattern", "layers": ["nosuch*"]}, r"'nosuch.*no layer.*stem, block1"),
        ({"strategy": "pattern", "layers": []}, r"freeze\.layers is empty.*stem, block1"),
        ({"learning_rates": {"nosuch": 0.1}}, r"learning_rates: 'nosuch' matches no layer"),
        (
            {"strategy": "head_only", "learning_rates": {"head": 2.0, "block[12]": 0.1}},
            r"'block\[12\]' matches block1, block2, which strategy 'head_only' leaves frozen",
        ),
    ],
)
def test_a_glob_that_matches_nothing_lists_the_layers(
    params: dict[str, object], message: str
) -> None:
    with pytest.raises(ThawlineError, match=message):
        freeze.make(SELECTION, FreezeParams(**params), POLICY)


def test_rates_can_be_given_by_glob() -> None:
    given = {"block*": 0.5, "block5": 0.3, "head": 2.0}
    made = (
        plan(strategy="all", learning_rate_fraction=0.2, learning_rates=given)
        .phases[0]
        .learning_rates
    )
    assert (made["block1"], made["block5"], made["head"]) == (0.5, 0.3, 2.0)
    assert made["stem"] < 0.5


def test_a_line_that_rises_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = [Phase("all", 1, {"stem": 1.0, "head": 1.0}), Phase("head", None, {"head": 1.0})]
    monkeypatch.setattr(last_blocks, "plan", lambda *_: phases)
    with pytest.raises(ThawlineError, match="raises the thaw line"):
        plan(strategy="last_blocks")


def test_only_the_last_phase_may_take_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    phases = [Phase("head", None, {"head": 1.0}), Phase("all", None, {"stem": 1.0, "head": 1.0})]
    monkeypatch.setattr(last_blocks, "plan", lambda *_: phases)
    with pytest.raises(ThawlineError, match=r"'last_blocks' gives the rest of train\.epochs"):
        plan(strategy="last_blocks")


def test_people_are_shown_the_head_that_is_trained() -> None:
    def head(made: ThawPlan, *hidden: int) -> tuple[int, int]:
        shown = freeze.with_new_head(made, 3, hidden)
        assert shown.layers[:-1] == made.layers[:-1] and shown.thaw_line == made.thaw_line
        return shown.layers[-1].parameters, shown.layers[-1].flops

    made = plan(strategy="last_blocks")
    assert head(made) == (8 * 3 + 3, 8 * 3)
    assert head(made, 5) == (8 * 5 + 5 + 5 * 3 + 3, 8 * 5 + 5 * 3)
    several = plan(strategy="multi_layer_head", feature_fraction=0.5)
    assert head(several) == (24 * 3 + 3, 24 * 3)  # half of 6 × 8 features
    old = replace(made, layers=[replace(layer, width=0) for layer in made.layers])
    assert head(old) == (10, 1000)


def test_phases_that_take_more_than_all_epochs_are_refused() -> None:
    phases = plan(strategy="gradual", thaw_fraction=0.6, phase_epochs=3).phases
    assert freeze.epochs_of(phases, 10) == [3, 3, 3, 1]
    for epochs in (8, 9):
        with pytest.raises(ThawlineError, match=rf"train\.epochs is {epochs}.*take 9.*phase_epoc"):
            freeze.epochs_of(phases, epochs)
    assert freeze.epochs_of([Phase("head", 2, {"head": 1.0})], 2) == [2]


def test_strategies_say_how_many_phases_they_have() -> None:
    for name in PLANNED:
        phases = plan(strategy=name, thaw_fraction=0.6).phases
        assert len(phases) == getattr(plugins.load(tasks.thaw_strategies, name), "PHASES", 1), name


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys, tasks.freeze, tasks.thaw_strategies as s\n"
        "from tasks import plugins\n"
        "[plugins.load(s, n) for n in plugins.names(s)]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
