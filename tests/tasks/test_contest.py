"""Backbones that scores cannot tell apart are fine-tuned briefly, by successive halving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tasks import augment, contest, embed, problems, race, ranking, select, serving
from tasks.errors import Diverged, ThawlineError
from tasks.params import HeadParams, Params
from tasks.records import Embedding, Project, Selection, ViewPolicy
from tests.tasks import drawn_project

BACKBONES = ["mobilenet_v2", "tf_efficientnet_lite0"]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    torch.set_num_threads(1)
    made = drawn_project.make(tmp_path_factory.mktemp("contest"))
    params = settings()
    augment.run(made, params)
    for name in BACKBONES:
        embed.run(made, params, name)
    return made


def settings(**section: object) -> Params:
    return drawn_project.params(
        augment={"image_size": 32, "views": 2},
        embed={"backbones": BACKBONES},
        select={"race_from": 0} | section,
    )


def test_close_candidates_are_raced_with_their_real_weights(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "LEAST_STEPS", 1)
    monkeypatch.setattr(ranking, "CLOSE", 1.0)
    select.run(project, settings())
    found = Selection.read(project.selection)
    best, other = found.candidates
    assert (best.rank, other.rank) == (1, 2) and best.backbone == found.backbone
    for candidate in found.candidates:
        [only] = candidate.race
        assert only["epochs"] == 1 and only["validation_loss"] > 0
        assert only["accuracy"]["value"] in only["curve"] and len(only["curve"]) == 2
        assert only["accuracy"]["low"] <= only["accuracy"]["value"] <= only["accuracy"]["high"]
        flops = sum(layer.flops for layer in layers(project, candidate.backbone))
        assert 18 * flops < only["multiply_adds"] < 4 * 24 * flops
    assert found.agreement["multiply_adds"] == sum(
        c.race[0]["multiply_adds"] for c in (best, other)
    )
    assert "a race of 2 close candidates, its cost counted" in found.why
    select.run(project, settings())
    assert Selection.read(project.selection) == found  # it repeats exactly


def layers(project: Project, backbone: str) -> list[Any]:
    return Embedding.read(project.features(backbone) / "embedding.json").layers


def test_a_clear_lead_is_not_raced(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "CLOSE", 0.0)
    monkeypatch.setattr(contest, "run", None)
    select.run(project, settings(prefer="size", cost_weight=1.0))
    assert not any(c.race for c in Selection.read(project.selection).candidates)


def test_a_race_that_could_not_tell_is_left_out(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranking, "CLOSE", 1.0)
    monkeypatch.setattr(contest, "run", None)
    select.run(project, settings(race_from=1000))
    found = Selection.read(project.selection)
    assert not any(c.race for c in found.candidates)
    assert "1 close behind, not raced: " in found.why and "select.race_from: 1,000" in found.why


def outcome(
    monkeypatch: pytest.MonkeyPatch, right: dict[str, Any], costs: dict[str, float] | None = None
) -> tuple[contest.Outcome, list[tuple[str, int]]]:
    """The race of contenders that are right on so many (None: diverged) of 100 examples in every
    round; the first so many, so that they are right on the same."""
    ran: list[tuple[str, int]] = []

    def one(project: Project, params: Params, selection: Any, times: int) -> Any:
        ran.append((selection.backbone, times))
        hits = right[selection.backbone]
        loss = None if hits is None else 1.0
        return {"accuracy": {"value": (hits or 0) / 100}, "validation_loss": loss}, (
            np.arange(100) < (hits or 0)
        )

    class Contender:
        def __init__(self, backbone: str) -> None:
            self.backbone = backbone

    def worth(name: str, accuracy: float) -> float:
        return accuracy - (costs or {}).get(name, 0.0)

    monkeypatch.setattr(contest, "_round", one)
    monkeypatch.setattr(contest, "groups_of", lambda project: np.arange(100))
    contenders: Any = [Contender(name) for name in right]
    return contest.run(Project(Path()), settings(), contenders, worth), ran


def test_the_better_half_goes_on_for_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    found, ran = outcome(monkeypatch, {"a": 50, "b": 90, "c": 80, "d": 70, "e": 60})
    assert ran == [(n, 1) for n in "abcde"] + [(n, 2) for n in "dcb"] + [(n, 4) for n in "cb"]
    assert [len(found.rounds[name]) for name in "abcde"] == [1, 3, 3, 2, 1]
    assert found.order == ["b", "c", "d", "e", "a"]
    assert found.lead is not None and found.lead["value"] == 0.4


@pytest.mark.parametrize(
    ("right", "costs", "winner"),
    [
        ((80, 83), (0, 0), "a"),  # three more of a hundred may be luck
        ((80, 90), (0, 0), "b"),
        ((80, 90), (0, 0.09), "a"),  # but not worth what it costs
        ((80, 79), (0.2, 0), "b"),  # hardly worse, and much cheaper
        ((90, 80), (0, 0), "a"),
        ((None, 10), (0, 0), "b"),
    ],
)
def test_the_favourite_stays_unless_another_is_distinguishably_better(
    monkeypatch: pytest.MonkeyPatch,
    right: tuple[int | None, int],
    costs: tuple[float, float],
    winner: str,
) -> None:
    by_name = dict(zip("ab", right, strict=True))
    found, _ = outcome(monkeypatch, by_name, dict(zip("ab", costs, strict=True)))
    assert found.winner == winner
    values = [(hits or 0) / 100 - cost for hits, cost in zip(right, costs, strict=True)]
    assert found.order == (["a", "b"] if values[0] > values[1] else ["b", "a"])


def test_nobody_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Diverged, match="every training in the race"):
        outcome(monkeypatch, {"a": None, "b": None})


def test_a_lead_is_judged_on_the_same_examples() -> None:
    one, other = np.arange(400) < 300, np.arange(400) < 292
    apart = np.random.default_rng(0).permutation(one)
    each = np.arange(400)
    near, far = (contest.lead_of(one, x, each) for x in (other, apart & other))
    assert near.low > 0 and near.value == 0.02
    assert far.high - far.low > 2 * (near.high - near.low)
    together = contest.lead_of(one, other, each // 8)  # the eight are of one group
    assert together.low < 0
    many = contest.lead_of(one, other, each, challengers=15)
    assert many.low < near.low and many.high > near.high


def test_latency_and_size_are_measured_here(project: Project) -> None:
    select.run(project, settings(max_latency_ms=60_000, max_megabytes=1000, race=0))
    assert not any(c.ruled_out for c in Selection.read(project.selection).candidates)
    with pytest.raises(ThawlineError, match=r"slower here than select\.max_latency_ms, 0\.0001"):
        select.run(project, settings(max_latency_ms=0.0001, race=0))

    def size_with(head: HeadParams) -> float:
        return serving.Expected(project, settings(), BACKBONES[1], head).megabytes

    size = size_with(HeadParams())
    assert size_with(HeadParams(hidden=[1000])) - size > 4 * 1280 * 1000 / 1e6  # the head counts
    select.run(project, settings(max_megabytes=size - 0.01, race=0))
    by_name = {c.backbone: c.ruled_out for c in Selection.read(project.selection).candidates}
    assert by_name[BACKBONES[1]].endswith(f"MB, select.max_megabytes is {size - 0.01:g}")


def test_what_is_timed_is_what_predicts() -> None:
    problem = problems.load("image_classification")
    policy = ViewPolicy("image_classification", 0, 0, {}, [], test_time="flip")
    seen: list[torch.Tensor] = []

    def model(view: torch.Tensor) -> torch.Tensor:
        seen.append(view)
        return view.sum((1, 2, 3))[:, None] * len(seen)

    image = torch.rand(1, 3, 4, 4)
    found = serving.predict(problem, model, policy, image)  # type: ignore[arg-type]
    assert len(seen) == 2 and (seen[1] == image.flip(-1)).all()
    assert found.item() == pytest.approx(1.5 * image.sum().item())
