"""Laying a file's tensors on a network: whatever wraps their names, and whatever head they have."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tasks.errors import ThawlineError
from tasks.problems.image_classification.heads import with_head

State = dict[str, Tensor]


def fit(model: nn.Module, head: str, state: State, what: str) -> str:
    """Load `state` into `model`, whose classifier is at path `head`; `what` names both in errors.

    Wrappers' prefixes (`module.`, `backbone.`, any) are stripped. A linear classifier with another
    number of outputs takes the place of the network's; without one, or with one of another kind,
    it gets one of a single output, which says nothing. Returns what a reader should know of that,
    or nothing. Raises `ThawlineError` naming keys below the head that are missing or of
    another shape, and keys that are too many.
    """
    expected = model.state_dict()
    prefix = _prefix(state, [key for key in expected if not _is_in(head, key)], what)
    notes = [f"its part {prefix!r}"] if prefix else []
    state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    own = {key: value for key, value in state.items() if _is_in(head, key)}
    if not _takes(model.get_submodule(head), head, own) and not _reshaped(model, head, own):
        notes.append("without its classifier")
        _replace(model, head, 1)
        _seed(model.get_submodule(head))
        kept = {k: v for k, v in model.state_dict().items() if _is_in(head, k)}
        state = {k: v for k, v in state.items() if k not in own} | kept
    check_keys(state, model.state_dict(), what)
    model.load_state_dict(state)
    return ", ".join(notes)


def check_keys(state: State, expected: dict[str, Any], what: str) -> None:
    """Raises `ThawlineError` with the first differences; `what` is “FILE does not fit NAME”."""
    shapes = [k for k, v in expected.items() if k in state and v.shape != state[k].shape]
    differences = [
        *(f"{key} is missing" for key in expected if key not in state),
        *(f"{key} is not of this network" for key in state if key not in expected),
        *(f"{k} is {list(state[k].shape)}, not {list(expected[k].shape)}" for k in shapes),
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ThawlineError(
            f"{what}: {', '.join(differences[:3])}{more}; give the file of this very network"
        )


def _is_in(path: str, key: str) -> bool:
    return key.startswith(f"{path}.")


def _prefix(state: State, wanted: list[str], what: str) -> str:
    """What stands before the network's keys in `state`; empty when nothing does, or nothing fits.

    Whatever lies outside it belongs to other modules, such as a head of one's own.
    """
    names = set(wanted)
    found: Counter[str] = Counter()
    for key in state:
        parts = key.split(".")
        for cut in range(len(parts)):
            if ".".join(parts[cut:]) in names:
                found["".join(f"{part}." for part in parts[:cut])] += 1
    if not found or found[""] == len(names):
        return ""
    most = max(found.values())
    best = [prefix for prefix, count in found.items() if count == most]
    if len(best) > 1:
        raise ThawlineError(
            f"{what}: it holds such a network {len(best)} times, as {' and as '.join(best)}; save "
            "the state dict of the one that is meant in a file of its own"
        )
    return best[0]


def _takes(module: nn.Module, path: str, own: State) -> bool:
    """Whether a classifier at `path` has just these tensors."""
    expected = {f"{path}.{key}": value.shape for key, value in module.state_dict().items()}
    return expected == {key: value.shape for key, value in own.items()}


def _reshaped(model: nn.Module, head: str, own: State) -> bool:
    """Give the network a linear classifier of as many outputs as the tensors have, if that fits."""
    matrices = [value for value in own.values() if value.ndim == 2]
    if len(matrices) != 1:
        return False
    before = model.get_submodule(head)
    _replace(model, head, len(matrices[0]))
    if _takes(model.get_submodule(head), head, own):
        return True
    model.set_submodule(head, before)
    return False


def _replace(model: nn.Module, head: str, outputs: int) -> None:
    with_head(model, head, outputs, SimpleNamespace(hidden=[], dropout=0.0))  # type: ignore[arg-type]


def _seed(module: nn.Module) -> None:
    """The same random weights each time, as results must not depend on the day."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for each in module.modules():
            if isinstance(each, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d):
                each.reset_parameters()
