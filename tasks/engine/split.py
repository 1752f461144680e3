"""Any feed-forward network as an ordered chain of layers that can be cut below each of them.

The network is traced by torch.fx. A place where a single tensor carries everything that later
operations need is a cut; cuts between blocks (such as residual blocks) bound the layers. Parts of
the chain share the modules of the network, under their own names.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode

from tasks.engine import pooling
from tasks.errors import ThawlineError
from tasks.records import Layer

HEAD = "head"
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
_ATOMS = (*NORMS, nn.Linear, nn.modules.conv._ConvNd)


class Tracer(fx.Tracer):
    """Keeps whole what must not be traced through: its behaviour depends on train or eval mode,
    or it says `kept_whole`, as a block may that computes in a way that depends on its input."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, _ATOMS) or not any(m.children()) or getattr(m, "kept_whole", False):
            return True
        return super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True)
class Chain:
    """A network cut into layers; `layers[i]` runs from boundary i to boundary i + 1."""

    model: nn.Module
    graph: fx.Graph
    boundaries: list[fx.Node]  # one more than layers; the first is the input
    layers: list[Layer]

    def part(self, start: int, stop: int | None = None) -> nn.Module:
        """The layers `start..stop-1` as a module from the one boundary's tensor to the other's."""
        stop = len(self.layers) if stop is None else stop
        return _part(self.model, self.graph, self.boundaries[start], self.boundaries[stop])

    def index(self, name: str) -> int:
        return [layer.name for layer in self.layers].index(name)


def chain(model: nn.Module, head: str, example: Tensor) -> Chain:
    """Cut `model` into layers; `head` is the module path of its head, `example` one input batch.

    Within autocast, the layers' `item_bytes` are those of its precision.

    Raises `ThawlineError` when the network cannot be traced.
    """
    graph, boundaries, names = cut(model, head)
    layers = []
    mode, pool = model.training, pooling.of(model)
    model.eval()
    value = example[:1]
    with torch.no_grad():
        for name, (start, stop) in zip(names, pairwise(boundaries), strict=True):
            module = _part(model, graph, start, stop)
            with FlopCounterMode(display=False) as counter:
                value = module(value)
            width = pool(value).shape[1]
            layers.append(_layer(name, module, counter.get_total_flops() // 2, value, width))
    model.train(mode)
    return Chain(model, graph, boundaries, layers)


def cut(model: nn.Module, head: str) -> tuple[fx.Graph, list[fx.Node], list[str]]:
    """The graph of `model`, the nodes that bound its layers, one more than layers, and their names.

    Raises `ThawlineError` when the network cannot be traced.
    """
    try:
        graph = Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code, which may raise anything
        raise ThawlineError(
            f"{type(model).__name__} cannot be cut into layers ({error}); choose another backbone"
        ) from error
    boundaries, names = _boundaries(model, graph, head)
    return graph, boundaries, names


def _layer(name: str, module: nn.Module, flops: int, output: Tensor, width: int) -> Layer:
    kept = module.state_dict()  # statistics are part of it, tables of positions are not
    return Layer(
        name=name,
        parameters=sum(p.numel() for p in module.parameters()),
        buffers=sum(b.numel() for key, b in module.named_buffers() if key in kept),
        flops=flops,
        output_bytes=2 * output[0].numel(),
        width=width,
        item_bytes=output.element_size(),
    )


def _part(model: nn.Module, graph: fx.Graph, start: fx.Node, stop: fx.Node) -> nn.Module:
    part = fx.Graph()
    copies: dict[fx.Node, Any] = {start: part.placeholder("x")}
    inside = False
    for node in graph.nodes:
        if node is stop and node is start:
            break
        if node.op == "placeholder" and node is not start:
            copies[node] = next(iter(node.args), None)  # a further argument of forward: its default
        elif inside:
            copies[node] = part.node_copy(node, lambda n: copies[n])
        inside = inside or node is start
        if node is stop:
            break
    part.output(copies[stop])
    module = fx.GraphModule(model, part)
    module.train(model.training)
    return module


def _boundaries(model: nn.Module, graph: fx.Graph, head: str) -> tuple[list[fx.Node], list[str]]:
    """The nodes between layers, and the layers' names."""
    nodes = [n for n in graph.nodes if n.op != "output"]
    cuts = _cuts(nodes)
    blocks = {i: _block(model, node.target, head) for i, node in enumerate(nodes) if _owns(node)}
    places = [0]  # node positions; layer k runs from after places[k] to places[k + 1]
    for here, following in pairwise(blocks):
        if blocks[here] != blocks[following]:
            between = [c for c in cuts if here <= c < following]
            # The latest cut, so that activation and pooling go with the block before.
            if between and between[-1] > places[-1]:
                places.append(between[-1])
    places.append(len(nodes) - 1)

    def has_weights(start: int, stop: int) -> bool:
        return any(_weighty(model, nodes[i]) for i in range(start + 1, stop + 1) if _owns(nodes[i]))

    # A norm, activation or pooling layer by itself is no layer: it joins the one before.
    merged = [places[0]]
    for start, stop in pairwise(places):
        if has_weights(start, stop) or len(merged) == 1:
            merged.append(stop)
        else:
            merged[-1] = stop
    names = [
        next(blocks[i] for i in range(start + 1, stop + 1) if i in blocks)
        for start, stop in pairwise(merged)
    ]
    if names[-1] != HEAD or len(names) < 2:
        raise ThawlineError(f"{type(model).__name__}: its head {head!r} cannot be cut off")
    return [nodes[i] for i in merged], names


def _cuts(nodes: list[fx.Node]) -> list[int]:
    """Positions after which one tensor, the node's own, carries all that is still needed."""
    position = {node: i for i, node in enumerate(nodes)}
    last_use = [max((position.get(u, len(nodes)) for u in n.users), default=i)
                for i, n in enumerate(nodes)]  # fmt: skip
    cuts, reach = [], -1  # reach: the last use of any earlier node
    for i, last in enumerate(last_use):
        if i and nodes[i].op == "placeholder":
            continue  # a further argument of forward, which keeps its default
        if reach <= i and nodes[i].op in ("call_module", "call_function", "call_method"):
            cuts.append(i)
        reach = max(reach, last)
    return cuts


def _owns(node: fx.Node) -> bool:
    return node.op in ("call_module", "get_attr")


def _weighty(model: nn.Module, node: fx.Node) -> bool:
    if node.op == "get_attr":
        return True
    module = model.get_submodule(str(node.target))
    return not isinstance(module, NORMS) and any(True for _ in module.parameters())


def _block(model: nn.Module, target: Any, head: str) -> str:
    """The block that a module belongs to: its path down to the first part that holds no blocks."""
    if target == head or str(target).startswith(f"{head}."):
        return HEAD
    module = model
    path: list[str] = []
    for part in str(target).split("."):
        around_head = head.startswith("".join(f"{p}." for p in path))
        if not around_head and not _holds_blocks(module):
            break
        path.append(part)
        child = getattr(module, part)
        if not isinstance(child, nn.Module):
            break  # a parameter of the container itself
        module = child
    return ".".join(path)


def _holds_blocks(module: nn.Module) -> bool:
    """Whether a module is a plain container, or repeats blocks of at least two weighted layers."""
    if type(module) in (nn.Sequential, nn.ModuleList):
        return True
    children = [
        grandchild
        for child in module.children()
        for grandchild in (
            child.children() if type(child) in (nn.Sequential, nn.ModuleList) else [child]
        )
    ]
    kinds = [
        type(child)
        for child in children
        if sum(isinstance(m, _ATOMS) and not isinstance(m, NORMS) for m in child.modules()) >= 2
    ]
    return len(kinds) > len(set(kinds))
