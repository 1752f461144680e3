"""Image classification: one label an image. What each function is for: see `tasks.problems`.

Each function imports its module when it is called, so that looking a problem up stays cheap. No
module here may share a name with a function: importing it would put it in the function's place.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from torch import Tensor, nn

    from tasks.params import AugmentParams, EmbedParams, HeadParams, PrepareParams
    from tasks.problems import Backbone, Examples
    from tasks.records import Project, ViewPolicy


def read(params: PrepareParams, root: Path) -> pd.DataFrame:
    """The raw examples: `source`, `label`, `split`, `group`, and `file` and `row` for `store`."""
    from tasks.problems.image_classification import sources

    return sources.read(params, root)


def store(
    frame: pd.DataFrame, folder: Path, params: PrepareParams, threads: int
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Decode each image once into `folder`; adds `id`, `offset`, `height`, `width`, `channels`."""
    from tasks.problems.image_classification import image_store

    return image_store.store(frame, folder, params, threads)


def near_duplicates(frame: pd.DataFrame, folder: Path) -> npt.NDArray[np.int64]:
    """Pairs of row positions [p, 2] whose pictures are almost the same, also when mirrored."""
    from tasks.problems.image_classification import similarity

    return similarity.near_duplicates(frame, folder)


def details(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    """Sizes and channels of the images, and the size of the store."""
    from tasks.problems.image_classification import image_store

    return image_store.details(frame, folder)


def policies() -> list[str]:
    """The policies that have a name."""
    from tasks.problems.image_classification import named_policies

    return list(named_policies.POLICIES)


def policy(augment: AugmentParams, seed: int) -> ViewPolicy:
    """The augmentation policy, resolved and tried."""
    from tasks.problems.image_classification import views

    return views.policy(augment, seed)


def preview(project: Project, policy: ViewPolicy, folder: Path) -> None:
    """A picture with an image a class, plain and in its views, and what its rows are called."""
    from tasks.problems.image_classification import views

    views.preview(project, policy, folder)


def examples(project: Project, policy: ViewPolicy, backbone: Backbone) -> Examples:
    """The prepared images as `backbone` wants them: float32 [n, 3, side, side]."""
    from tasks.problems.image_classification import views

    return views.examples(project, policy, backbone)


def backbone(name: str, embed: EmbedParams, root: Path) -> Backbone:
    """A classification model of torchvision or timm with its pretrained weights."""
    from tasks.problems.image_classification import backbones

    return backbones.backbone(name, embed, root)


def build(name: str, classes: int, head: HeadParams) -> tuple[nn.Module, str]:
    """The same network with random weights and a new head, and the module path of that head."""
    from tasks.problems.image_classification import backbones

    return backbones.build(name, classes, head)


def test_views(inputs: Tensor, policy: ViewPolicy) -> list[Tensor]:
    """The inputs [n, 3, side, side], and mirrored ones where the policy says so."""
    from tasks.problems.image_classification import inputs as views

    return views.test_views(inputs, policy.test_time)


def thumbnails(project: Project, rows: Sequence[int], size: int) -> list[str]:
    """The images of some manifest rows as data URIs, no side longer than `size` pixels."""
    from tasks.problems.image_classification import thumbs

    return thumbs.thumbnails(project, rows, size)


def samples(project: Project, rows: Sequence[int]) -> list[npt.NDArray[np.uint8]]:
    """The stored pixels of some manifest rows, uint8 [height, width, 1 or 3]."""
    import pandas as pd

    from tasks.problems.image_classification.image_store import ImageStore

    images = ImageStore(project.prepared, pd.read_parquet(project.manifest))
    return [images.image(row) for row in rows]
