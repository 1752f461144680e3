"""Several processes: they train what one does, go on after a kill, and end together.

As a program of its own, DIR DEVICES EPOCHS PAUSE: the small training, shared by gloo processes,
with seconds to wait after each checkpoint.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tasks import files
from tasks.engine import parallel
from tasks.engine.phase import parts_of
from tasks.errors import ThawlineError
from tests.tasks.engine import training

CPU = torch.device("cpu")
EPOCHS = 16


def network() -> training.Network:
    """Without what is drawn for each slice."""
    net = training.network()
    for module in net.modules:
        for part in module.modules():
            if isinstance(part, nn.Dropout):
                part.p = 0.0
    return net


def main() -> None:
    torch.set_num_threads(1)
    folder, devices, epochs = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    ranks = parallel.start(devices, CPU)
    net = network()
    recipe = {"epochs": epochs, "mix": "none"}  # each process draws what it mixes
    trainer = training.trainer(
        folder / "checkpoints", net, frozen_norms=True, ranks=ranks, **recipe
    )
    trainer.on_checkpoint = lambda state: time.sleep(float(sys.argv[4]))
    trainer.restore()
    state = trainer.fit(lambda index: training.at_line(net, index))
    weights = {k: v.contiguous() for k, v in net.state().items()}
    save_file(weights, folder / f"weights-{ranks.rank}.safetensors")
    files.write_json(
        folder / f"end-{ranks.rank}.json",
        {
            "history": state.history,
            "resumed_from_step": trainer.resumed_from_step,
            "frozen": [state.frozen_before, state.frozen_after],
            "fabric": "lightning_fabric" in sys.modules,
        },
    )


def start(
    folder: Path, devices: int, epochs: int = EPOCHS, pause: float = 0
) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", __name__, str(folder), str(devices), str(epochs), str(pause)],
        start_new_session=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def end(folder: Path, rank: int = 0) -> dict[str, object]:
    return files.read_json(folder / f"end-{rank}.json")


def further(folder: Path, program: subprocess.Popen[bytes], step: int = -1) -> int:
    """Wait for a checkpoint beyond some step; its own."""
    while True:
        marks = (folder / "checkpoints").glob("step-*.json")
        found = max((int(mark.stem.removeprefix("step-")) for mark in marks), default=-1)
        if found > step:
            return found
        assert program.poll() is None
        time.sleep(0.005)


def nothing_left(program: subprocess.Popen[bytes]) -> bool:
    """Whether all processes of the program's group end soon."""
    limit = time.monotonic() + 20
    while time.monotonic() < limit:
        try:
            os.killpg(program.pid, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    assert start(folder, 2).wait(120) == 0
    return folder


def test_two_processes_train_what_one_does(two: Path, tmp_path: Path) -> None:
    assert start(tmp_path, 1).wait(120) == 0
    one, shared = end(tmp_path), end(two)
    assert not one["fabric"] and shared["fabric"]
    assert len(one["history"]) == len(shared["history"]) == EPOCHS + 1
    for alone, together in zip(one["history"], shared["history"], strict=True):
        for key in ("phase", *(key for key, value in alone.items() if value is None)):
            assert alone.pop(key) == together.pop(key)
        assert together == pytest.approx(alone, rel=1e-5)
    weights = load_file(tmp_path / "weights-0.safetensors")
    for key, value in load_file(two / "weights-0.safetensors").items():
        torch.testing.assert_close(value, weights[key], rtol=1e-4, atol=1e-6)


def test_all_processes_end_with_the_same_bits_and_the_same_proof(two: Path) -> None:
    weights = [files.sha256_file(two / f"weights-{rank}.safetensors") for rank in (0, 1)]
    assert weights[0] == weights[1]
    assert end(two, 0)["frozen"] == end(two, 1)["frozen"]
    before, after = end(two)["frozen"]
    assert before == after and len(before) == 3
    assert end(two, 0)["history"] == end(two, 1)["history"]


def test_a_resume_after_kills_ends_in_the_same_bits(two: Path, tmp_path: Path) -> None:
    reached = -1
    for asked in (signal.SIGTERM, signal.SIGKILL):
        program = start(tmp_path, 2, pause=0.05)  # time enough to be killed in
        reached = further(tmp_path, program, reached)
        if asked == signal.SIGTERM:  # to the first process alone, which tells the others
            program.send_signal(asked)
            assert program.wait(60) == 128 + asked
        else:
            os.killpg(program.pid, asked)
            program.wait(60)
        assert nothing_left(program)
        assert not (tmp_path / "end-0.json").exists()
    assert start(tmp_path, 2).wait(120) == 0
    assert end(tmp_path)["resumed_from_step"] >= reached > 0
    assert end(tmp_path)["history"] == end(two)["history"]
    digests = [files.sha256_file(f / "weights-0.safetensors") for f in (two, tmp_path)]
    assert digests[0] == digests[1]


def test_a_process_that_is_lost_ends_the_others(tmp_path: Path) -> None:
    program = start(tmp_path, 2, 4000)
    further(tmp_path, program)
    [other] = psutil.Process(program.pid).children()
    other.kill()
    assert program.wait(60) != 0
    assert nothing_left(program)


def test_norms_that_learn_are_refused_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = several(monkeypatch)
    net = training.network()
    with pytest.raises(ThawlineError, match=r"set freeze\.batch_norm to frozen"):
        training.trainer(None, net, ranks=ranks)
    assert training.trainer(None, net, ranks=ranks, frozen_norms=True).ranks is ranks


def test_a_batch_smaller_than_the_devices_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = several(monkeypatch)
    batches = torch.arange(6).reshape(2, 3).numpy()
    assert ranks.columns(batches).tolist() == [[1], [4]]
    with pytest.raises(ThawlineError, match="batch of 1 examples cannot be shared by 2 devices"):
        ranks.columns(batches[:, :1])


def several(monkeypatch: pytest.MonkeyPatch) -> parallel.Several:
    """The second of two processes, without the first."""

    class Fabric:
        global_rank, device = 1, CPU

        def launch(self) -> None:
            pass

    monkeypatch.setattr(parallel, "_fabric", lambda size, device: Fabric())
    return parallel.Several(2, CPU)


@pytest.mark.parametrize(
    ("devices", "device", "found", "size"),
    [
        ("auto", "cuda", 4, 4),
        ("auto", "cuda:1", 4, 1),
        ("auto", "cpu", 0, 1),
        (1, "mps", 0, 1),
        (2, "cuda", 4, 2),
        (3, "cpu", 0, 3),
    ],
)
def test_how_many_processes(
    monkeypatch: pytest.MonkeyPatch, devices: int, device: str, found: int, size: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: found)
    assert parallel._size(devices, torch.device(device)) == size


@pytest.mark.parametrize(
    ("devices", "device", "sentence"),
    [
        (3, "cuda", "train.devices is 3, but 2 CUDA devices are found"),
        (2, "cuda:1", "device cuda:1 is a single one"),
        (2, "mps", "device mps is a single one"),
    ],
)
def test_devices_that_are_not_there(
    monkeypatch: pytest.MonkeyPatch, devices: int, device: str, sentence: str
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ThawlineError, match=sentence):
        parallel.start(devices, torch.device(device))


def test_without_fabric_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightning_fabric", None)
    with pytest.raises(ThawlineError, match=r"pip install 'thawline\[distributed\]'"):
        parallel.start(2, CPU)
    assert parallel.start(1, CPU).size == 1


@pytest.mark.parametrize(
    ("batch", "ranks", "micro_batch"), [(32, 3, 10), (17, 2, 8), (17, 2, 1), (32, 1, 32), (7, 3, 2)]
)
def test_every_rank_computes_its_slice_in_as_many_parts(
    batch: int, ranks: int, micro_batch: int
) -> None:
    """Batch norms that learn wait for each other in each part."""
    slices = [torch.arange(batch)[rank::ranks] for rank in range(ranks)]
    count = parts_of(batch, ranks, micro_batch)
    sizes = [len(part) for mine in slices for part in torch.tensor_split(mine, count)]
    assert len(sizes) == ranks * count and min(sizes) > 0
    assert max(sizes) <= max(micro_batch, 2)  # of uneven slices one has two where others have one


def test_synchronised_norms_keep_tensors_and_activations() -> None:
    from timm.layers import BatchNormAct2d

    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), BatchNormAct2d(4))
    before = dict(module.named_parameters()) | dict(module.named_buffers())
    after = parallel.synchronised(module)
    now = dict(after.named_parameters()) | dict(after.named_buffers())
    assert all(now[key] is value for key, value in before.items())
    assert all(isinstance(norm, nn.SyncBatchNorm) for norm in list(after)[1:])
    after.eval()
    assert (after(torch.randn(2, 3, 5, 5)) >= 0).all()  # timm's norm ends in a ReLU


if __name__ == "__main__":
    main()
