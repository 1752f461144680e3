"""Several devices: each process trains on its slice of every batch, and gradients are summed.

Lightning Fabric starts the processes (the same command once more for each further device, in the
same process group) and joins them: NCCL between GPUs, gloo between processes on a CPU. One sum a
step, after the last micro-batch and over all gradients at once, keeps the weights of all processes
equal; the layers need no wrapper. That is data parallelism without overlap of sum and backward
pass, as what learns is the small part of a network here.

Not run so far: NCCL and synchronised batch norms, for want of a machine with two GPUs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed
from torch.nn.modules.batchnorm import _BatchNorm

from tasks.engine.device import Compute
from tasks.engine.network import Network
from tasks.errors import ThawlineError

T = TypeVar("T")
LONGEST_WAIT = timedelta(days=7)  # for the process that computes the last view of the frozen part


class Ranks:
    """The processes of a training, of which this is number `rank`; here the only one."""

    rank = 0
    size = 1

    def place(self, compute: Compute) -> Compute:
        """The device of this process."""
        return compute

    def columns(self, batches: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """This process's slice of each batch, of positions [steps, batch].

        Raises `ThawlineError` when a batch has no example for each process.
        """
        return batches

    def share(self, items: Sequence[T]) -> Sequence[T]:
        """The items that fall to this process."""
        return items

    def sum_gradients(self, parameters: Iterable[Tensor], loss: float) -> float:
        """Put the sum over all processes in place of each gradient; returns that of the losses."""
        return loss

    def total(self, *values: float) -> list[float]:
        """Sums over all processes."""
        return list(values)

    def highest(self, value: int) -> int:
        """The highest value that any process has."""
        return value

    def level(self, tensors: Iterable[Tensor]) -> None:
        """Give all processes the values of the first."""

    def admit(self, network: Network, learned: Collection[str], frozen: bool) -> None:
        """Make batch norms that learn see whole batches (`frozen`: they use none).

        Raises `ThawlineError` where that cannot be.
        """

    def end(self) -> Ranks:
        """The first process goes on alone; the others have nothing left to do."""
        return self


class Several(Ranks):
    """One process for each device; methods must be called by all of them alike."""

    def __init__(self, size: int, device: torch.device) -> None:
        fabric = _fabric(size, device)
        fabric.launch()  # starts the other processes, in the first one
        self.rank, self.size = fabric.global_rank, size
        self.device: torch.device = fabric.device

    def place(self, compute: Compute) -> Compute:
        return replace(compute, device=self.device)

    def columns(self, batches: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        if batches.shape[1] < self.size:
            raise ThawlineError(
                f"a batch of {batches.shape[1]} examples cannot be shared by {self.size} devices; "
                "raise train.batch_size or lower train.devices"
            )
        return batches[:, self.rank :: self.size]

    def share(self, items: Sequence[T]) -> Sequence[T]:
        return items[self.rank :: self.size]

    def sum_gradients(self, parameters: Iterable[Tensor], loss: float) -> float:
        found = [p.grad for p in parameters if p.grad is not None]
        parts = [g.reshape(-1) for g in found]
        flat = torch.cat([*parts, torch.tensor([loss], device=self.device)])
        distributed.all_reduce(flat)
        *sums, losses = torch.split(flat, [*(len(part) for part in parts), 1])
        for gradient, total in zip(found, sums, strict=True):
            gradient.copy_(total.view_as(gradient))
        return losses.item()

    def total(self, *values: float) -> list[float]:
        sums = torch.tensor(values, dtype=torch.float64, device=self.device)
        distributed.all_reduce(sums)
        return sums.tolist()

    def highest(self, value: int) -> int:
        found = torch.tensor(int(value), device=self.device)
        distributed.all_reduce(found, distributed.ReduceOp.MAX)
        return int(found)

    def level(self, tensors: Iterable[Tensor]) -> None:
        with torch.no_grad():
            for tensor in tensors:
                plain = tensor.contiguous()  # weights may be channels_last
                distributed.broadcast(plain, 0)
                tensor.copy_(plain)

    def admit(self, network: Network, learned: Collection[str], frozen: bool) -> None:
        for index in [network.index(name) for name in learned]:
            module = network.modules[index]
            if frozen or not any(isinstance(part, _BatchNorm) for part in module.modules()):
                continue
            if self.device.type != "cuda":
                raise ThawlineError(
                    "batch norms that learn need whole batches, which several processes on a CPU "
                    "do not see; set freeze.batch_norm to frozen, or train.devices to 1"
                )
            network.modules[index] = synchronised(module)

    def end(self) -> Ranks:
        distributed.destroy_process_group()
        return Ranks()


def start(devices: int | Literal["auto"], device: torch.device) -> Ranks:
    """The processes of a training; with several, each comes back from here with its own rank.

    Raises `ThawlineError` when there are not that many devices, or Lightning Fabric is missing.
    """
    size = _size(devices, device)
    return Ranks() if size == 1 else Several(size, device)


def synchronised(module: torch.nn.Module) -> torch.nn.Module:
    """The module with batch norms over the batches of all GPUs, sharing its tensors."""
    from timm.layers import convert_sync_batchnorm  # torch's own would lose timm's activations

    return convert_sync_batchnorm(module)


def _size(devices: int | Literal["auto"], device: torch.device) -> int:
    named = device.index is not None
    there = torch.cuda.device_count() if device.type == "cuda" else 1
    if devices == "auto":
        return 1 if named else there
    if devices > 1 and (named or device.type == "mps"):
        raise ThawlineError(
            f"device {device} is a single one; for {devices} set device to cuda or cpu"
        )
    if devices > there and device.type == "cuda":
        raise ThawlineError(
            f"train.devices is {devices}, but {there} CUDA devices are found; set it to auto"
        )
    return devices


def _fabric(size: int, device: torch.device) -> Any:
    try:
        from lightning_fabric import Fabric
        from lightning_fabric.plugins.environments import LightningEnvironment
        from lightning_fabric.strategies import DDPStrategy
    except ImportError:
        raise ThawlineError(
            "train.devices above 1 needs Lightning Fabric; install it with: "
            "pip install 'thawline[distributed]'"
        ) from None
    if device.type == "cpu":  # by the host's name, gloo would look for an address in the network
        loopback = "lo" if sys.platform == "linux" else "lo0"
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback)
    # Not the cluster's launcher, should this be one: the processes belong to this training.
    strategy = DDPStrategy(cluster_environment=LightningEnvironment(), timeout=LONGEST_WAIT)
    return Fabric(accelerator=device.type, devices=size, strategy=strategy)
