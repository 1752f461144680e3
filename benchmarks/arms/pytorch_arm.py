"""Fine-tuning in plain PyTorch: everything, above a thaw line without a cache, or a head alone.

A process of its own: python -m benchmarks.arms.pytorch_arm PIXELS OUT SEED SETTINGS
Settings (JSON): part (all | line | head), line (the first thawed module, for `line`), epochs,
learning_rate, precision, weights (a file), threads.

What a careful user would write: AdamW with a one-cycle schedule, flips and crops afresh at every
epoch, channels_last and autocast; the head alone: SGD with momentum on features computed once.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from benchmarks.arms.measured import Clock, Measured, judged

SPLITS = ("train", "validation", "test")
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 32
EMBED_BATCH = 64
WEIGHT_DECAY = 0.05
WARM_UP = 0.3  # share of the steps, the default of OneCycleLR

Tensors = dict[str, Tensor]


class Run:
    """Data in memory, the pretrained network with a new head, and how to compute."""

    def __init__(self, folder: Path, seed: int, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        torch.manual_seed(seed)
        self.settings = settings
        self.mixed = settings["precision"] == "bfloat16"
        self.pixels: Tensors = {
            split: torch.from_numpy(np.load(folder / f"{split}.npy")).permute(0, 3, 1, 2)
            for split in SPLITS
        }
        self.targets: Tensors = {
            split: torch.from_numpy(np.load(folder / f"{split}_targets.npy")) for split in SPLITS
        }
        side = self.pixels["train"].shape[-1]
        self.augment = v2.Compose(
            [
                v2.RandomResizedCrop(side, scale=(0.64, 1.0), ratio=(0.9, 1.1), antialias=True),
                v2.RandomHorizontalFlip(),
            ]
        )
        model = torchvision.models.mobilenet_v2()
        model.load_state_dict(torch.load(settings["weights"], weights_only=True))
        classes = int(self.targets["train"].max()) + 1
        model.classifier[1] = nn.Linear(model.last_channel, classes)
        self.model = model.to(memory_format=torch.channels_last)

    def forward(self, module: nn.Module, inputs: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.mixed):
            outputs: Tensor = module(inputs)
        return outputs

    def batches(self, epochs: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Shuffled, augmented training batches; the last, smaller one of an epoch is left out."""
        targets = self.targets["train"]
        for _ in range(epochs):
            order = torch.randperm(len(targets))
            for chosen in torch.split(order[: len(order) // BATCH * BATCH], BATCH):
                views = torch.stack([self.augment(self.pixels["train"][i]) for i in chosen])
                yield normalised(views), targets[chosen]

    def fit(self, frozen: nn.Module, thawed: nn.Module) -> None:
        """Train what is thawed, behind what is frozen, at every epoch anew."""
        epochs, rate = self.settings["epochs"], self.settings["learning_rate"]
        frozen.eval().requires_grad_(False)
        thawed.train()
        groups: list[dict[str, Any]] = [
            {
                "params": [p for p in thawed.parameters() if p.ndim > 1],
                "weight_decay": WEIGHT_DECAY,
            },
            {"params": [p for p in thawed.parameters() if p.ndim <= 1]},
        ]
        optimizer = torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, fused=True)
        steps = epochs * (len(self.targets["train"]) // BATCH)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=WARM_UP)
        for inputs, targets in self.batches(epochs):
            with torch.no_grad():
                inputs = self.forward(frozen, inputs)
            loss = functional.cross_entropy(self.forward(thawed, inputs).float(), targets)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()

    def fit_head(self) -> None:
        """SGD on the features of the plain images, computed once."""
        body = nn.Sequential(self.model.features, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        with torch.inference_mode():
            found = [
                self.forward(body, normalised(batch)).float()
                for batch in torch.split(self.pixels["train"], EMBED_BATCH)
            ]
        features, targets = torch.cat(found).clone(), self.targets["train"]
        head: nn.Module = self.model.classifier[1]
        rate, epochs = self.settings["learning_rate"], self.settings["epochs"]
        optimizer = torch.optim.SGD(head.parameters(), rate, momentum=0.9, weight_decay=1e-4)
        steps = epochs * -(-len(targets) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for chosen in torch.split(torch.randperm(len(targets)), BATCH):
                loss = functional.cross_entropy(head(features[chosen]), targets[chosen])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()

    def train(self) -> None:
        part, features = self.settings["part"], self.model.features
        if part == "head":
            return self.fit_head()
        # `line` is the name of the first thawed block, such as features.11
        cut = int(self.settings["line"].partition(".")[2]) if part == "line" else 0
        top = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), self.model.classifier]
        return self.fit(features[:cut], nn.Sequential(features[cut:], *top))

    def logits(self, split: str) -> np.ndarray[Any, Any]:
        """In float32, as a trained model is judged."""
        self.model.eval()
        with torch.inference_mode():
            found = [
                self.model(normalised(x)) for x in torch.split(self.pixels[split], EMBED_BATCH)
            ]
        return torch.cat(found).numpy()


def normalised(pixels: Tensor) -> Tensor:
    """uint8 [n, 3, h, w] → float32 in channels_last layout."""
    values = pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (MEAN, STD))
    return values.sub_(mean).div_(std)


def main() -> None:
    folder, out, seed, settings = sys.argv[1:]
    run = Run(Path(folder), int(seed), json.loads(settings))
    clock = Clock()
    run.train()
    seconds, cpu_seconds = clock.read()
    judging = ("validation", "test")
    logits = {split: run.logits(split) for split in judging}
    found, right = judged(logits, {split: run.targets[split].numpy() for split in judging})
    notes = {"torch": torch.__version__, "torchvision": torchvision.__version__}
    Measured(seconds=seconds, cpu_seconds=cpu_seconds, notes=notes, **found).write(Path(out), right)


if __name__ == "__main__":
    main()
