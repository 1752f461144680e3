"""A small real training as a program of its own, so that it can be killed: DIR [EPOCHS]."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from tasks import files
from tasks.engine.device import resolve
from tasks.engine.feeds import Kept
from tasks.engine.loop import Trainer
from tasks.engine.network import Network
from tasks.engine.parallel import Ranks
from tasks.engine.state import OldPredictions, PhaseData
from tasks.params import TrainParams
from tasks.records import Phase

EXAMPLES, CLASSES = 96, 3
CHANNELS_LAST: Any = torch.channels_last


class Block(nn.Sequential):
    def __init__(self, width: int) -> None:
        super().__init__(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())


def network() -> Network:
    """Four layers with batch norms and dropout: whatever a resume could get wrong."""
    torch.manual_seed(7)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.3), nn.Linear(4, 3))
    layers = [("block0", Block(4)), ("block1", Block(4)), ("block2", Block(4)), ("head", head)]
    return Network(
        [name for name, _ in layers],
        # Named as in a whole model, so that states of all layers can be merged.
        # Laid out as in a real training, which optimizers and checkpoints must heed.
        [_named(name, module.to(memory_format=CHANNELS_LAST)) for name, module in layers],
    )


def _named(name: str, module: nn.Module) -> nn.Module:
    wrapper = nn.Sequential()
    wrapper.add_module(name, module)
    return wrapper


def data(net: Network) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    targets = torch.randint(CLASSES, (EXAMPLES,), generator=generator)
    inputs = torch.randn(EXAMPLES, 4, 6, 6, generator=generator) + targets.view(-1, 1, 1, 1) * 0.5
    return {"inputs": inputs, "targets": targets}


def phases() -> list[Phase]:
    return [
        Phase("head", 2, {"head": 1.0}),
        Phase("norms", 1, {"block2": 0.5, "head": 1.0}, "norms"),
        Phase("all above", None, {"block1": 0.1, "block2": 0.3, "head": 1.0}),
    ]


def trainer(
    folder: Path | None,
    net: Network,
    *,
    frozen_norms: bool = False,
    ranks: Ranks | None = None,
    **changes: object,
) -> Trainer:
    settings = {"epochs": 8, "batch_size": 16, "learning_rate": 0.01, "ema": 0.9, **changes}
    settings.setdefault("checkpoint_seconds", 0)
    return Trainer(
        net,
        phases(),
        TrainParams(**settings),
        seed=5,
        compute=resolve("cpu", "float32"),
        frozen_norms=frozen_norms,
        folder=folder,
        ranks=ranks,
    )


def feeds(net: Network) -> PhaseData:
    compute = resolve("cpu", "float32")
    values = data(net)
    inputs, targets = values["inputs"], values["targets"]
    views = [inputs[:64], inputs[:64].flip(-1)]
    return PhaseData(Kept(views, compute), targets[:64], Kept([inputs[64:]], compute), targets[64:])


def at_line(net: Network, index: int) -> PhaseData:
    """Feeds at the lowest layer that learns in a phase, through what is frozen below it."""
    start = min(net.index(name) for name in phases()[index].learning_rates)
    prefix = net.run(0, start).eval()
    whole = feeds(net)
    compute = resolve("cpu", "float32")
    with torch.no_grad():
        train = [prefix(view) for view in whole.train.views]  # type: ignore[attr-defined]
        validation = [prefix(view) for view in whole.validation.views]  # type: ignore[attr-defined]
    return PhaseData(
        Kept(train, compute),
        whole.train_targets,
        Kept(validation, compute),
        whole.validation_targets,
        old_predictions(whole),
    )


def old_predictions(whole: PhaseData) -> OldPredictions:
    """Of an untrained network of the same layers, as if it had been pretrained."""
    old = network()
    with torch.no_grad():
        views = [old.run(0).eval()(view) for view in whole.train.views]  # type: ignore[attr-defined]
    return OldPredictions(Kept(views, resolve("cpu", "float32")), old.modules[-1])


def main() -> None:
    torch.set_num_threads(1)
    folder, epochs, pause = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    net = network()
    training = trainer(folder / "checkpoints", net, epochs=epochs, checkpoint_seconds=pause)
    training.restore()
    resumed_in_phase = training.state.phase
    state = training.fit(lambda index: at_line(net, index))
    save_file({k: v.contiguous() for k, v in net.state().items()}, folder / "weights.safetensors")
    files.write_json(
        folder / "end.json",
        {
            "history": state.history,
            "steps": state.step,
            "resumed_from_step": training.resumed_from_step,
            "resumed_in_phase": resumed_in_phase,
            "points": [{**p, "timestamp_ms": 0} for p in state.points],
        },
    )


if __name__ == "__main__":
    main()
