"""A packaged model as one file of weights that says what it is: a starting point.

The safetensors file carries configuration, vocabulary, classes and origin in its header, so that
one sha256 binds all, and the same model gives the same bytes wherever it is taken from.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tasks import files
from tasks.errors import ThawlineError

_KEY = "thawline_start"
_NAMED = 3  # classes named in the pretraining


@dataclass(frozen=True)
class Start:
    """What a packaged model was, as far as a next training needs to know."""

    backbone: str  # as in `embed.backbones`
    classes: list[str]  # in the order of the head's outputs
    head: dict[str, Any]  # `hidden` and `dropout`
    config: dict[str, Any]  # of the encoder
    vocabulary: str
    max_tokens: int
    truncate: str
    source: str
    licence: str
    pretraining: str

    @property
    def values(self) -> dict[str, Any]:
        """What the inputs of the next training have to share."""
        return {"augment.max_tokens": self.max_tokens, "augment.truncate": self.truncate}

    @property
    def linear(self) -> bool:
        """Whether the head has a row a class on the backbone's own features."""
        return not self.head["hidden"]


def write(folder: Path, origin: str, path: Path) -> Start:
    """Write a packaged folder, verified by the caller, as one file; `origin` names it to people."""
    record = files.read_json(folder / "model.json")
    weights, classes = record["weights"], record["classes"]
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    start = Start(
        backbone=record["backbone"],
        classes=classes,
        head={key: record["head"][key] for key in ("hidden", "dropout")},
        config=record["network"]["config"],
        vocabulary=(folder / "tokenizer.json").read_text(encoding="utf-8"),
        max_tokens=record["inputs"]["max_tokens"],
        truncate=record["inputs"]["truncate"],
        source=origin,
        licence=weights["licence"],
        pretraining=f"{weights['pretraining']}, then {', '.join(classes[:_NAMED])}{more}",
    )
    text = json.dumps(asdict(start), ensure_ascii=False, sort_keys=True)
    with files.atomic(path) as temporary:
        save_file(load_file(folder / "model.safetensors"), temporary, metadata={_KEY: text})
    return start


def read(path: Path) -> Start | None:
    """What a file says of the packaged model that it was; None for other files of weights."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        return None if text is None else Start(**json.loads(text))
    except SafetensorError:
        return None
    except (ValueError, TypeError) as error:
        raise ThawlineError(
            f"{path.name} was written by another version of Thawline ({error}); take the model "
            "again with: thawline start-from"
        ) from None
