"""A packaged model as one file of weights that says what it is: a starting point.

The safetensors file carries the facts in its header, so that one sha256 binds tensors, classes and
origin, and the same model gives the same bytes wherever it is taken from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tasks import files
from tasks.errors import ThawlineError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    S = TypeVar("S", bound=DataclassInstance)

_KEY = "thawline_start"
_NAMED = 3  # classes named in the pretraining


def facts(record: Mapping[str, Any], origin: str) -> dict[str, Any]:
    """What `model.json` says that a start of any problem says too; `origin` names it to people."""
    weights, classes = record["weights"], record["classes"]
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    return {
        "backbone": record["backbone"],
        "classes": classes,
        "head": {key: record["head"][key] for key in ("hidden", "dropout")},
        "source": origin,
        "licence": weights["licence"],
        "pretraining": f"{weights['pretraining']}, then {', '.join(classes[:_NAMED])}{more}",
    }


def write(folder: Path, start: DataclassInstance, path: Path) -> None:
    """Write the weights of a packaged folder, verified by the caller, with what they are."""
    from safetensors.torch import load_file, save_file

    text = json.dumps(asdict(start), ensure_ascii=False, sort_keys=True)
    with files.atomic(path) as temporary:
        save_file(load_file(folder / "model.safetensors"), temporary, metadata={_KEY: text})


def read(path: Path, kind: type[S]) -> S | None:
    """What a file says of the packaged model that it was; None for other files of weights."""
    from safetensors import SafetensorError, safe_open

    if path.suffix != ".safetensors":
        return None
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_KEY)
        return None if text is None else kind(**json.loads(text))
    except SafetensorError:
        return None  # the reader of its tensors says what is wrong
    except (ValueError, TypeError) as error:
        raise ThawlineError(
            f"{path.name} was written by another version of Thawline ({error}); take the model "
            "again with: thawline start-from"
        ) from None
