"""Networks of two sizes, "pretrained" by a seed that follows from their names."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from tasks.problems.signal_classification import starts
from torch import Tensor, nn

from tasks import files
from tasks.engine.heads import layers
from tasks.engine.network import digest
from tasks.errors import UnknownName
from tasks.params import EmbedParams, HeadParams
from tasks.problems import Backbone

WIDTHS = {"mlp_small": 32, "mlp_large": 64}
HEAD = "head"
LENGTH, BLOCKS, OLD_CLASSES = 8, 3, 5


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(width), nn.Linear(width, width)

    def forward(self, values: Tensor) -> Tensor:
        return values + self.linear(self.norm(values)).relu()


class Mlp(nn.Module):
    """[n, 8] → [n, classes]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem = nn.Linear(LENGTH, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(BLOCKS)))
        self.head: nn.Module = nn.Linear(width, OLD_CLASSES)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.blocks(self.stem(inputs)))


def model(name: str) -> Mlp:
    if name not in WIDTHS:
        raise UnknownName("backbone", name, WIDTHS)
    with torch.random.fork_rng():
        torch.manual_seed(files.number(name))
        return Mlp(WIDTHS[name])


def backbone(name: str, embed: EmbedParams, root: Path) -> Backbone:
    made, classes, source = model(name), (), "its name"
    if name in embed.weights:
        path = root / embed.weights[name].file
        start = starts.read(path)
        made.head = nn.Linear(WIDTHS[name], len(start.classes))
        state = load_file(path)
        own = {"head.1.weight": "head.weight", "head.1.bias": "head.bias"}
        made.load_state_dict({own.get(key, key): value for key, value in state.items()})
        classes, source = tuple(start.classes), start.origin
    return Backbone(
        name=name,
        model=made.eval(),
        head=HEAD,
        mean=(),
        std=(),
        weights_sha256=digest(made.state_dict()),
        weights_source=source,
        licence="CC0",
        pretraining="none",
        classes=classes,
    )


def build(name: str, classes: int, head: HeadParams) -> nn.Module:
    made = model(name)
    made.head = nn.Sequential(*layers(WIDTHS[name], classes, head))
    return made
