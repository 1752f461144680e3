"""A problem as small as one can be: short signals, eight numbers each, read from a CSV file.

It is what `CONTRIBUTING.md` means by "one folder": the tests put it beside the real problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tasks.problems import INPUT, Panel, Sections, Shown, Views, Words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import pandas as pd
    from tasks.problems.signal_classification.parameters import SignalAugment, SignalPrepare
    from tasks.problems.signal_classification.views import SignalExamples
    from torch import Tensor, nn

    from tasks.baselines import Baseline
    from tasks.params import AugmentParams, EmbedParams, HeadParams, Params, PrepareParams
    from tasks.problems import Backbone
    from tasks.records import Project, ViewPolicy

WORDS = Words("signal", "signals", "a signal", "measurement", "measurements")
LIBRARIES = ("numpy",)
REQUIREMENTS = ()
PACKAGED = ("length",)
TELLING = ("mean",)
LOOKS_WITH = "mlp_small"
FEW_EACH: dict[str, int] = {}


def sections() -> Sections:
    from tasks.problems.signal_classification.parameters import SignalAugment, SignalPrepare

    return Sections(SignalPrepare, SignalAugment)


def proposals(data: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"augment.noise": 0.05}


def recipe(name: str) -> dict[str, Any]:
    return {"augment.policy": "noise", "train.mix": "none" if name == "contrastive" else "mixup"}


def places(prepare: PrepareParams) -> dict[str, str]:
    return {}


def read(params: PrepareParams, root: Path) -> pd.DataFrame:
    from tasks.problems.signal_classification import data

    return data.read(cast("SignalPrepare", params), root)


def store(
    frame: pd.DataFrame, folder: Path, params: PrepareParams, threads: int
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    from tasks.problems.signal_classification import data

    return data.store(frame, folder, cast("SignalPrepare", params))


def near_duplicates(frame: pd.DataFrame, folder: Path) -> npt.NDArray[np.int64]:
    from tasks.problems.signal_classification import data

    return data.near_duplicates(frame, folder)


def details(frame: pd.DataFrame, folder: Path) -> dict[str, Any]:
    return {"mean": {"min": float(frame["mean"].min()), "max": float(frame["mean"].max())}}


def policies() -> list[str]:
    return ["none", "noise"]


def policy(params: AugmentParams, seed: int) -> ViewPolicy:
    from tasks.problems.signal_classification import views

    return views.policy(cast("SignalAugment", params), seed)


def preview(project: Project, policy: ViewPolicy, folder: Path) -> None:
    """There is nothing to see."""


def in_words(policy: ViewPolicy) -> Views:
    noisy = bool(policy.transforms)
    return Views(f"{policy.views} noisy views of each signal." if noisy else "the plain signal.")


def examples(project: Project, policy: ViewPolicy, backbone: Backbone) -> SignalExamples:
    from tasks.problems.signal_classification import views

    return views.examples(project, policy)


def test_views(inputs: Tensor, policy: ViewPolicy) -> list[Tensor]:
    return [inputs]


def backbone(name: str, embed: EmbedParams, root: Path) -> Backbone:
    from tasks.problems.signal_classification import networks

    return networks.backbone(name, embed, root)


def build(backbone: Backbone, classes: int, head: HeadParams) -> tuple[nn.Module, str]:
    from tasks.problems.signal_classification import networks

    return networks.build(backbone.name, classes, head), networks.HEAD


def fetch(name: str) -> Path:
    from tasks.problems.signal_classification import networks

    return Path(networks.__file__)  # the weights follow from the code


def misfit(name: str, policy: ViewPolicy, reason: str) -> str:
    return f"{name} does not take such signals ({reason}); set prepare.length to 8"


def baselines(project: Project) -> list[Baseline]:
    """The class with the nearest mean."""
    import numpy as np
    import pandas as pd
    from tasks.problems.signal_classification import data

    from tasks.baselines import Baseline

    manifest, signals = pd.read_parquet(project.manifest), data.signals(project.prepared)
    test, targets = (manifest["split"] == "test").to_numpy(), manifest["target"].to_numpy()
    means = np.stack(
        [signals[~test & (targets == target)].mean(0) for target in range(targets.max() + 1)]
    )
    apart = np.linalg.norm(signals[test][:, None] - means, axis=-1)
    return [Baseline("nearest_mean", "The class with the nearest mean", apart.argmin(1), {})]


def panels(project: Project) -> list[Panel]:
    import pandas as pd

    means = pd.read_parquet(project.manifest).groupby("label")["mean"].mean()
    rows = tuple((str(label), f"{mean:.2f}") for label, mean in means.items())
    return [Panel("levels", "Levels", "The mean of each class.", ("class", "level"), rows)]


def shown(project: Project, rows: Sequence[int]) -> list[Shown]:
    return [Shown(text=" ".join(f"{x:.2f}" for x in signal)) for signal in samples(project, rows)]


def usage(record: Mapping[str, Any]) -> tuple[str, str]:
    return '["0 0 1 1 0 0 1 1"]', ""


def assets(project: Project, params: Params, backbone: str) -> dict[str, bytes]:
    return {"unit.txt": b"volts\n"}


def asked(given: Sequence[Path], params: PrepareParams) -> pd.DataFrame:
    import pandas as pd
    from tasks.problems.signal_classification import data

    frames = [data.table(path, cast("SignalPrepare", params)) for path in given]
    return pd.concat(frames, ignore_index=True)[["file", "row", INPUT]]


def samples(project: Project, rows: Sequence[int]) -> list[Any]:
    from tasks.problems.signal_classification import data

    return list(data.signals(project.prepared)[list(rows)])


def input_example() -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame({"signal": ["0 0 1 1 0 0 1 1"]})
