"""Thaw plans, from the names and costs of layers alone; the contract of all strategies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import tasks.thaw_strategies
from tasks import freeze, plugins
from tasks.errors import ThawlineError, UnknownName
from tasks.params import FreezeParams
from tasks.records import Layer, Selection, ThawPlan, ViewPolicy

COSTS = [30, 20, 10, 20, 10, 9, 1]
NAMES = ["stem", "block1", "block2", "block3", "block4", "block5", "head"]
LAYERS = [
    Layer(name, parameters=10, buffers=2, flops=cost, output_bytes=1000 // (i + 1))
    for i, (name, cost) in enumerate(zip(NAMES, COSTS, strict=True))
]
SELECTION = Selection("net", "", [], "0" * 64, "", "", "", LAYERS, examples=100, classes=3)
POLICY = ViewPolicy("image_classification", 0, 4, 96, "squash", [{"name": "x", "arguments": {}}])


def plan(policy: ViewPolicy = POLICY, **params: object) -> ThawPlan:
    return freeze.make(SELECTION, FreezeParams(**params), policy)


def test_there_are_strategies() -> None:
    known = plugins.names(tasks.thaw_strategies)
    assert {"head_only", "last_blocks", "head_then_all", "all"} <= set(known)


@pytest.mark.parametrize("strategy", plugins.names(tasks.thaw_strategies))
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


def test_head_only_keeps_all_but_the_head() -> None:
    made = plan(strategy="head_only")
    assert made.frozen_share == 0.99
    assert made.cache
    # Four augmented views and the plain one of the last layer below the head.
    assert made.cache_bytes == LAYERS[5].output_bytes * 100 * 5


def test_without_augmentation_one_view_is_kept() -> None:
    policy = ViewPolicy("image_classification", 0, 4, 96, "squash", [])
    assert plan(policy, strategy="head_only").cache_bytes == LAYERS[5].output_bytes * 100


def test_all_says_that_nothing_can_be_kept() -> None:
    made = plan(strategy="all")
    assert not made.cache and made.cache_bytes == 0 and made.frozen_share == 0
    assert "nothing to cache" in made.why


def test_cache_on_with_nothing_frozen_is_refused() -> None:
    with pytest.raises(ThawlineError, match=r"nothing to cache; set freeze\.cache"):
        plan(strategy="all", cache="on")


def test_a_cache_beyond_the_limit_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(freeze, "CACHE_LIMIT_BYTES", 10)
    assert not plan(strategy="head_only").cache
    assert "every epoch" in plan(strategy="head_only").why
    assert plan(strategy="head_only", cache="on").cache


def test_an_unknown_strategy_names_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown thaw strategy 'head_onyl'.*'head_only'"):
        plan(strategy="head_onyl")


def test_planning_needs_no_torch() -> None:
    code = (
        "import sys, tasks.freeze, tasks.thaw_strategies as s\n"
        "from tasks import plugins\n"
        "[plugins.load(s, n) for n in plugins.names(s)]\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
