"""What training sees of an image: declared policies of torchvision v2 transforms, and their views.

Transforms work on the image as the network gets it: uint8 [3, image_size, image_size].
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torchvision.transforms import v2

from tasks.errors import ParamsError, UnknownName, nearest
from tasks.problems.image_classification.inputs import normalised, plain
from tasks.problems.image_classification.named_policies import POLICIES, Described
from tasks.problems.image_classification.parameters import ImageAugment
from tasks.records import Project, ViewPolicy

if TYPE_CHECKING:
    from tasks.problems import Backbone

__all__ = ["ImageExamples", "examples", "plain", "policy", "preview"]

# These need labels, boxes, videos or Python objects, or make something else than one image.
_UNFIT = {
    *("Transform", "Lambda", "LinearTransformation", "Normalize", "ToDtype", "ConvertImageDtype"),
    *("PILToTensor", "ToImage", "ToPILImage", "ToPureTensor", "ToTensor", "FiveCrop", "TenCrop"),
    *("CutMix", "MixUp", "RandomIoUCrop", "UniformTemporalSubsample", "SetClampingMode"),
    *("ClampBoundingBoxes", "ConvertBoundingBoxFormat", "SanitizeBoundingBoxes"),
    *("ClampKeyPoints", "SanitizeKeyPoints"),
}
KEPT = 128_000_000  # bytes of plain views that are held, at most: 4,600 images of 96 pixels
_ENUMS: dict[str, Any] = {"interpolation": v2.InterpolationMode, "policy": v2.AutoAugmentPolicy}


class Images(Protocol):
    """Decoded images by manifest row."""

    def image(self, row: int) -> npt.NDArray[np.uint8]:
        """uint8 [h, w, 1 or 3]."""
        ...


def policy(augment: ImageAugment, seed: int) -> ViewPolicy:
    """The augmentation policy, resolved and tried on one image.

    Raises `ParamsError` or `UnknownName`, naming the transform and what is wrong with it.
    """
    if isinstance(augment.policy, str):
        if augment.policy not in POLICIES:
            hint = "It can also be a list of torchvision.transforms.v2 names"
            raise UnknownName("augment.policy", augment.policy, POLICIES, hint)
        transforms = [_sized(entry, augment.image_size) for entry in POLICIES[augment.policy]]
    else:
        transforms = [_described(entry, "augment.policy") for entry in augment.policy]
    resolved = ViewPolicy(
        problem="image_classification",
        seed=seed,
        views=augment.views if transforms else 1,  # more would be equal
        shape={"image_size": augment.image_size, "resize": augment.resize},
        transforms=transforms,
        refresh_epochs=augment.refresh_epochs if transforms else 0,
        test_time=augment.test_time,
    )
    _try(resolved)
    return resolved


class ImageExamples:
    """The inputs of a network, by manifest row and view (`tasks.problems.Examples`).

    View 0 is plain. A view v ≥ 1 of an image depends on (policy.seed, v, the image's id) alone; no
    global random state is read or moved, so any thread may ask.
    """

    def __init__(
        self,
        store: Images,
        ids: list[str],
        policy: ViewPolicy,
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        self.store, self.ids, self.policy, self.mean, self.std = store, ids, policy, mean, std
        self._transform = _transform(policy)
        self._kept: dict[int, Tensor] = {}  # plain views, as each view of an image begins with it

    def batch(self, rows: npt.NDArray[np.int64], view: int) -> Tensor:
        """float32 [n, 3, side, side], normalised, in channels_last layout."""
        return normalised(self.pixels(rows, view), self.mean, self.std)

    def pixels(self, rows: npt.NDArray[np.int64], view: int) -> Tensor:
        """The same before normalisation: uint8 [n, 3, side, side]."""
        images = [self._plain(int(row)) for row in rows]
        if view and self.policy.transforms:
            with _Drawing() as drawing:
                for i, row in enumerate(rows):
                    drawing.seed(f"{self.policy.seed}:{view}:{self.ids[int(row)]}")
                    images[i] = self._transform(images[i].clone())  # it may work in place
        return torch.stack(images)

    def _plain(self, row: int) -> Tensor:
        """The image as the network gets it: resized once, while there is room for it."""
        found = self._kept.get(row)
        if found is None:
            size = self.policy.shape["image_size"]
            found = plain(self.store.image(row), size, self.policy.shape["resize"])
            if len(self._kept) < KEPT // (3 * size**2):
                self._kept[row] = found
        return found

    def lengths(self, rows: npt.NDArray[np.int64]) -> None:
        """All images have one size."""


def examples(project: Project, policy: ViewPolicy, backbone: Backbone) -> ImageExamples:
    """The prepared images as `backbone` wants them."""
    store, frame = _prepared(project)
    return ImageExamples(store, frame["id"].tolist(), policy, backbone.mean, backbone.std)


def preview(project: Project, policy: ViewPolicy, folder: Path) -> None:
    """Write `preview.png`, a row for each of up to 20 classes, or combinations of several labels,
    with the plain image and its augmented views, and `preview.json`, the names of its `rows` and
    `columns`."""
    from tasks import files
    from tasks.problems.image_classification import pictures
    from tasks.records import DataSummary

    store, frame = _prepared(project)
    shown = ImageExamples(store, frame["id"].tolist(), policy, (0.0,), (1.0,))
    train = frame[frame["split"] == "train"]
    firsts = train.drop_duplicates("target").sort_values("target").head(20)
    rows = firsts.index.to_numpy(np.int64)
    views = range(min(policy.views, 8) + 1)
    columns = [shown.pixels(rows, number) for number in views]
    images = torch.stack(columns, dim=1).permute(0, 1, 3, 4, 2).numpy()
    pictures.grid(images, folder / "preview.png")
    labels = DataSummary.read(project.summary).labelling.names
    names = {
        "rows": [labels[target] for target in firsts["target"]],
        "columns": [f"view {number}" if number else "plain" for number in views],
    }
    files.write_json(folder / "preview.json", names)


def _prepared(project: Project) -> tuple[Images, Any]:
    import pandas as pd

    from tasks.problems.image_classification.image_store import ImageStore

    frame = pd.read_parquet(project.manifest)
    return ImageStore(project.prepared, frame), frame


class _Drawing(TorchFunctionMode):
    """Within it, this thread's random functions of torch draw from a generator of its own.

    torchvision's transforms know only the global generator, which other threads draw from too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator()

    def seed(self, key: str) -> None:
        digest = hashlib.sha256(key.encode()).digest()
        self.generator.manual_seed(int.from_bytes(digest[:8]) >> 1)

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in _RANDOM:
            kwargs = {"generator": self.generator, **(kwargs or {})}
        return func(*args, **(kwargs or {}))


_RANDOM = {
    *(torch.rand, torch.randn, torch.randint, torch.randperm, torch.normal, torch.bernoulli),
    *(torch.rand_like, torch.randn_like, torch.randint_like, torch.multinomial),
    *(torch._sample_dirichlet, Tensor.uniform_, Tensor.normal_, Tensor.random_),
    *(Tensor.bernoulli_, Tensor.exponential_),
}


def _transform(policy: ViewPolicy) -> Callable[[Tensor], Tensor]:
    """The transforms of a policy, one after the other, then back to the square if it was left."""
    steps = [_constructed(entry) for entry in policy.transforms]
    side = policy.shape["image_size"]
    square = v2.Resize([side, side], antialias=True)

    def transform(image: Tensor) -> Tensor:
        for step in steps:
            image = step(image)
        return image if image.shape[1:] == (side, side) else square(image)

    return transform


def _sized(entry: Described, image_size: int) -> Described:
    """A built-in entry with the size that its transform needs."""
    if entry["name"] != "RandomResizedCrop":
        return entry
    size = [image_size, image_size]
    return {"name": entry["name"], "arguments": {"size": size, **entry["arguments"]}}


def _described(entry: Any, where: str) -> Described:
    """`Name` or `{Name: {argument: value}}` as `{name, arguments}`; containers hold the same."""
    if isinstance(entry, str):
        entry = {entry: {}}
    if not isinstance(entry, dict) or len(entry) != 1:
        raise ParamsError(
            f"{where}: {entry!r} is not a transform; write RandomHorizontalFlip, "
            "or ColorJitter: {brightness: 0.2}"
        )
    [(name, arguments)] = entry.items()
    if name not in _fit():
        raise UnknownName(f"transform in {where}:", name, _fit())
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, dict):
        raise ParamsError(
            f"{where}: {name} takes named arguments, such as {{p: 0.5}}, not {arguments!r}"
        )
    known = [p for p in inspect.signature(getattr(v2, name)).parameters if p != "kwargs"]
    for argument in arguments:
        if argument not in known:
            hint = nearest(str(argument), known) or f"; it has {', '.join(known) or 'none'}"
            raise ParamsError(f"{where}: {name} has no argument {argument!r}{hint}")
    if isinstance(inner := arguments.get("transforms"), list):
        inner = [_described(step, f"{where}: {name}") for step in inner]
        arguments = {**arguments, "transforms": inner}
    return {"name": name, "arguments": arguments}


def _fit() -> set[str]:
    """The transforms of torchvision v2 that turn one image into one."""
    kinds = {n for n, c in vars(v2).items() if inspect.isclass(c) and issubclass(c, v2.Transform)}
    return (kinds | {"Compose", "RandomApply", "RandomChoice", "RandomOrder"}) - _UNFIT


def _constructed(entry: Described) -> Callable[[Tensor], Tensor]:
    arguments = dict(entry["arguments"])
    for name, kind in _ENUMS.items():
        if isinstance(arguments.get(name), str):
            arguments[name] = kind(arguments[name])
    if isinstance(inner := arguments.get("transforms"), list):
        arguments["transforms"] = [_constructed(step) for step in inner]
    return getattr(v2, entry["name"])(**arguments)


def _try(policy: ViewPolicy) -> None:
    """Send an image through the transforms; what one refuses becomes one sentence."""
    steps, side = [], policy.shape["image_size"]
    for entry in policy.transforms:
        with _refusal(entry):
            json.dumps(entry, allow_nan=False)
            steps.append((entry, _constructed(entry)))
    with _Drawing() as drawing:
        for number in range(8):  # random choices may take different ways
            drawing.seed(f"try:{number}")
            image: Any = torch.zeros(3, side, side, dtype=torch.uint8)
            for entry, step in steps:
                with _refusal(entry):
                    image = step(image)
                    _check(image)


@contextmanager
def _refusal(entry: Described) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a transform may raise anything on wrong arguments
        raise ParamsError(
            f"augment.policy: {entry['name']} cannot be used with {entry['arguments']}: "
            f"{(str(error) or type(error).__name__).splitlines()[0]}"
        ) from error


def _check(image: Any) -> None:
    fine = isinstance(image, Tensor) and image.dtype == torch.uint8 and image.ndim == 3
    if not fine or len(image) != 3:
        raise ValueError("it does not give back a colour image of 8-bit pixels")
