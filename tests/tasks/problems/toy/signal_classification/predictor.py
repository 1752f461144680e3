from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from tasks.problems.signal_classification import data, networks

from tasks import packaged

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.records import Project


class Predictor:
    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.digest, self.record = packaged.opened(Path(folder))
        head: Any = SimpleNamespace(**self.record["head"])
        self.model = networks.build(self.record["backbone"], len(self.record["classes"]), head)
        self.model.load_state_dict(load_file(Path(folder) / "model.safetensors"))
        self.model.eval()

    def predict(self, inputs: Sequence[Any]) -> pd.DataFrame:
        """Each a text with numbers, or an array [length]."""
        errors: list[str | None] = [None] * len(inputs)
        shares = np.full((len(inputs), len(self.record["classes"])), np.nan)
        for row, given in enumerate(inputs):
            try:
                numbers = given if isinstance(given, str) else " ".join(map(str, given))
                signal = data.parsed(numbers, self.record["inputs"]["length"])
            except ValueError as error:
                errors[row] = str(error)
                continue
            with torch.inference_mode():
                logits = self.model(torch.from_numpy(signal)[None])[0].double()
            shares[row] = (logits / self.record["temperature"]).softmax(0).numpy()
        return packaged.answers(self.record, shares, errors)


def describe(project: Project, params: Params, backbone: str) -> dict[str, Any]:
    length = cast(Any, params.prepare).length
    return {"network": {"name": backbone}, "inputs": {"length": length}}
