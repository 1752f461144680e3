"""Where pretrained weights come from, and loading them strictly and without running any code.

In order: a local file that `embed.weights` names, a file of the catalogue, the library's own.
"""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks import catalogue, files
from tasks.errors import ThawlineError
from tasks.params import EmbedParams, WeightsFile
from tasks.problems.image_classification import architectures, downloads, fitting, heads, starts
from tasks.problems.image_classification.architectures import Architecture
from tasks.problems.image_classification.fitting import State
from tasks.problems.image_classification.starts import Start

UNKNOWN = "unknown, check before use"


@dataclass(frozen=True)
class Weights:
    """A file of weights, bound to its content, and what is known about it."""

    path: Path
    sha256: str
    source: str  # without any path of this machine
    licence: str
    pretraining: str
    published: bool = False  # by the library that has the network
    start: Start | None = None  # the packaged model that they were
    accuracy: float | None = None  # top-1 on ImageNet-1k, as published


def find(architecture: Architecture, embed: EmbedParams, root: Path) -> Weights:
    """The weights of a network. Raises `ThawlineError` when there are none to be had."""
    name = architecture.name
    if name in embed.weights:
        return _local(name, embed.weights[name], root)
    if name in catalogue.known_weights():
        return _packaged(name)
    return _published(architecture)


def fetch(name: str) -> Path:
    """Bring a network's weights to this machine: the catalogue's file or the library's own."""
    architecture = architectures.find(name)
    if name in catalogue.known_weights():
        return catalogue.fetch_weights(name)
    return downloads.fetch(architecture)


def load(architecture: Architecture, weights: Weights) -> tuple[nn.Module, str]:
    """The network with these weights, and what a reader should know of how they fit.

    Every key and shape below the classifier must fit; of the classifier see `fitting.fit`.
    """
    if weights.published and architecture.library == "timm":
        import timm  # its own loader knows how the layouts of its files have changed

        overlay = {"file": str(weights.path)}
        own = timm.create_model(architecture.full, pretrained=True, pretrained_cfg_overlay=overlay)
        return own, ""
    model = architecture.model()
    head = architecture.head(model)
    what = f"{weights.path.name} does not fit {architecture.name}"
    state = _adapted(architecture, read(weights.path))
    if weights.start is None:
        return model, fitting.fit(model, head, state, what)
    layers = SimpleNamespace(**weights.start.head)
    heads.with_head(model, head, len(weights.start.classes), layers)  # type: ignore[arg-type]
    fitting.check_keys(state, model.state_dict(), what)
    model.load_state_dict(state)
    return model, ""


def read(path: Path) -> State:
    """The tensors of a .safetensors or PyTorch file.

    Raises `ThawlineError` for anything else, above all a pickle that would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ThawlineError(
            f"{path.name} is refused: it holds more than tensors, so reading it could run code "
            "in it; save the weights again as .safetensors"
        ) from error
    except (SafetensorError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise ThawlineError(f"{path.name} is not a readable file of weights: {error}") from error
    for wrapper in ("state_dict", "model_state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(wrapper), dict):
            value = value[wrapper]
    if not isinstance(value, dict) or not all(isinstance(x, Tensor) for x in value.values()):
        raise ThawlineError(f"{path.name} is not a state dict: a mapping from names to tensors")
    return dict(value)


def _local(name: str, file: WeightsFile, root: Path) -> Weights:
    path = root / file.file
    where = f"embed.weights.{name}"
    if not path.is_file():
        raise ThawlineError(f"{where}: there is no file {file.file}")
    found = files.sha256_file(path)
    if found != file.sha256:
        raise ThawlineError(
            f"{where}: {file.file} has sha256 {found}, not the expected {file.sha256}: it is "
            "another or a damaged file; get it again, or correct the sha256 if it is meant"
        )
    start = starts.read(path)
    if start is None:
        return Weights(path, found, f"local file {path.name}", UNKNOWN, UNKNOWN)
    _require_same(name, start, where)
    return Weights(path, found, start.source, start.licence, start.pretraining, start=start)


def _require_same(name: str, start: Start, where: str) -> None:
    """Raises `ThawlineError` when a packaged model is another network, or saw other colours."""
    wanted, own = architectures.find(name), architectures.find(start.backbone)
    if (wanted.library, wanted.arch) != (own.library, own.arch):
        raise ThawlineError(
            f"{where}: {start.source} is a {start.backbone}, not a {name}; list {start.backbone} "
            "in embed.backbones, and these weights under that name"
        )
    if [*map(list, wanted.normalisation())] != [start.mean, start.std]:
        raise ThawlineError(
            f"{where}: {start.source} was trained on images normalised with mean {start.mean} and "
            f"deviation {start.std}, which {name} is not; list it as {start.backbone}, or start "
            "from a model of this version of the library"
        )


def _packaged(name: str) -> Weights:
    path, entry = catalogue.fetch_weights(name), catalogue.known_weights()[name]
    return Weights(
        path,
        entry.digest,
        entry.title,
        entry.licence,
        entry.pretraining,
        accuracy=entry.accuracy,
    )


def _published(architecture: Architecture) -> Weights:
    path = downloads.fetch(architecture)
    published = architecture.configuration()
    source = f"{architecture.library}: {path.name}"
    accuracy = None  # timm brings none
    if architecture.library == "torchvision":
        licence = published.meta.get("license", UNKNOWN)
        pretraining = f"ImageNet-1k ({published.name})"
        percent = published.meta.get("_metrics", {}).get("ImageNet-1K", {}).get("acc@1")
        accuracy = percent and round(percent / 100, 5)
    else:
        source = f"timm: {published.hf_hub_id or path.name}"
        licence = published.license or UNKNOWN
        pretraining = f"timm's {published.tag}" if published.tag else UNKNOWN
    return Weights(
        path,
        files.sha256_file(path),
        source,
        licence,
        pretraining,
        published=True,
        accuracy=accuracy,
    )


def _adapted(architecture: Architecture, state: State) -> State:
    """Weights under the names that the network has today."""
    if "_conv_stem.weight" in state and architecture.arch == "tf_efficientnet_lite0":
        return {_lite0_key(key): value for key, value in state.items()}
    if architecture.arch.startswith("densenet") and architecture.library == "torchvision":
        old = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
        return {old.sub(r"\1\2", key): value for key, value in state.items()}
    if architecture.arch in ("googlenet", "inception_v3"):
        return {k: v for k, v in state.items() if not k.lower().startswith("aux")}
    return state


_LITE0_REPEATS = (1, 2, 2, 3, 3, 4, 1)
_LITE0_OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_LITE0_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
_LITE0_BLOCK = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}


def _lite0_key(key: str) -> str:
    """A key of EfficientNet-PyTorch's layout in timm's: flat block index → stage.block."""
    outer, _, rest = key.partition(".")
    if outer != "_blocks":
        return f"{_LITE0_OUTER[outer]}.{rest}"
    index, module, tensor = rest.split(".")
    stage, block = 0, int(index)
    while block >= _LITE0_REPEATS[stage]:
        block -= _LITE0_REPEATS[stage]
        stage += 1
    names = _LITE0_FIRST if stage == 0 else _LITE0_BLOCK
    return f"blocks.{stage}.{block}.{names[module]}.{tensor}"
