"""fastai's `fine_tune`, in an environment of its own (see fastai-requirements.txt).

A process of its own: FASTAI_PYTHON -m benchmarks.arms.fastai_arm PIXELS OUT SEED SETTINGS
Settings (JSON): epochs, base_lr, precision, channels_last, weights (a file), threads.

Everything is fastai's default (one frozen epoch, one-cycle, discriminative rates, its head with
concatenated pooling, its batch augmentation, batches of 64) but for what settings name. Two things
are done for it that its users on a CPU do not get: its `to_bf16` asks for CUDA's autocast, so a
callback does the same for the CPU; and the images lie decoded in memory, served in the process.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fastai
import numpy as np
import torch
import torchvision
from fastai.callback import schedule  # noqa: F401  (adds fine_tune to Learner)
from fastai.callback.channelslast import ChannelsLast
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter, Normalize
from fastai.learner import Callback, Learner
from fastai.torch_core import L, set_seed, to_float
from fastai.vision.augment import aug_transforms
from fastai.vision.core import imagenet_stats
from fastai.vision.data import ImageBlock
from fastai.vision.learner import model_meta, params, vision_learner

from benchmarks.arms.measured import Clock, Measured, judged

SPLITS = ("train", "validation", "test")
BATCH = 64
MIDDLE = 7  # blocks of MobileNetV2 at the resolutions that ResNet's first group has


class CPUAutocast(Callback):  # type: ignore[misc]
    """fastai's `MixedPrecision` in bfloat16, which needs no scaler, for the CPU."""

    order = 10

    def before_batch(self) -> None:
        self.autocast = torch.autocast("cpu", dtype=torch.bfloat16)
        self.autocast.__enter__()  # type: ignore[no-untyped-call]

    def after_pred(self) -> None:
        self.learn.pred = to_float(self.pred)

    def after_loss(self) -> None:
        self.autocast.__exit__(None, None, None)


class Run:
    """Data in memory and a learner."""

    def __init__(self, folder: Path, seed: int, settings: dict[str, Any]) -> None:
        torch.set_num_threads(settings["threads"])
        set_seed(seed)
        self.settings = settings
        self.pixels = {split: np.load(folder / f"{split}.npy") for split in SPLITS}
        self.targets = {split: np.load(folder / f"{split}_targets.npy") for split in SPLITS}
        # fastai knows how to cut and group only some of torchvision's networks, not this one; three
        # groups, the first blocks apart, is what it does for ResNet and its like.
        model_meta[self._network] = {
            "cut": -1,
            "split": lambda m: L(m[0][0][:MIDDLE], m[0][0][MIDDLE:], m[1]).map(params),
            "stats": imagenet_stats,
        }
        self.learn = self._learner()

    def _learner(self) -> Learner:
        images = np.concatenate([self.pixels["train"], self.pixels["validation"]])
        labels = np.concatenate([self.targets["train"], self.targets["validation"]])
        held_out = range(len(self.pixels["train"]), len(images))
        block = DataBlock(
            blocks=(ImageBlock, CategoryBlock),
            get_x=lambda i: images[i],
            get_y=lambda i: int(labels[i]),
            splitter=IndexSplitter(list(held_out)),
            batch_tfms=[*aug_transforms(), Normalize.from_stats(*imagenet_stats)],
        )
        loaders = block.dataloaders(
            range(len(images)), bs=BATCH, num_workers=0, device=torch.device("cpu")
        )
        learn = vision_learner(loaders, self._network)
        if self.settings["precision"] == "bfloat16":
            learn.add_cb(CPUAutocast())
        if self.settings["channels_last"]:
            learn.add_cb(ChannelsLast())
        learn.remove_cbs([cb for cb in learn.cbs if type(cb).__name__ == "ProgressCallback"])
        return learn

    def _network(self, pretrained: bool = True) -> torch.nn.Module:
        """torchvision's MobileNetV2 with the official weights, as fastai calls its makers."""
        model: torch.nn.Module = torchvision.models.mobilenet_v2()
        model.load_state_dict(torch.load(self.settings["weights"], weights_only=True))
        return model

    def train(self) -> None:
        settings = self.settings
        with self.learn.no_logging():
            self.learn.fine_tune(settings["epochs"], settings["base_lr"])

    def logits(self, split: str) -> np.ndarray[Any, Any]:
        """In float32, as a trained model is judged; the plain images."""
        model = self.learn.model.eval()
        mean, std = (np.asarray(x, np.float32) for x in imagenet_stats)
        found = []
        with torch.inference_mode():
            for begin in range(0, len(self.pixels[split]), BATCH):
                batch = self.pixels[split][begin : begin + BATCH].astype(np.float32) / 255
                inputs = torch.from_numpy((batch - mean) / std).permute(0, 3, 1, 2)
                found.append(model(inputs).numpy())
        return np.concatenate(found)


def main() -> None:
    folder, out, seed, settings = sys.argv[1:]
    run = Run(Path(folder), int(seed), json.loads(settings))
    clock = Clock()
    run.train()
    seconds, cpu_seconds = clock.read()
    judging = ("validation", "test")
    found, right = judged(
        {split: run.logits(split) for split in judging},
        {split: run.targets[split] for split in judging},
    )
    notes = {
        "fastai": fastai.__version__,
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    Measured(seconds=seconds, cpu_seconds=cpu_seconds, notes=notes, **found).write(Path(out), right)


if __name__ == "__main__":
    main()
