"""Which convolutions train faster in bfloat16 on this CPU, and what that makes of a network.

    .venv/bin/python -m benchmarks.depthwise        # a minute

CPU milliseconds of forward and backward passes on one thread, medians, both precisions in turns:
single convolutions, and the training step of MobileNetV2 above the default thaw line in float32, in
bfloat16, and in bfloat16 but for the depthwise convolutions that tasks/engine/depthwise.py picks.
Writes benchmarks/results/depthwise.json and depthwise.md.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.results_file import Results
from tasks.engine import depthwise
from tasks.engine.device import Compute

TURNS = 15
BATCH = 32
LINE = 12  # features.12: the default project's thaw line
COMPUTES = {
    name: Compute(torch.device("cpu"), dtype)
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16))
}


def convolution(inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(
        inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False
    )


CONVOLUTIONS: dict[str, tuple[nn.Conv2d, int]] = {
    "depthwise 3 × 3": (convolution(144, 144, 3, 1, 144), 24),
    "depthwise 3 × 3, stride 2": (convolution(144, 144, 3, 2, 144), 24),
    "depthwise 5 × 5": (convolution(240, 240, 5, 1, 240), 12),
    "depthwise 5 × 5, stride 2": (convolution(144, 144, 5, 2, 144), 24),
    "depthwise 7 × 7": (convolution(96, 96, 7, 1, 96), 24),
    "grouped by 8, stride 2": (convolution(64, 64, 3, 2, 8), 24),
    "3 × 3": (convolution(64, 64, 3, 1), 24),
    "3 × 3, stride 2": (convolution(64, 128, 3, 2), 24),
    "1 × 1": (convolution(96, 576, 1, 1), 6),
}


def step(module: nn.Module, inputs: Tensor, compute: Compute) -> Callable[[], None]:
    """A forward and a backward pass; inputs in the precision that the layer below would give."""
    given = inputs.to(compute.dtype, memory_format=torch.channels_last).requires_grad_()
    with compute.autocast():
        gradient = torch.ones_like(module(given))

    def run() -> None:
        with compute.autocast():
            outputs = module(given)
        outputs.backward(gradient)

    return run


def in_turns(steps: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median CPU milliseconds of each."""
    spent: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(TURNS + 2):  # the first two warm up
        for name, run in steps.items():
            begun = time.process_time()
            run()
            if turn > 1:
                spent[name].append(1000 * (time.process_time() - begun))
    return {name: statistics.median(values) for name, values in spent.items()}


def main() -> None:
    results = Results("depthwise", "Training convolutions in bfloat16 on a CPU")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for name, (conv, side) in CONVOLUTIONS.items():
        module = conv.to(memory_format=torch.channels_last)
        inputs = torch.randn(BATCH, conv.in_channels, side, side)
        found = in_turns({p: step(module, inputs, c) for p, c in COMPUTES.items()})
        rows.append({"layer": name, **found, "kept in float32": depthwise.slow(conv)})
        print(rows[-1], flush=True)
    network = _network()
    print(network, flush=True)
    lines = [
        f"CPU milliseconds of forward and backward, batches of {BATCH}, one thread.",
        "",
        "| layer | float32 | bfloat16 | trained by Thawline in |",
        "|---|---|---|---|",
        *(
            f"| {row['layer']} | {row['float32']:.1f} | {row['bfloat16']:.1f} | "
            f"{'float32' if row['kept in float32'] else 'bfloat16'} |"
            for row in rows
        ),
        "",
        "| MobileNetV2 above features.12, 96 pixels | CPU ms a step |",
        "|---|---|",
        *(f"| {name} | {value:.1f} |" for name, value in network.items()),
    ]
    results.write({"convolutions": rows, "network": network}, lines)


def _network() -> dict[str, float]:
    model = torchvision.models.mobilenet_v2()
    top = nn.Sequential(
        model.features[LINE:], nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1280, 10)
    ).to(memory_format=torch.channels_last)
    with torch.no_grad():
        inputs = model.features[:LINE](torch.randn(BATCH, 3, 96, 96))
    mended = copy.deepcopy(top)
    depthwise.quicken(mended, COMPUTES["bfloat16"])
    return in_turns(
        {
            "float32": step(top, inputs, COMPUTES["float32"]),
            "bfloat16": step(top, inputs, COMPUTES["bfloat16"]),
            "bfloat16, depthwise as above": step(mended, inputs, COMPUTES["bfloat16"]),
        }
    )


if __name__ == "__main__":
    main()
