"""Where to compute and in which precision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tasks.engine.lengths import Values
from tasks.errors import ThawlineError

_DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Compute:
    """A device and the precision of matrix products on it; weights stay float32."""

    device: torch.device
    dtype: torch.dtype

    @property
    def precision(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def autocast(self) -> AbstractContextManager[None]:
        """The context for forward passes."""
        mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, dtype=self.dtype, enabled=mixed)

    @contextmanager
    def learning(self) -> Iterator[None]:
        """The context for forward passes whose gradients will be asked for.

        On a CPU the fused attention takes ten times as long for them in bfloat16 as its plain
        steps do (docs/decisions/0033-attention-in-plain-steps.md).
        """
        plain = self.device.type == "cpu" and self.dtype != torch.float32
        with self.autocast(), sdpa_kernel(SDPBackend.MATH) if plain else nullcontext():
            yield

    def seed(self, seed: int) -> None:
        """Start what dropout and the like draw from here. `torch.manual_seed` would visit every
        kind of device that torch was built for, at each step."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            with torch.cuda.device(self.device):  # cuda:1 may not be the current one
                torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def forward(self, module: nn.Module, inputs: Tensor) -> Tensor:
        """The module's output for a batch, in halves where the device has no memory for all of it.

        For passes without gradients, in evaluation mode. Raises `ThawlineError` when one example
        does not fit.
        """
        try:
            with torch.no_grad(), self.autocast():
                outputs: Tensor = module(inputs)
            return outputs
        except torch.OutOfMemoryError:
            if len(inputs) == 1:
                raise self.too_small() from None
        return torch.cat([self.forward(module, half) for half in inputs.chunk(2)])

    def too_small(self) -> ThawlineError:
        return ThawlineError(
            f"one example does not fit in the memory of {self.device}; choose a smaller backbone "
            "or smaller inputs (augment)"
        )

    def host(self, model: nn.Module) -> nn.Module:
        """Move a network to the device, maps' channels last: convolutions are faster on it."""
        layout: dict[str, Any] = {"memory_format": torch.channels_last}
        return model.to(self.device, **layout)

    def send(self, tensor: Tensor) -> Tensor:
        """Copy a batch to the device, without waiting where the device allows it."""
        if tensor.device.type == self.device.type:
            return tensor
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def kept_near(self, views: Sequence[Values]) -> Sequence[Values]:
        """All views on a GPU that has room for twice their size, else where they are."""
        if self.device.type != "cuda":
            return views
        free, _ = torch.cuda.mem_get_info(self.device)
        fit = 2 * sum(values.nbytes for values in views) < free
        return [values.to(self.device) for values in views] if fit else views


def resolve(device: str = "auto", precision: str = "auto") -> Compute:
    """The device and precision that `params.yaml` asks for; `auto` takes the fastest safe one.

    Raises `ThawlineError` when the device is not there or cannot compute in that precision.
    """
    chosen = _device(device)
    if precision == "auto":
        return Compute(chosen, _fast_dtype(chosen))
    dtype = _DTYPES[precision]
    if dtype == torch.float16 and chosen.type == "cpu":
        raise ThawlineError("precision float16 needs a GPU; set precision to auto or bfloat16")
    return Compute(chosen, dtype)


def _device(name: str) -> torch.device:
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    chosen = torch.device(name)
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ThawlineError(f"device {name!r}: {found} CUDA devices found; set device to auto")
    if chosen.type == "mps" and not torch.backends.mps.is_available():
        raise ThawlineError("device 'mps' is not available here; set device to auto")
    return chosen


def _fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies in it, else float16 on a GPU, else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(False) else torch.float16
    if device.type == "cpu" and any(
        torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16", "bf16")
    ):
        return torch.bfloat16
    return torch.float32
