"""What models are for: one folder a problem, found by its name.

A problem is a package with these functions; the core calls nothing else of it.

Data (`tasks.prepare`; `params` is the section `prepare`):
- `read(params, root) -> DataFrame`: the raw examples, one row each: `source` (str, for people),
  `label` (str), `split` (train | validation | test | None), `group` (str | None), and what
  `store` needs; refuses unusable data with `DataError`.
- `store(frame, folder, params, threads) -> (DataFrame, list[dict])`: decode each example once
  into `folder`, adding `id` (sha256 of the decoded content) and columns with its place in there;
  examples that cannot be read are left out and returned as `{source, reason}`.
- `near_duplicates(frame, folder) -> ndarray[int64] [p, 2]`: pairs of row positions of `frame`.
- `details(frame, folder) -> dict`: facts of this kind of data for the report, JSON-ready.

Views (`tasks.augment`, `tasks.engine`):
- `policies() -> list[str]`: the names that `augment.policy` may have; light.
- `policy(params, seed) -> ViewPolicy`: the augmentation policy, resolved and checked.
- `preview(project, policy, folder)`: a picture of what training sees, `preview.png`, of equal rows
  and columns, and the names of its `rows` and `columns`, `preview.json`.
- `examples(project, policy, backbone) -> Examples`: the inputs of the network.
- `test_views(inputs, policy) -> list[Tensor]`: what a prediction is averaged over.

Networks (`tasks.embed`, `tasks.engine`, `tasks.package`):
- `backbone(name, embed, root) -> Backbone`: the pretrained network, weights checked.
- `build(name, classes, head) -> tuple[nn.Module, str]`: the same architecture without weights and
  with the new head; and the module path of that head.

Judging (`tasks.evaluate`, whose metrics are those of classification for now):
- `thumbnails(project, rows, size) -> list[str]`: pictures of some manifest rows as data URIs.

Using (`tasks.package`, `tasks.predict`, `tasks.gate`): the module `predictor` of the package, which
needs a packaged model folder alone; and
- `samples(project, rows) -> list[ndarray]`: some manifest rows as it takes them.

Starting (`tasks.start`): the module `starts`, with `write(folder, origin, path) -> Start`: a
packaged folder as one file that `embed.weights` can name, and what a next training takes over.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from torch import Tensor, nn


@dataclass(frozen=True)
class Backbone:
    """A pretrained network as its library gives it, and where it came from."""

    name: str
    model: nn.Module  # with its original head
    head: str  # module path of the original head, such as `classifier`
    mean: tuple[float, ...]  # of the inputs' normalisation
    std: tuple[float, ...]
    weights_sha256: str
    weights_source: str
    licence: str
    pretraining: str
    classes: tuple[str, ...] = ()  # of the head, in its order, where it is a packaged model's
    accuracy: float | None = None  # of the weights on what they were trained for, as published


class Examples(Protocol):
    """The inputs of a network, by manifest row and view."""

    def batch(self, rows: npt.NDArray[np.int64], view: int) -> Tensor:
        """Normalised float32 inputs of some rows, in order, e.g. [n, 3, side, side].

        The same (rows, view) gives the same numbers; view 0 is the plain one.
        """
        ...
