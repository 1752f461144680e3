"""Candidates for the choice of a backbone: two with real weights, and honest decoys.

The decoys are files of weights under other names of the same networks, damaged on purpose, and
networks that never learned anything. timm's `mobilenetv2_100` is the network that torchvision calls
`mobilenet_v2`: the same tensors in the same order under other names. `efficientnet_lite0` is
`tf_efficientnet_lite0` with another padding and normalisation of its inputs.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tasks import files
from tasks.params import EmbedParams
from tasks.problems.image_classification import architectures, backbones

State = dict[str, Tensor]
MOBILE, LITE = "mobilenet_v2", "tf_efficientnet_lite0"
REAL = {MOBILE: "ImageNet-1k, torchvision's", LITE: "ImageNet-1k, TensorFlow's"}
NOISE = {  # name: whose weights, with how much noise against each convolution's deviation
    "torchvision.mobilenet_v2": (MOBILE, 0.03),
    "mobilenetv2_100": (MOBILE, 0.1),
    "efficientnet_lite0": (LITE, 0.0),
    "timm.tf_efficientnet_lite0": (LITE, 0.1),
}
FORGOTTEN = {"timm.mobilenetv2_100": (MOBILE, 0.5), "timm.efficientnet_lite0": (LITE, 0.5)}
RANDOM = ("resnet18", "mobilenet_v3_large", "mobilenet_v3_small", "mobilenetv2_050")


def descriptions() -> dict[str, str]:
    """What each candidate is; the real ones first."""
    noisy = {
        name: f"decoy: weights of {real}"
        + (f", noise of {share:g} deviations in its convolutions" if share else " as they are")
        for name, (real, share) in NOISE.items()
    }
    half = {
        name: f"decoy: weights of {real}, random in the last {share:.0%} of its tensors"
        for name, (real, share) in FORGOTTEN.items()
    }
    return {**REAL, **noisy, **half, **dict.fromkeys(RANDOM, "decoy: random weights")}


def write(name: str, root: Path) -> dict[str, str]:
    """Write the weights of a decoy below `root`; returns its entry of `embed.weights`."""
    path = root / "decoys" / f"{name}.safetensors"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        with files.atomic(path) as temporary:
            save_file(_state(name, root), temporary)
    return {"file": str(path.relative_to(root)), "sha256": files.sha256_file(path)}


def _state(name: str, root: Path) -> State:
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)  # what the libraries draw random weights by
    own = architectures.find(name).model().state_dict()
    if name in RANDOM:
        return own
    real, share = (NOISE | FORGOTTEN)[name]
    model = backbones.backbone(real, EmbedParams(backbones=[real]), root).model
    known = list(model.state_dict().values())
    if name in FORGOTTEN:
        kept = int((1 - share) * len(known))
        return dict(zip(own, [*known[:kept], *list(own.values())[kept:]], strict=True))
    noisy = [
        x + share * x.std() * torch.randn(x.shape, generator=generator) if x.ndim == 4 else x
        for x in known
    ]
    return dict(zip(own, noisy, strict=True))
