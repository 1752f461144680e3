"""Stochastic depth: residual branches that some training steps leave out, more often further up.

Huang et al., ECCV 2016, arXiv:1603.09382. torchvision and timm build it into many of their
networks; this sets how often, also where timm has put an identity in its place.
"""

from __future__ import annotations

from torch import nn

from tasks.errors import ThawlineError


def set_share(model: nn.Module, share: float) -> None:
    """Let each block be left out in up to `share` of the steps: linearly more from the input up.

    Raises `ThawlineError` when the network has no branch that can be left out.
    """
    from timm.layers import DropPath
    from torchvision.ops import StochasticDepth

    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if isinstance(child, DropPath | StochasticDepth)
        or (name.startswith("drop_path") and isinstance(child, nn.Identity))
    ]
    if not places:
        raise ThawlineError(
            f"train.stochastic_depth: {type(model).__name__} has no branches that can be left out; "
            "set it to null, or choose a backbone such as efficientnet_b0 or convnext_tiny"
        )
    for number, (parent, name, child) in enumerate(places, start=1):
        chance = share * number / len(places)
        if isinstance(child, StochasticDepth):
            child.p = chance
        else:
            setattr(parent, name, DropPath(chance))
