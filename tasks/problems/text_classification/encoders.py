"""Encoders of the BERT family as a chain of layers between which a single tensor passes.

That tensor is the hidden states with one more channel, which says what is padding: [n, t, d + 1].
The layers themselves are those of transformers, under their own names. A packaged model carries
this module, so it needs torch and transformers alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from tasks.engine import heads
from tasks.errors import ThawlineError
from tasks.problems.text_classification import tokens

if TYPE_CHECKING:  # a packaged model does without pydantic
    from tasks.params import HeadParams

HEAD = "head"
LAYERS = {  # model_type of transformers → where its layers are
    "bert": "encoder.layer",
    "camembert": "encoder.layer",
    "distilbert": "transformer.layer",
    "roberta": "encoder.layer",
    "xlm-roberta": "encoder.layer",
}
BEHIND = ("camembert", "roberta", "xlm-roberta")  # which count positions from behind the padding id


class Encoder(nn.Module):
    """Token ids [n, t] → [n, classes]: embeddings, layers, the mean over what is no padding, head.

    `inner` is a model of transformers without a head, whose parts this one takes over.
    """

    def __init__(self, inner: nn.Module, head: nn.Module, vocabulary: str = "") -> None:
        super().__init__()
        config: Any = inner.config
        self.config = config
        self.vocabulary = vocabulary  # tokenizer.json; of a pretrained one
        kind = str(config.model_type)
        if kind not in LAYERS:
            raise ThawlineError(
                f"an encoder of type {kind} is not known; choose one of: {', '.join(LAYERS)}"
            )
        self.place = LAYERS[kind]
        # By the tokenizer: multilingual MiniLMs say 0, which begins each text in their vocabulary.
        known = tokens.padding(vocabulary)
        self.padding = int(config.pad_token_id or 0) if known is None else known
        self.embeddings = inner.get_submodule("embeddings")
        above = self.place.partition(".")[0]
        self.add_module(above, inner.get_submodule(above))
        for part in (self.embeddings, *self.layers):
            part.kept_whole = True
        self.pool_examples = Mean()
        self.head = head

    @property
    def layers(self) -> nn.ModuleList:
        found = self.get_submodule(self.place)
        assert isinstance(found, nn.ModuleList)
        return found

    @property
    def most_tokens(self) -> int:
        """The longest input, in tokens."""
        first = self.padding + 1 if self.config.model_type in BEHIND else 0
        return int(self.config.max_position_embeddings) - first

    def forward(self, ids: Tensor) -> Tensor:
        values = packed(self.embeddings(ids), (ids != self.padding).unsqueeze(-1))
        for layer in self.layers:
            values = packed(layer(states(values), attended(values)), present(values))
        logits: Tensor = self.head(self.pool_examples(values))
        return logits


class Mean(nn.Module):
    """The mean of the hidden states that are no padding, in float32: [n, t, d + 1] → [n, d]."""

    def forward(self, values: Tensor) -> Tensor:
        values = values.float()
        inside = present(values)
        total: Tensor = (states(values) * inside).sum(1)
        return total / inside.sum(1).clamp(min=1)


def packed(hidden: Tensor, inside: Tensor) -> Tensor:
    """Hidden states [n, t, d], and which are no padding [n, t, 1], as one tensor."""
    return torch.cat([hidden * inside, inside.to(hidden.dtype)], dim=-1)


def states(values: Tensor) -> Tensor:
    return values[..., :-1]


def present(values: Tensor) -> Tensor:
    """Which positions are no padding, [n, t, 1]. Of two examples that were mixed, both count."""
    return values[..., -1:] > 0


def attended(values: Tensor) -> Tensor:
    """The same for the attention of each position, bool [n, 1, 1, t]."""
    return present(values).squeeze(-1)[:, None, None, :]


for _name in ("packed", "states", "present", "attended"):  # one operation each in a traced network
    fx.wrap(_name)


def bare(config: dict[str, Any]) -> nn.Module:
    """A model of transformers with random weights, by its configuration."""
    from transformers import AutoConfig, AutoModel

    made = AutoConfig.for_model(**config)
    model: nn.Module = AutoModel.from_config(  # type: ignore[no-untyped-call]
        made, attn_implementation="sdpa"
    )
    return model


def head(width: int, classes: int, params: HeadParams) -> nn.Module:
    """A new head, under keys of its own."""
    return nn.Sequential(*heads.layers(width, classes, params))


def configuration(encoder: Encoder) -> dict[str, Any]:
    """What `bare` needs, JSON-ready."""
    config: dict[str, Any] = encoder.config.to_diff_dict()
    dropped = ("transformers_version", "dtype", "architectures", "_name_or_path")
    kept = {key: value for key, value in config.items() if key not in dropped}
    return {**kept, "model_type": encoder.config.model_type}
