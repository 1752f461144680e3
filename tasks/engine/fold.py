"""Batch norms folded into the convolutions before them, for passes in which nothing learns.

In evaluation mode a batch norm is a scale and a shift of each channel, and so can be the weights
before it (Jacob et al., CVPR 2018, arXiv:1712.05877, section 3.2). On CPUs such passes
are quicker: a batch norm reads and writes everything for hardly any arithmetic. The results differ
in the last bits.
"""

from __future__ import annotations

import copy
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tasks.engine.split import Tracer


def folded(part: nn.Module) -> nn.Module:
    """A copy in evaluation mode whose weights do not follow those of `part`; without batch norms
    where they can be folded. A network that cannot be traced is copied as it is."""
    if isinstance(part, nn.Sequential):
        return nn.Sequential(*(folded(each) for each in part))
    made = copy.deepcopy(part).eval()
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
    return made


def _graph(model: nn.Module) -> fx.Graph | None:
    try:
        return Tracer().trace(model)
    except Exception:  # tracing runs the model's own code, which may raise anything
        return None


def _rest(norm: nn.Module) -> nn.Module:
    """What a batch norm does besides: those of timm also drop and activate."""
    return nn.Sequential(*norm.children())
