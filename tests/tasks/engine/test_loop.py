"""The loop: what is frozen stays frozen, what learns moves, and a kill changes nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from tasks import files
from tasks.engine import checkpoint, optimizer
from tasks.engine.average import Average
from tasks.engine.device import Compute
from tasks.engine.network import digest
from tasks.engine.phase import SKIPPED, PhaseRun
from tasks.engine.state import PhaseData, State
from tasks.errors import Diverged, ThawlineError
from tests.tasks.engine import training


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def fit(folder: Path | None = None, **changes: object) -> tuple[training.Network, training.Trainer]:
    net = training.network()
    trainer = training.trainer(folder, net, **changes)
    trainer.restore()
    trainer.fit(lambda index: training.at_line(net, index))
    return net, trainer


def test_frozen_layers_do_not_move_and_learning_ones_do() -> None:
    before = {k: v.clone() for k, v in training.network().state().items()}
    net, trainer = fit()
    after = net.state()
    for key, value in after.items():
        if key.startswith("block0."):
            assert torch.equal(value, before[key]), key
    moved = [k for k in after if not torch.equal(after[k], before[k])]
    assert any(k.startswith("block1.") and "running_mean" in k for k in moved)
    assert {k.split(".")[0] for k in moved} == {"block1", "block2", "head"}
    assert trainer.state.frozen_before == trainer.state.frozen_after
    assert list(trainer.state.frozen_before) == ["1 head", "2 norms", "3 all above"]


def test_frozen_batch_norms_keep_their_statistics_while_their_layer_learns() -> None:
    before, net = training.network().state(), training.network()
    for state in (before, net.state()):
        for key in state:
            if "num_batches" in key:
                state[key].fill_(1001)  # as after a pretraining
    trainer = training.trainer(None, net, epochs=30)
    trainer.frozen_norms = True
    trainer.fit(lambda index: training.at_line(net, index))
    after = net.state()
    statistics = [k for k in after if "running" in k or "num_batches" in k]
    assert all(torch.equal(after[k], before[k]) for k in statistics)
    assert not torch.equal(after["block1.0.weight"], before["block1.0.weight"])


def test_of_a_phase_for_norms_nothing_else_moves() -> None:
    before = {k: v.clone() for k, v in training.network().state().items()}
    net = training.network()
    trainer = training.trainer(None, net, epochs=4)
    trainer.phases = training.phases()[1:2]
    trainer.fit(lambda index: training.at_line(net, 1))
    moved = {k for k, v in net.state().items() if not torch.equal(v, before[k])}
    norm = {f"block2.1.{key}" for key in ("weight", "bias", "running_mean", "running_var")}
    head = {"head.3.weight", "head.3.bias"}
    assert moved == norm | head | {"block2.1.num_batches_tracked"}


def phase_run(index: int = 2, **changes: object) -> PhaseRun:
    """A phase that is about to begin; by default the last one, in which blocks learn."""
    net = training.network()
    trainer = training.trainer(None, net, **changes)
    trainer.state.phase = index
    return PhaseRun(trainer, index, training.at_line(net, index))


def test_each_layer_learns_at_its_own_rate_along_the_schedule_and_norms_do_not_decay() -> None:
    running = phase_run(learning_rate=0.01, weight_decay=0.3, schedule="cosine", warmup=0.0)
    own = {id(p): name for name, p in running.network.modules[-1].named_parameters()}
    for group in running.optimizer.param_groups:
        decays = {p.ndim > 1 for p in group["params"]}
        assert len(decays) == 1
        assert group["weight_decay"] == (0.3 if decays == {True} else 0.0)
    running._set_rates()
    rates = {g["lr"] for g in running.optimizer.param_groups}
    assert sorted(rates) == pytest.approx([0.01 * share for share in (0.1, 0.3, 1.0)])
    heads = [g for g in running.optimizer.param_groups if id(g["params"][0]) in own]
    assert {g["lr"] for g in heads} == {0.01}
    running.state.phase_step = running.epochs * running.steps_an_epoch // 2
    running._set_rates()
    assert heads[0]["lr"] == pytest.approx(0.005, rel=0.05)


@pytest.mark.parametrize("clip", [0.0, 0.1, 1e6])
def test_gradients_are_clipped_as_pytorch_clips_them(clip: float) -> None:
    running = phase_run(gradient_clip=clip)
    for i, parameter in enumerate(running.learning):
        parameter.grad = torch.full_like(parameter, 0.1 * (i + 1))
    wanted = [p.grad.clone() for p in running.learning if p.grad is not None]
    norm = torch.nn.utils.get_total_norm(wanted)
    if clip:
        torch.nn.utils.clip_grads_with_norm_(running.learning, clip, norm)
        wanted = [p.grad.clone() for p in running.learning if p.grad is not None]
        for i, parameter in enumerate(running.learning):
            parameter.grad = torch.full_like(parameter, 0.1 * (i + 1))
    assert optimizer.clip(running.learning, clip) == pytest.approx(norm.item())
    for parameter, gradient in zip(running.learning, wanted, strict=True):
        assert parameter.grad is not None and torch.equal(parameter.grad, gradient)


def test_the_best_averaged_state_of_a_phase_begins_the_next_and_ends_the_training() -> None:
    net = training.network()
    trainer = training.trainer(None, net, learning_rate=0.05)
    trainer.phases = training.phases()[1:]
    seen: list[dict[str, torch.Tensor]] = []

    def inputs(index: int) -> PhaseData:
        seen.append({k: v.clone() for k, v in net.state().items()})
        if index:
            assert all(torch.equal(seen[-1][k], v) for k, v in trainer.best.items())
        return training.at_line(net, index + 1)

    trainer.fit(inputs)
    assert any(not torch.equal(seen[0][k], seen[1][k]) for k in seen[0])
    assert all(torch.equal(net.state()[k], v) for k, v in trainer.best.items())


def test_the_average_is_that_of_pytorch_and_shares_what_stands_still() -> None:
    net = training.network()
    net.learn({"block2", "head"}, frozen_norms=False)
    module = net.run(1)
    theirs = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    ours = Average(module, 0.9)
    for step in range(4):
        with torch.no_grad():
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter))
        module(torch.randn(8, 4, 6, 6))
        theirs.update_parameters(module)
        ours.update(first=step == 0)
    own, wanted = ours.module.state_dict(), theirs.module.state_dict()
    floats = [key for key, value in own.items() if value.is_floating_point()]
    assert floats and all(torch.equal(own[key], wanted[key]) for key in floats)
    still = module.state_dict()
    assert own["0.block1.0.weight"].data_ptr() == still["0.block1.0.weight"].data_ptr()
    assert own["1.block2.0.weight"].data_ptr() != still["1.block2.0.weight"].data_ptr()
    assert not torch.equal(own["1.block2.0.weight"], still["1.block2.0.weight"])


def test_a_frozen_parameter_that_moves_is_found() -> None:
    net = training.network()
    trainer = training.trainer(None, net)
    trainer.phases = training.phases()[1:2]

    def moving(state: object) -> None:
        with torch.no_grad():
            net.state()["block2.0.weight"].add_(1e-3)

    trainer.on_checkpoint = moving
    with pytest.raises(ThawlineError, match="frozen layers changed"):
        trainer.fit(lambda index: training.at_line(net, 1))


@pytest.mark.parametrize("balance", ["none", "class_weights"])
def test_micro_batches_make_the_same_step(balance: str) -> None:
    whole, _ = fit(mix="mixup")
    parts, _ = fit(mix="mixup", micro_batch=16)
    assert digest(whole.state()) == digest(parts.state())  # 16 is the whole batch
    before = training.network()
    losses = []
    for size in (16, 5):
        net = training.network()
        trainer = training.trainer(None, net, micro_batch=size, epochs=1, balance=balance)
        trainer.frozen_norms, trainer.phases = True, training.phases()[2:]
        for module in net.modules:
            for part in module.modules():
                if isinstance(part, torch.nn.Dropout):
                    part.p = 0.0  # drawn for each part
        trainer.fit(lambda index: training.at_line(before, 2))
        losses.append([row["train_loss"] for row in trainer.state.history[1:]])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_a_batch_that_does_not_fit_is_parted_and_the_step_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, trainer = fit(epochs=4)
    tried: list[int] = []
    forward = torch.nn.Sequential.forward

    def limited(module: torch.nn.Sequential, inputs: torch.Tensor) -> torch.Tensor:
        if module.training and torch.is_grad_enabled():
            tried.append(len(inputs))
            if len(inputs) > 6:
                raise torch.OutOfMemoryError("out of memory")
        return forward(module, inputs)

    monkeypatch.setattr(torch.nn.Sequential, "forward", limited)
    net = training.network()
    limited_trainer = training.trainer(None, net, epochs=4)
    limited_trainer.fit(lambda index: training.at_line(net, index))
    assert limited_trainer.state.step == trainer.state.step
    assert {16, 8, 4} <= set(tried)


@pytest.mark.parametrize(("micro_batch", "sizes"), [(15, {8}), (6, {5, 6}), (0, {16})])
def test_a_batch_is_cut_in_parts_of_nearly_one_size(
    monkeypatch: pytest.MonkeyPatch, micro_batch: int, sizes: set[int]
) -> None:
    """A last part of one example would have no statistics."""
    seen: set[int] = set()
    forward = torch.nn.Linear.forward

    def noted(module: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        if module.training and torch.is_grad_enabled():
            seen.add(len(inputs))
        return forward(module, inputs)

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    fit(epochs=4, micro_batch=micro_batch)
    assert seen == sizes


def test_a_norm_that_would_see_one_value_is_refused_in_one_sentence() -> None:
    running = phase_run(micro_batch=1)
    inputs = next(running.data.train.batches([np.arange(2)], 0))
    one = torch.nn.functional.adaptive_avg_pool2d(inputs, 1)  # maps of one pixel
    with pytest.raises(
        ThawlineError, match=r"raise train\.batch_size or train\.micro_batch, or set"
    ):
        running._gradients(one, running.data.train_targets[:2], None)


def test_statistics_of_parts_that_fitted_are_taken_back_where_one_did_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else a batch norm would see those examples twice."""
    recipe = {"epochs": 4, "micro_batch": 4}
    expected, _ = fit(**recipe)
    forward, whole = torch.nn.Linear.forward, []

    def limited(module: torch.nn.Linear, inputs: torch.Tensor) -> torch.Tensor:
        if module.training and torch.is_grad_enabled() and len(inputs) == 8:
            whole.append(inputs)
            if len(whole) % 2 == 0:  # the second part of a phase's first step
                raise torch.OutOfMemoryError("out of memory")
        return forward(module, inputs)

    monkeypatch.setattr(torch.nn.Linear, "forward", limited)
    net, _ = fit(**recipe | {"micro_batch": 8})
    assert len(whole) == 2 * len(training.phases())
    assert all(torch.equal(value, net.state()[key]) for key, value in expected.state().items())


def test_a_training_takes_as_many_epochs_as_it_is_given() -> None:
    for epochs in (4, 7):
        _, trainer = fit(epochs=epochs)
        assert [row["epoch"] for row in trainer.state.history] == list(range(epochs + 1))
    with pytest.raises(ThawlineError, match=r"train\.epochs is 3.*lower freeze\.phase_epochs"):
        fit(epochs=3)  # the first two phases have three


@pytest.mark.parametrize("objective", [{"label_smoothing": 0.3}, {"balance": "focal"},
                                       {"balance": "class_weights"}])  # fmt: skip
def test_validation_is_judged_alike_whatever_is_minimised(objective: dict[str, object]) -> None:
    plain, other = phase_run(label_smoothing=0.0), phase_run(**objective)
    found = other._validate()
    assert found == plain._validate()
    with torch.no_grad():
        (inputs,), wanted = plain.data.validation.views, plain.data.validation_targets  # type: ignore[attr-defined]
        logits = plain.suffix.eval()(inputs)
    assert found[0] == pytest.approx(torch.nn.functional.cross_entropy(logits, wanted).item())


def test_training_learns() -> None:
    _, trainer = fit(epochs=40, learning_rate=0.03)
    history = trainer.state.history
    assert history[-1]["train_loss"] < 0.8 * history[1]["train_loss"]
    assert [row["epoch"] for row in history] == list(range(41))


def test_a_start_that_training_only_spoils_is_kept() -> None:
    fitted, _ = fit(epochs=40, learning_rate=0.03)
    net = training.network()
    net.load(fitted.state())
    trainer = training.trainer(None, net, epochs=2, learning_rate=1.0, ema=0.0, warmup=0.0)
    trainer.phases = training.phases()[2:]
    state = trainer.fit(lambda index: training.at_line(net, 2))
    assert state.best_epoch == 0
    assert state.history[0]["train_loss"] is None
    assert digest(net.state()) == digest(fitted.state())


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, _ = fit()
    second, _ = fit()
    assert digest(first.state()) == digest(second.state())
    net = training.network()
    other = training.trainer(None, net)
    other.seed = 6
    other.fit(lambda index: training.at_line(net, index))
    assert digest(net.state()) != digest(first.state())


@pytest.mark.parametrize("stop", [1, 5, 8, 9, 13, 20, 31])
@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"schedule": "plateau", "mix": "mixup", "balance": "sampling", "micro_batch": 5},
        {"schedule": "one_cycle", "mix": "cutmix", "balance": "focal", "patience": 1},
        {"keep_close_to": "old_predictions", "keep_weight": 5.0, "mix": "mixup", "micro_batch": 5},
    ],
    ids=["plain", "mixed", "cut", "kept close"],
)
def test_a_resume_after_any_step_ends_in_the_same_bits(
    tmp_path: Path, stop: int, recipe: dict[str, object]
) -> None:
    """Steps 8, 9 and 13 lie around changes of phase (4 steps an epoch)."""
    whole, uninterrupted = fit(**recipe)
    stop = min(stop, uninterrupted.state.step - 1)  # patience may end a training early

    class Stopped(Exception):
        pass

    net = training.network()
    first = training.trainer(tmp_path, net, **recipe)

    def interrupt(state: object) -> None:
        if first.state.step >= stop:
            raise Stopped

    first.on_checkpoint = interrupt
    with pytest.raises(Stopped):
        first.fit(lambda index: training.at_line(net, index))
    resumed, second = fit(tmp_path, **recipe)
    assert second.resumed_from_step == stop
    assert digest(resumed.state()) == digest(whole.state())
    assert second.state.history == uninterrupted.state.history
    points = [[(p["key"], p["step"], p["value"]) for p in t.state.points]
              for t in (second, uninterrupted)]  # fmt: skip
    assert points[0] == points[1]


@pytest.mark.parametrize("phase", [1, 2])
def test_a_resume_between_two_phases_ends_in_the_same_bits(tmp_path: Path, phase: int) -> None:
    """From the checkpoint that has no optimizer, since the next phase makes its own."""
    whole, uninterrupted = fit()

    class Stopped(Exception):
        pass

    net = training.network()
    first = training.trainer(tmp_path, net)

    def interrupt(state: State) -> None:
        if state.phase == phase and not state.phase_step:
            raise Stopped

    first.on_checkpoint = interrupt
    with pytest.raises(Stopped):
        first.fit(lambda index: training.at_line(net, index))
    kept = checkpoint.load(tmp_path)
    assert kept is not None and not checkpoint.under(kept.tensors, "opt/")
    resumed, second = fit(tmp_path)
    assert digest(resumed.state()) == digest(whole.state())
    assert second.state.history == uninterrupted.state.history


def test_checkpoints_are_written_also_when_epochs_are_shorter_than_their_interval(
    tmp_path: Path,
) -> None:
    net = training.network()
    trainer = training.trainer(tmp_path, net, epochs=40, checkpoint_seconds=0.05)
    saved: list[int] = []
    trainer.on_checkpoint = lambda state: saved.append(state.step)
    begun = time.monotonic()
    trainer.fit(lambda index: training.at_line(net, index))
    # Two more at the ends of the phases; a save itself takes time on a busy disk.
    assert len(saved) > min(6, (time.monotonic() - begun) / 0.05 / 4)


def run_program(
    folder: Path, epochs: int, checkpoint_seconds: float = 0
) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    options = [str(folder), str(epochs), str(checkpoint_seconds)]
    return subprocess.Popen(
        [sys.executable, "-m", "tests.tasks.engine.training", *options],
        start_new_session=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@dataclass(frozen=True)
class Kill:
    """Where a SIGKILL hit, and the training went on."""

    step: int
    phase: int
    saving: bool  # in the middle of a save


def kill_and_resume(
    folder: Path, epochs: int, chance: random.Random, step: int = 1, within: float = 0.5
) -> Kill:
    """SIGKILL a training at a random moment within some seconds of a step's checkpoint, go on."""
    program = run_program(folder, epochs)
    saved = folder / "checkpoints"

    def newest() -> int:
        marks = [mark.stem.removeprefix("step-") for mark in saved.glob("step-*.json")]
        return max(map(int, marks), default=0)

    while newest() < step and program.poll() is None:
        time.sleep(0.002)
    time.sleep(chance.random() * within)
    os.killpg(program.pid, signal.SIGKILL)
    assert program.wait() == -signal.SIGKILL  # it had not ended by itself
    saving = bool(list(saved.glob(".*")))
    assert run_program(folder, epochs).wait() == 0
    end = files.read_json(folder / "end.json")
    assert 0 < end["resumed_from_step"] < end["steps"]
    return Kill(end["resumed_from_step"], end["resumed_in_phase"], saving)


def test_sigkill_at_a_random_moment_changes_nothing(tmp_path: Path) -> None:
    epochs = 60
    assert run_program(tmp_path / "whole", epochs).wait() == 0
    kill_and_resume(tmp_path / "killed", epochs, random.Random())
    assert same_end(tmp_path / "whole", tmp_path / "killed")


def same_end(whole: Path, other: Path) -> bool:
    one, two = (files.read_json(f / "end.json") for f in (whole, other))
    assert one["history"] == two["history"]
    assert one["points"] == two["points"]
    weights = [files.sha256_file(f / "weights.safetensors") for f in (whole, other)]
    return weights[0] == weights[1]


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_fifty_sigkills_change_nothing(tmp_path: Path) -> None:
    epochs = 60
    assert run_program(tmp_path / "whole", epochs).wait() == 0
    chance = random.Random(2)
    kills = []
    for attempt in range(50):
        folder = tmp_path / f"killed{attempt}"
        # Every third around a change of phase, after steps 8 and 12.
        aimed = {"step": chance.choice([7, 8, 11, 12]), "within": 0.02} if attempt % 3 == 0 else {}
        kills.append(kill_and_resume(folder, epochs, chance, **aimed))
        assert same_end(tmp_path / "whole", folder)
    assert len({kill.step for kill in kills}) > 10
    assert sum(7 <= kill.step <= 13 for kill in kills) > 5
    assert len({kill.phase for kill in kills}) == 3
    assert sum(kill.saving for kill in kills) > 2
    print(Counter((kill.phase, kill.saving) for kill in kills))


@pytest.mark.parametrize(("asked", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_request_to_end_writes_a_checkpoint(tmp_path: Path, asked: int, code: int) -> None:
    program = run_program(tmp_path, 4000, checkpoint_seconds=1e9)  # none is due by itself …
    while not list((tmp_path / "checkpoints").glob("step-*.json")):
        time.sleep(0.01)
    before = checkpoint.load(tmp_path / "checkpoints")
    time.sleep(0.5)
    program.send_signal(asked)
    assert program.wait() == code
    after = checkpoint.load(tmp_path / "checkpoints")
    assert before is not None and after is not None and after.step > before.step
    assert State.of(after.values["state"]).phase_step  # … and this is none of a phase's end


def test_a_loss_that_is_not_finite_stops_before_the_step(tmp_path: Path) -> None:
    net = training.network()
    trainer = training.trainer(tmp_path, net)

    def poisoned(index: int) -> training.PhaseData:
        data = training.at_line(net, index)
        for view in data.train.views:  # type: ignore[attr-defined]
            view[7] = float("nan")
        return data

    with pytest.raises(
        Diverged, match=r"loss became nan at step \d+; lower train.learning"
    ) as told:
        trainer.fit(poisoned)
    assert all(torch.isfinite(v).all() for v in net.state().values() if v.is_floating_point())
    kept = checkpoint.load(tmp_path)
    assert kept is not None and f"the state after step {kept.step} is kept" in str(told.value)
    assert all(torch.isfinite(v).all() for v in kept.tensors.values() if v.is_floating_point())


@pytest.fixture
def too_high(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let scalers of float16 begin with a factor beyond what gradients have room for."""

    def begin(factor: float) -> None:
        scaler = partial(torch.amp.GradScaler, init_scale=factor)
        monkeypatch.setattr(torch.amp, "GradScaler", scaler)

    return begin


def in_float16(folder: Path | None = None) -> training.Trainer:
    """As on a GPU without bfloat16."""
    trainer = training.trainer(folder, training.network(), epochs=10)
    trainer.phases = training.phases()[2:]
    trainer.compute = Compute(torch.device("cpu"), torch.float16)
    return trainer


def test_a_resume_takes_up_the_scaler_of_float16(
    tmp_path: Path, too_high: Callable[[float], None]
) -> None:
    class Stopped(Exception):
        pass

    def interrupt(state: object) -> None:
        if first.state.step >= 5:
            raise Stopped

    too_high(2.0**24)
    whole, first, second = in_float16(), in_float16(tmp_path), in_float16(tmp_path)
    whole.fit(lambda index: training.at_line(whole.network, 2))
    first.on_checkpoint = interrupt
    with pytest.raises(Stopped):
        first.fit(lambda index: training.at_line(first.network, 2))
    assert second.restore() and second.restored is not None
    assert 1 < second.restored.values["scaler"]["scale"] < 2**24  # it has skipped steps
    second.fit(lambda index: training.at_line(second.network, 2))
    assert second.resumed_from_step == 5
    assert digest(second.network.state()) == digest(whole.network.state())


def test_gradients_that_never_fit_into_float16_end_the_training(
    too_high: Callable[[float], None],
) -> None:
    too_high(2.0**120)
    trainer = in_float16()
    with pytest.raises(Diverged, match=f"gradient became .* at step {SKIPPED + 1}; lower train"):
        trainer.fit(lambda index: training.at_line(trainer.network, 2))


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [
        ([0.5, 0.8, 0.7, 0.8], 3),  # the last of equals
        ([0.5, 0.8, 0.79, 0.78], 3),  # within a standard error of the highest (0.03 or more)
        ([0.5, 0.9, 0.88, 0.6], 2),  # the last is worse beyond that
        ([0.5, 0.6, 0.9, 0.89], 3),
        ([0.8, 0.79, 0.78, 0.79], 0),  # the start is replaced by what is as often right alone
        ([0.8, 0.81, 0.79, 0.6], 1),
    ],
)
def test_the_last_epoch_that_is_as_good_as_the_best_is_kept(
    monkeypatch: pytest.MonkeyPatch, accuracies: list[float], kept: int
) -> None:
    said = [(1.0 + number, accuracy) for number, accuracy in enumerate(accuracies)]
    waiting = iter(said)  # losses that only rise: they do not decide
    monkeypatch.setattr(PhaseRun, "_validate", lambda self: next(waiting))
    net = training.network()
    trainer = training.trainer(None, net, epochs=3)
    trainer.phases = training.phases()[2:]
    states: list[str] = []
    judge = PhaseRun._judge

    def noting(self: PhaseRun, *given: float | None) -> None:
        judge(self, *given)  # type: ignore[arg-type]
        states.append(digest(self._judged().state()))

    monkeypatch.setattr(PhaseRun, "_judge", noting)
    state = trainer.fit(lambda index: training.at_line(net, 2))
    assert state.best_epoch == kept
    assert digest(net.state()) == states[kept]


def test_early_stopping_ends_a_phase_and_keeps_the_lowest_loss(tmp_path: Path) -> None:
    _, trainer = fit(epochs=60, patience=2, learning_rate=0.3, ema=0.0)
    losses = [row["validation_loss"] for row in trainer.state.history]
    assert trainer.state.stopped_early
    assert len(losses) < 60
    assert trainer.state.best_epoch == losses.index(min(losses))


class TestCheckpoint:
    def make(self, step: int) -> checkpoint.Checkpoint:
        return checkpoint.Checkpoint(step, {"a": torch.full((3,), float(step))}, {"step": step})

    def test_the_newest_whole_one_is_loaded(self, tmp_path: Path) -> None:
        for step in (1, 2, 3):
            checkpoint.save(tmp_path, self.make(step))
        (tmp_path / ".step-000000002.safetensors.x").write_text("left by a kill")
        (tmp_path / "step-000000002.json").unlink()  # its mark was never written
        checkpoint.save(tmp_path, self.make(4))
        assert not list(tmp_path.glob(".*"))
        found = checkpoint.load(tmp_path)
        assert found is not None and found.step == 4 and found.values == {"step": 4}
        assert len(list(tmp_path.glob("*.safetensors"))) == checkpoint.KEEP

    @pytest.mark.parametrize("damage", ["flip", "truncate", "no_mark", "half_mark", "gone"])
    def test_a_damaged_one_falls_back_to_the_one_before(self, tmp_path: Path, damage: str) -> None:
        for step in (1, 2):
            checkpoint.save(tmp_path, self.make(step))
        data = tmp_path / "step-000000002.safetensors"
        mark = data.with_suffix(".json")
        match damage:
            case "flip":
                content = bytearray(data.read_bytes())
                content[-1] ^= 1
                data.write_bytes(content)
            case "truncate":
                data.write_bytes(data.read_bytes()[:-4])
            case "no_mark":
                mark.unlink()
            case "half_mark":
                mark.write_text('{"sha')
            case "gone":
                data.unlink()
        found = checkpoint.load(tmp_path)
        assert found is not None and found.step == 1
        checkpoint.save(tmp_path, self.make(2))  # from there on, with one before to fall back to
        (tmp_path / "step-000000002.json").unlink()
        again = checkpoint.load(tmp_path)
        assert again is not None and again.step == 1

    def test_what_is_damaged_takes_no_place_of_those_that_are_kept(self, tmp_path: Path) -> None:
        for step in (1, 9):
            checkpoint.save(tmp_path, self.make(step))
        (tmp_path / "step-000000009.safetensors").write_bytes(b"damaged")
        assert checkpoint.load(tmp_path) is not None
        for step in (2, 3):
            checkpoint.save(tmp_path, self.make(step))
        (tmp_path / "step-000000003.safetensors").write_bytes(b"damaged")
        found = checkpoint.load(tmp_path)
        assert found is not None and found.step == 2

    def test_there_may_be_none(self, tmp_path: Path) -> None:
        assert checkpoint.load(tmp_path) is None
