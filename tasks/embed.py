"""The embed stage: one pass of a frozen backbone over the examples, kept as pooled features.

Leaves in `outputs/features/BACKBONE`: `embedding.json` (an `Embedding`), `rows.npy` (int64 [n],
the manifest rows of training and validation) and, for three depths, `LAYER.npy` (float32 [n, d]):
the layer before the head and two shallower ones, where about 50 % and 75 % of the forward compute
is done. Test examples are left alone: they are looked at in evaluate only.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from tasks import files, problems
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.progress import progress
from tasks.records import Embedding, Layer, Project, ViewPolicy

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn

    from tasks.engine.device import Compute
    from tasks.engine.split import Chain
    from tasks.problems import Backbone, Examples, Problem

Features = npt.NDArray[np.float32]
Rows = npt.NDArray[np.int64]

SHALLOWER = (0.5, 0.75)  # shares of the forward compute


def run(project: Project, params: Params, backbone: str) -> None:
    """Write the features of one backbone.

    Raises `ThawlineError` when its weights cannot be had or it does not take the examples.
    """

    from tasks.engine.device import resolve
    from tasks.engine.network import digest

    problem = problems.load(params.problem)
    compute = resolve(params.device, params.precision)
    loaded = problem.backbone(backbone, params.embed, project.root)
    policy = ViewPolicy.read(project.augment / "plain.json")
    examples = problem.examples(project, policy, loaded)
    rows = _rows(project)
    model = compute.host(loaded.model.eval())
    before = digest(model.state_dict())
    chain = _chain(problem, loaded, examples, rows, compute, policy)
    chosen = depths(chain.layers)
    names = {chain.layers[stop - 1].name: stop for stop in chosen}
    folder = project.features(backbone)
    outputs = {name: folder / f"{name}.npy" for name in names}
    with files.atomic(folder / "rows.npy") as temporary, temporary.open("wb") as file:
        np.save(file, rows)
    _embed(chain, chosen, examples, rows, compute, params.embed.batch_size, [*outputs.values()])
    if digest(model.state_dict()) != before:
        raise RuntimeError(f"the frozen pass has changed weights or buffers of {backbone}")
    Embedding(
        backbone=backbone,
        weights_sha256=loaded.weights_sha256,
        weights_source=loaded.weights_source,
        licence=loaded.licence,
        pretraining=loaded.pretraining,
        layers=chain.layers,
        depths={name: path.name for name, path in outputs.items()},
        rows="rows.npy",
        accuracy=loaded.accuracy,
    ).write(folder / "embedding.json")


def deepest(project: Project, backbone: str) -> tuple[Features, Rows]:
    """The deepest features kept of a backbone, [n, d] in a mapped file, and their manifest rows."""
    folder = project.features(backbone)
    embedding = Embedding.read(folder / "embedding.json")
    features = np.load(folder / embedding.depths[embedding.deepest], mmap_mode="r")
    return features, np.load(folder / embedding.rows)


def drop_unlisted(project: Project, backbones: Sequence[str]) -> None:
    """Remove the features of backbones that are no candidates now; DVC's cache keeps them.

    Stages depend on the folder of all features, which must not tell of former candidates.
    """
    parent = project.features("any").parent
    for folder in parent.iterdir() if parent.is_dir() else ():
        if folder.is_dir() and folder.name not in backbones:
            shutil.rmtree(folder)


def depths(layers: Sequence[Layer]) -> list[int]:
    """How many layers from the input to go for each depth, shallowest first.

    The last is all but the head; a shallower one is where the share of the compute done comes
    nearest to `SHALLOWER`. A network of few layers has fewer than three.
    """
    done = list(accumulate(layer.flops for layer in layers[:-1]))
    total = max(done[-1], 1)
    nearest = {
        min(range(len(done)), key=lambda i: (abs(done[i] / total - share), i)) + 1
        for share in SHALLOWER
    }
    return sorted(nearest | {len(done)})


def _rows(project: Project) -> npt.NDArray[np.int64]:
    """The manifest rows that are not test."""
    import pandas as pd

    splits = pd.read_parquet(project.manifest, columns=["split"])["split"].to_numpy()
    return np.flatnonzero(splits != "test")


def _chain(
    problem: Problem,
    backbone: Backbone,
    examples: Examples,
    rows: npt.NDArray[np.int64],
    compute: Compute,
    policy: ViewPolicy,
) -> Chain:
    """The backbone cut into layers on a real example."""
    from tasks.engine import lengths
    from tasks.engine.split import chain

    example = compute.send(examples.batch(lengths.typical(rows, examples.lengths(rows)), 0))
    try:
        with compute.autocast():
            return chain(backbone.model, backbone.head, example)
    except ThawlineError as error:
        raise ThawlineError(f"{backbone.name}: {error}") from error
    except Exception as error:  # networks state a wrong input size in their own ways
        text = (str(error) or type(error).__name__).splitlines()[0]
        raise ThawlineError(problem.misfit(backbone.name, policy, text)) from error


def _embed(
    chain: Chain,
    stops: Sequence[int],
    examples: Examples,
    rows: npt.NDArray[np.int64],
    compute: Compute,
    batch_size: int,
    paths: Sequence[Path],
) -> None:
    """Write the pooled output after each of `stops` layers, for all rows, batch by batch."""
    import torch

    from tasks.engine import lengths, pooling
    from tasks.engine.ahead import ahead
    from tasks.engine.fold import folded

    parts: list[nn.Module] = [folded(chain.part(a, b)) for a, b in pairwise([0, *stops])]
    pool = pooling.of(chain.model)
    arrays: list[np.memmap[tuple[int, ...], np.dtype[np.float32]]] = []

    def inputs(chosen: Rows) -> Tensor:
        return examples.batch(rows[chosen], 0)

    batches = lengths.batches(len(rows), batch_size, examples.lengths(rows))
    with (
        contextlib.ExitStack() as stack,
        torch.inference_mode(),
        progress(f"embedding with {paths[0].parent.name}", len(rows)) as advance,
    ):
        temporaries = [stack.enter_context(files.atomic(path)) for path in paths]
        for chosen, batch in zip(batches, ahead(inputs, batches), strict=True):
            values, pooled = compute.send(batch), []
            with compute.autocast():
                for part in parts:
                    values = part(values)
                    pooled.append(pool(values).cpu().numpy())
            if not arrays:  # widths are known now; mapped files keep the memory flat
                arrays = [
                    np.lib.format.open_memmap(path, "w+", np.float32, (len(rows), x.shape[1]))
                    for path, x in zip(temporaries, pooled, strict=True)
                ]
                for path in temporaries:
                    files.reserve(path)
            for array, x in zip(arrays, pooled, strict=True):
                array[chosen] = x
            advance(len(batch))
        for array in arrays:
            array.flush()
