"""What follows a convolution done with it, for passes in which nothing learns.

In evaluation mode a batch norm is a scale and a shift of each channel, and so can be the weights
before it (Jacob et al., CVPR 2018, arXiv:1712.05877, section 3.2), with results that differ in the
last bits. A ReLU or ReLU6 after that can be applied where the convolution writes its output, with
the same bits. On CPUs such passes are quicker: both read and write everything for hardly any
arithmetic.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import Tensor, fx, nn
from torch.nn import functional
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tasks.engine.split import Tracer

_MANY = 16  # examples from which on a float32 convolution of torch is one of oneDNN, whatever it is


def folded(part: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights do not follow those of `part`; without batch norms
    and activations where they can be folded. A network that cannot be traced is copied as it is."""
    if isinstance(part, nn.Sequential):
        return nn.Sequential(*(folded(each) for each in part))
    made = copy.deepcopy(part).eval()
    if not any(isinstance(each, nn.Conv2d) for each in made.modules()):
        return made  # tracing an encoder takes as long as some batches
    graph = made.graph if isinstance(made, fx.GraphModule) else _graph(made)
    if graph is None:
        return made
    calls = Counter(node.target for node in graph.nodes if node.op == "call_module")
    for node in graph.nodes:
        before = node.args[0] if node.op == "call_module" and node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module" or len(before.users) > 1:
            continue
        conv, norm = (made.get_submodule(str(each.target)) for each in (before, node))
        once = calls[before.target] == calls[node.target] == 1
        if once and isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
            if norm.running_mean is None:  # it takes those of the batch
                continue
            made.set_submodule(str(before.target), fuse_conv_bn_eval(conv, norm))
            made.set_submodule(str(node.target), _rest(norm))
    _clamp(made, graph, calls)
    return made


class Clamped(nn.Module):
    """A convolution on a CPU that clamps what it writes: between 0 and `most`, or above 0."""

    def __init__(self, conv: nn.Conv2d, most: float | None) -> None:
        super().__init__()
        self.conv, self.most = conv, most

    def forward(self, inputs: Tensor) -> Tensor:
        conv, dtype = self.conv, inputs.dtype
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
        if not _by_onednn(inputs, dtype):
            output: Tensor = conv(inputs)
            if self.most is None:
                return functional.relu(output, inplace=True)
            return functional.hardtanh(output, 0.0, self.most, inplace=True)
        how = ("relu", []) if self.most is None else ("hardtanh", [0.0, self.most])
        fused: Tensor = torch.ops.mkldnn._convolution_pointwise(
            inputs.to(dtype),
            conv.weight.to(dtype),
            None if conv.bias is None else conv.bias.to(dtype),
            *(conv.padding, conv.stride, conv.dilation, conv.groups, *how, ""),
        )
        return fused


def _by_onednn(inputs: Tensor, dtype: torch.dtype) -> bool:
    """Whether torch's own convolution would be one of oneDNN, so that the bits are its bits."""
    if torch.compiler.is_exporting():  # ONNX knows no such operation
        return False
    if dtype == torch.bfloat16:
        supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        return supported
    return dtype == torch.float32 and len(inputs) >= _MANY


def _clamp(made: nn.Module, graph: fx.Graph, calls: Counter[object]) -> None:
    """Let convolutions of a traced network apply the activations that read them alone."""
    for node in graph.nodes:
        conv = _called(made, node, calls)
        if not isinstance(conv, nn.Conv2d) or not _can_clamp(conv):
            continue
        after = node
        while len(after.users) == 1:
            [after] = after.users
            found = _called(made, after, calls)
            if isinstance(found, nn.Sequential) and len(found) == 1:
                found = found[0]
            if isinstance(found, nn.ReLU) or (isinstance(found, nn.Hardtanh) and not found.min_val):
                most = found.max_val if isinstance(found, nn.Hardtanh) else None
                made.set_submodule(str(node.target), Clamped(conv, most))
                made.set_submodule(str(after.target), nn.Sequential())
                break
            if not (isinstance(found, nn.Sequential) and not len(found)):
                break


def _called(made: nn.Module, node: fx.Node, calls: Counter[object]) -> nn.Module | None:
    """The module that a node calls, if nothing else calls it."""
    once = node.op == "call_module" and calls[node.target] == 1
    return made.get_submodule(str(node.target)) if once else None


def _can_clamp(conv: nn.Conv2d) -> bool:
    own = type(conv) is not nn.Conv2d  # which may pad in a way of its own
    simple = not own and conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
    here: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return simple and here and conv.weight.device.type == "cpu"


def _graph(model: nn.Module) -> fx.Graph | None:
    try:
        return Tracer().trace(model)
    except Exception:  # tracing runs the model's own code, which may raise anything
        return None


def _rest(norm: nn.Module) -> nn.Module:
    """What a batch norm does besides: those of timm also drop and activate."""
    return nn.Sequential(*(x for x in norm.children() if not isinstance(x, nn.Identity)))
