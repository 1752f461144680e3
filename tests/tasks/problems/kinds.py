"""Data of each kind of problem, small and real: what the contract is tried with.

A new problem adds its own to `KINDS`, under its name; other data of it, under a name of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from tasks.params import Params
from tests.tasks import drawn_project

TOY = Path(__file__).parent / "toy"  # a folder of problems beside the real one


@dataclass(frozen=True)
class Kind:
    """One problem's data, with one example that cannot be read."""

    draw: Callable[[Path], str]  # writes data into a folder; its name there
    ask: Callable[[Path], list[Path]]  # writes two inputs of `predict` into a folder
    backbone: str
    unreadable: Any  # what its predictor cannot read
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)
    problem: str = ""  # where it is not the name in `KINDS`

    def params(self, problem: str, data: str) -> Params:
        shared: dict[str, dict[str, Any]] = {
            "prepare": {"data": data, "split": {"salt": 1}},
            "augment": {"views": 2},
            "embed": {"backbones": [self.backbone], "batch_size": 8},
            "select": {"race": 0},
            "train": {"epochs": 3, "batch_size": 8},
            "evaluate": {"bootstrap": 100},
            "register": {"experiment": "contract", "model": "contract"},
        }
        tree = {key: value | self.sections.get(key, {}) for key, value in shared.items()}
        fixed = {"problem": problem, "threads": 1, "device": "cpu", "precision": "float32"}
        return Params.model_validate(fixed | tree)


def _images(folder: Path) -> str:
    random = np.random.default_rng(0)
    for target, name in enumerate(drawn_project.CLASSES):
        (folder / "drawn" / name).mkdir(parents=True)
        for number in range(16):
            image = Image.fromarray(drawn_project._drawn(target, random, grey=False))
            image.save(folder / "drawn" / name / f"{number}.png")
    (folder / "drawn" / name / "broken.png").write_bytes(b"no image")
    return "drawn"


def _pictures(folder: Path) -> list[Path]:
    Image.linear_gradient("L").save(folder / "a.png")
    Image.radial_gradient("L").save(folder / "b.png")
    return [folder]


OWN_WORDS = {"praise": "good fine great", "抱怨": "退货 太差 bad", "question": "how when where"}
COMMON_WORDS = "this the film order it was is we you and then so with for on at of to"


def _text(random: np.random.Generator, *labels: str) -> str:
    """Words by chance, and for each label some that no other label has."""
    chosen = [*random.choice(COMMON_WORDS.split(), random.integers(3, 16))]
    for label in labels:
        chosen += [*random.choice(OWN_WORDS[label].split(), 3)]
    return " ".join(random.permutation(chosen))


def _texts(folder: Path) -> str:
    random = np.random.default_rng(0)
    rows = [(_text(random, label), label) for label in OWN_WORDS for _ in range(24)]
    rows.append(("", "praise"))
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "texts.csv", index=False)
    return "texts.csv"


def _texts_of_several(folder: Path) -> str:
    """Each label as often as not, whatever the others: eight combinations, one of none."""
    random = np.random.default_rng(0)
    rows = []
    for _ in range(120):
        labels = [label for label in OWN_WORDS if random.random() < 0.5]
        rows.append((_text(random, *labels), "; ".join(random.permutation(labels))))
    rows.append(("", "praise"))
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(folder / "texts.csv", index=False)
    return "texts.csv"


def _asked(folder: Path) -> list[Path]:
    (folder / "new.csv").write_text('text\nthis was a great film\n"退货, and\nbad"\n')
    return [folder / "new.csv"]


def _signals(folder: Path) -> str:
    random = np.random.default_rng(0)
    shapes = {"flat": np.zeros(8), "上升": np.linspace(0, 1, 8), "jump": np.repeat([0.0, 1.0], 4)}
    rows = [
        (" ".join(f"{x:.4f}" for x in shape + random.normal(0, 0.05, 8)), label)
        for label, shape in shapes.items()
        for _ in range(40)
    ]
    rows.append(("1 2 x", "flat"))
    pd.DataFrame(rows, columns=["signal", "label"]).to_csv(folder / "signals.csv", index=False)
    return "signals.csv"


def _measured(folder: Path) -> list[Path]:
    (folder / "new.csv").write_text("signal\n0 0 0 0 0 0 0 0\n0 0 0 0 1 1 1 1\n")
    return [folder / "new.csv"]


TEXT_VIEWS = {"policy": "token_dropout", "views": 2, "max_tokens": 32}

KINDS = {
    "image_classification": Kind(
        _images, _pictures, "mobilenet_v2", "no such file", {"augment": {"image_size": 64}}
    ),
    "signal_classification": Kind(_signals, _measured, "mlp_small", "no numbers"),
    "text_classification": Kind(_texts, _asked, "minilm_l6", "", {"augment": TEXT_VIEWS}),
    "texts of several labels": Kind(
        _texts_of_several,
        _asked,
        "minilm_l6",
        "",
        {"augment": TEXT_VIEWS, "prepare": {"label_separator": ";"}},
        "text_classification",
    ),
}
