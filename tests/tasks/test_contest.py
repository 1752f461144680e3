"""Backbones that scores cannot tell apart are fine-tuned briefly, by successive halving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tasks import augment, contest, embed, race, select
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.records import Embedding, Project, Selection
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
        augment={"image_size": 32, "views": 2}, embed={"backbones": BACKBONES}, select=section
    )


def test_close_candidates_are_raced_with_their_real_weights(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(race, "LEAST_STEPS", 1)
    monkeypatch.setattr(select, "CLOSE", 1.0)
    select.run(project, settings())
    found = Selection.read(project.selection)
    best, other = found.candidates
    assert (best.rank, other.rank) == (1, 2) and best.backbone == found.backbone
    for candidate in found.candidates:
        [only] = candidate.race
        assert only["epochs"] == 1 and only["validation_loss"] > 0
        assert only["accuracy"]["low"] <= only["accuracy"]["value"] <= only["accuracy"]["high"]
        flops = sum(layer.flops for layer in layers(project, candidate.backbone))
        assert 18 * flops < only["multiply_adds"] < 4 * 24 * flops
    assert found.agreement["multiply_adds"] == sum(
        c.race[0]["multiply_adds"] for c in (best, other)
    )
    assert "has won a race of 2 close candidates, its cost counted" in found.why
    select.run(project, settings())
    assert Selection.read(project.selection) == found  # it repeats exactly


def layers(project: Project, backbone: str) -> list[Any]:
    return Embedding.read(project.features(backbone) / "embedding.json").layers


def test_a_clear_lead_is_not_raced(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(select, "CLOSE", 0.0)
    monkeypatch.setattr(contest, "run", None)
    select.run(project, settings(prefer="size", cost_weight=1.0))
    assert not any(c.race for c in Selection.read(project.selection).candidates)


def test_the_better_half_goes_on_for_twice_as_long(monkeypatch: pytest.MonkeyPatch) -> None:
    skill = {"a": 0.5, "b": 0.9, "c": 0.8, "d": 0.7, "e": 0.6}
    ran: list[tuple[str, int]] = []

    def one(project: Project, params: Params, selection: Any, times: int) -> dict[str, Any]:
        ran.append((selection.backbone, times))
        return {"accuracy": {"value": skill[selection.backbone]}, "validation_loss": 1.0}

    class Contender:
        def __init__(self, backbone: str) -> None:
            self.backbone = backbone

    monkeypatch.setattr(contest, "_round", one)
    found = contest.run(
        Project(Path()), settings(), [Contender(n) for n in skill], lambda _, accuracy: accuracy
    )
    assert ran == [(n, 1) for n in "abcde"] + [(n, 2) for n in "bcd"] + [(n, 4) for n in "bc"]
    assert [len(found[name]) for name in "abcde"] == [1, 3, 3, 2, 1]


def test_latency_is_measured_here(project: Project) -> None:
    select.run(project, settings(max_latency_ms=60_000, race=0))
    assert not any(c.ruled_out for c in Selection.read(project.selection).candidates)
    with pytest.raises(ThawlineError, match=r"slower here than select\.max_latency_ms, 0\.0001"):
        select.run(project, settings(max_latency_ms=0.0001, race=0))
