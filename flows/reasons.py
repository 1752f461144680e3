"""Why a stage would run: which parameter, input, output or code differs from its last run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.versions import CODE_FILE

_ABSENT = object()
_INPUT = {"modified": "changed", "deleted": "is missing", "new": "is new"}
_OUTPUT = {
    "modified": "was changed by hand",
    "deleted": "is missing",
    "not in cache": "is not in DVC's cache",
    "new": "is not known yet",
}


def reasons(stage: Any, made_again: set[str]) -> list[str]:
    """Every reason for a DVC stage to run, in words; empty: it is unchanged.

    `made_again`: absolute paths of outputs that stages before it will make anew; what such an
    input looks like now says nothing.
    """
    if stage.cmd and not stage.deps and not stage.outs:
        return ["has neither inputs nor outputs, so it always runs"]
    if all(dep.hash_info.value is None for dep in stage.deps) and not any(
        out.hash_info.value for out in stage.outs
    ):
        return ["has not run yet"]
    found = ["its command changed"] if stage.changed_stage() else []
    found += ["is marked to run always"] if stage.always_changed else []
    for dep in stage.deps:
        if hasattr(dep, "read_params"):
            found += _changed_params(dep)
        elif not _within(dep.fs_path, made_again):
            found += [_say("input", dep, state, _INPUT) for state in dep.status().values()]
    for out in stage.outs:
        found += [_say("output", out, state, _OUTPUT) for state in out.status().values()]
    return found


def _say(kind: str, path: Any, state: str, words: dict[str, str]) -> str:
    return f"{kind} {path} {words.get(state, state)}"


def _within(path: str, folders: set[str]) -> bool:
    """Whether a path is one of some outputs, lies in one, or holds one."""
    here = Path(path)
    return any(
        here == (other := Path(folder)) or other in here.parents or here in other.parents
        for folder in folders
    )


def _changed_params(dep: Any) -> list[str]:
    old, new = flatten(dep.hash_info.value or {}), flatten(dep.read_params())
    changed = [key for key in {**old, **new} if old.get(key, _ABSENT) != new.get(key, _ABSENT)]
    if Path(str(dep)).name == CODE_FILE:
        return [f"its code changed (version {_show(old, k)} → {_show(new, k)})" for k in changed]
    return [f"{key} {_show(old, key)} → {_show(new, key)}" for key in changed]


def _show(values: dict[str, Any], key: str) -> str:
    return "not set" if key not in values else str(values[key])


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as key paths: `{"a": {"b": 1}}` → `{"a.b": 1}`; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{path}.")
        else:
            flat[path] = list(value) if isinstance(value, tuple) else value
    return flat
