"""Which network a name means: a classification model of torchvision or timm, without weights.

`resnet18` is torchvision's where both libraries have it. `torchvision.NAME` and `timm.NAME` say
which; a further `.TAG` picks one of several weights (`torchvision.resnet50.IMAGENET1K_V1`,
`resnet18.a1_in1k`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torchvision.models
from torch import nn

from tasks.errors import ThawlineError, UnknownName
from tasks.problems.image_classification.heads import is_convolutional, last_classifier

# Their auxiliary classifiers serve training from scratch only.
_INCEPTIONS: dict[str, dict[str, Any]] = {
    "googlenet": {"aux_logits": False, "transform_input": True, "init_weights": False},
    "inception_v3": {"aux_logits": False, "transform_input": True, "init_weights": False},
}


@dataclass(frozen=True)
class Architecture:
    """One network of a library, and which of its weights; `tag` is empty for the default."""

    name: str  # as in `params.yaml`
    library: str  # torchvision | timm
    arch: str
    tag: str

    def model(self) -> nn.Module:
        """The network with its original classes and random weights."""
        if self.library == "timm":
            return _timm().create_model(self.full, pretrained=False)
        return torchvision.models.get_model(
            self.arch, weights=None, **_INCEPTIONS.get(self.arch, {})
        )

    def head(self, model: nn.Module) -> str:
        """The path of the classifier in `model`, such as `classifier` or `fc`."""
        if self.library == "torchvision":
            return last_classifier(model)
        path = self.configuration().classifier
        if not isinstance(path, str):
            raise ThawlineError(
                f"{self.name} has no single classifier to replace; choose another backbone"
            )
        return path

    def plain(self) -> bool:
        """Whether the library's constructor, given our number of classes and no more, makes the
        network that a linear head of ours does, under the same keys."""
        if self.arch in _INCEPTIONS:
            return False
        model = self.model()
        return not is_convolutional(model.get_submodule(self.head(model)))

    def normalisation(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation, a channel each, of inputs in 0..1."""
        if self.library == "timm":
            configuration = self.configuration()
            return tuple(configuration.mean), tuple(configuration.std)
        transforms = self.configuration().transforms()
        return tuple(transforms.mean), tuple(transforms.std)

    @property
    def full(self) -> str:
        """The library's own name with the tag."""
        return f"{self.arch}.{self.tag}" if self.tag else self.arch

    def configuration(self) -> Any:
        """What the library states: timm's `PretrainedCfg`, or a torchvision weights enum's member.

        Raises `UnknownName` for an unknown tag.
        """
        if self.library == "timm":
            return _timm().get_pretrained_cfg(self.full)
        weights = torchvision.models.get_model_weights(self.arch)
        return weights[self.tag] if self.tag else weights.DEFAULT


def find(name: str) -> Architecture:
    """The network that a name means. Raises `UnknownName` with the nearest names."""
    prefix, _, rest = name.partition(".")
    explicit = prefix in ("torchvision", "timm")
    arch, _, tag = (rest if explicit else name).partition(".")
    libraries = {"torchvision": _torchvision_names(), "timm": _timm_names()}
    found = [library for library, names in libraries.items() if arch in names]
    if explicit:
        found = [library for library in found if library == prefix]
    if tag:  # the library that knows the weights too
        found = [library for library in found if tag in _tags(library, arch)] or found
    if not found:
        known = libraries[prefix] if explicit else libraries["torchvision"] | libraries["timm"]
        raise UnknownName("backbone", arch, known, _HINT)
    library = found[0]
    if tag and tag not in _tags(library, arch):
        raise UnknownName(f"weights of {library}'s {arch}", tag, _tags(library, arch))
    return Architecture(name, library, arch, tag)


_HINT = (
    "It can be any classification model of torchvision or timm; list them with "
    "torchvision.models.list_models() and timm.list_models()"
)


def _torchvision_names() -> set[str]:
    return set(torchvision.models.list_models(module=torchvision.models))


@cache
def _timm_names() -> set[str]:
    return set(_timm().list_models())


def _tags(library: str, arch: str) -> list[str]:
    if library == "torchvision":
        return list(torchvision.models.get_model_weights(arch).__members__)
    names = _timm().list_pretrained(f"{arch}.*")
    return [name.partition(".")[2] for name in names]


def _timm() -> Any:
    import timm  # takes a second that a torchvision name in the packaged model need not wait

    return timm
