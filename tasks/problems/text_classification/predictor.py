"""A packaged model folder → labels and calibrated probabilities of texts.

Stands alone on torch, transformers, tokenizers, NumPy, pandas and safetensors: a packaged model
carries it, so that it can be used where Thawline is not installed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from tasks import packaged
from tasks.engine import labels
from tasks.engine.lengths import Ragged, batches
from tasks.engine.multi_layer import MultiLayer
from tasks.problems.text_classification import encoders, tokens
from tasks.problems.text_classification.encoders import HEAD, Encoder
from tasks.records import Reading, ViewPolicy

if TYPE_CHECKING:
    from tasks.params import Params
    from tasks.records import Project

VOCABULARY = "tokenizer.json"
BATCH = 32


class Predictor:
    """A classifier of texts, loaded from a packaged folder.

    >>> Predictor("models").predict(["a film to remember"])  # doctest: +SKIP
          label  probability error  p_negative  p_positive
    0  positive         0.97  None        0.03        0.97
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        """Load and check the folder.

        Raises `ThawlineError` when a file is not the one that was packaged.
        """
        folder = Path(folder)
        self.digest, self.record = packaged.opened(folder)
        self.classes: list[str] = self.record["classes"]
        self.device = torch.device(device)
        vocabulary = (folder / VOCABULARY).read_text(encoding="utf-8")
        self.tokenizer = tokens.tokenizer(vocabulary)
        self.padding, model = _network(self.record, vocabulary)
        model.load_state_dict(load_file(folder / "model.safetensors"))
        self.model = model.to(self.device).eval()

    def predict(self, inputs: Sequence[Any]) -> pd.DataFrame:
        """One row a text: `label`, `probability`, `error`, and `p_<class>` for each class.

        What is no text, is empty or too long gets no label, NaN probabilities, and the reason in
        `error`.
        """
        errors = [self._refused(text) for text in inputs]
        shares = np.full((len(inputs), len(self.classes)), np.nan)
        rows = np.flatnonzero([error is None for error in errors])
        if len(rows):
            ids = self.tokens([inputs[int(row)] for row in rows])
            for chosen in batches(len(rows), BATCH, ids.lengths):
                shares[rows[chosen]] = self.probabilities(ids.take(chosen, self.padding).long())
        return packaged.answers(self.record, shares, errors)

    def tokens(self, texts: Sequence[str]) -> Ragged:
        """The token ids of texts, by the same steps as in training's plain view."""
        view = self.record["inputs"]
        found = tokens.encoded(self.tokenizer, texts, view["max_tokens"], view["truncate"])
        lengths = np.asarray([len(ids) for ids in found], np.int64)
        return Ragged(torch.from_numpy(np.concatenate(found)), lengths)

    def probabilities(self, ids: Tensor) -> npt.NDArray[np.float64]:
        """Token ids [n, t] → [n, classes], temperature applied."""
        with torch.inference_mode():
            logits = self.model(ids.to(self.device)).double() / self.record["temperature"]
            said = labels.probabilities(logits, packaged.several(self.record))
            shares: npt.NDArray[np.float64] = said.cpu().numpy()
        return shares

    def _refused(self, text: Any) -> str | None:
        if not isinstance(text, str):
            return "is no text"
        return tokens.refusal(text, self.record["inputs"]["max_characters"]) or None


def describe(project: Project, params: Params, backbone: str) -> dict[str, Any]:
    """What `model.json` says of the network, and of how a text becomes its input."""
    from tasks.problems.text_classification import backbones
    from tasks.problems.text_classification.parameters import TextPrepare

    policy = ViewPolicy.read(project.augment / "policy.json")
    prepare = cast(TextPrepare, params.prepare)
    encoder = backbones.backbone(backbone, params.embed, project.root).model
    return {
        "network": {
            "library": "transformers",
            "config": encoders.configuration(cast(Encoder, encoder)),
        },
        "inputs": {"max_characters": prepare.max_characters, **policy.shape},
    }


def _network(record: dict[str, Any], vocabulary: str) -> tuple[int, nn.Module]:
    """The id that stands for padding, and the network with random weights."""
    inner = encoders.bare(record["network"]["config"])
    head = cast(Any, SimpleNamespace(**record["head"]))
    classes, width = len(record["classes"]), int(inner.config.hidden_size)  # type: ignore[union-attr, arg-type]
    model = Encoder(inner, encoders.head(width, classes, head), vocabulary)
    if reading := record.get("reading"):
        return model.padding, MultiLayer(model, HEAD, Reading(**reading), classes, head)
    return model.padding, model
