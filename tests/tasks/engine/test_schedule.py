"""Schedules as functions of what is done."""

from __future__ import annotations

import pytest
import torch

from tasks.engine.schedule import PLATEAU_FACTOR, factor


@pytest.mark.parametrize("schedule", ["cosine", "constant", "plateau"])
def test_a_warm_up_rises_to_the_full_rate(schedule: str) -> None:
    rates = [factor(schedule, step, 100, 0.1) for step in range(11)]
    assert rates == sorted(rates)
    assert (rates[0], rates[10]) == (pytest.approx(1 / 11), 1.0)


def test_cosine_ends_near_zero_and_constant_stays() -> None:
    assert factor("cosine", 99, 100, 0.05) < 0.001
    assert factor("cosine", 52, 100, 0.05) == pytest.approx(0.5, abs=0.01)
    assert factor("constant", 99, 100, 0.05) == 1.0


def test_one_cycle_is_that_of_pytorch() -> None:
    steps = 1000
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total_steps=steps, pct_start=0.25, div_factor=25, final_div_factor=4000
    )
    for step in range(steps):
        ours = factor("one_cycle", step, steps, 0.0)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=0.005), step
        optimizer.step()
        if step < steps - 1:
            theirs.step()


def test_a_plateau_lowers_the_rate_once_the_loss_stands() -> None:
    def rate(*losses: float) -> float:
        return factor("plateau", 50, 100, 0.0, losses)

    assert rate() == rate(3.0, 2.0, 2.5) == 1.0
    assert rate(3.0, 2.0, 2.5, 2.0) == PLATEAU_FACTOR
    assert rate(3.0, 2.0, 2.5, 2.4, 1.9, 1.95) == PLATEAU_FACTOR
    assert rate(2.0, 2.0, 2.0, 2.0, 2.0) == pytest.approx(PLATEAU_FACTOR**2)
