"""The folder is the registry: a plug-in is a module or package found by its name in a folder."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType

from tasks.errors import UnknownName


def names(folder: ModuleType) -> list[str]:
    """Names of the plug-ins in a package, sorted; those that begin with `_` are not plug-ins."""
    found = pkgutil.iter_modules(folder.__path__)
    return sorted(module.name for module in found if not module.name.startswith("_"))


def load(folder: ModuleType, name: str) -> ModuleType:
    """Import the plug-in `name` of a package; `UnknownName` lists what there is."""
    known = names(folder)
    if name not in known:
        kind = folder.__name__.rsplit(".", 1)[-1].removesuffix("s").replace("_", " ")
        kind = {"thaw strategie": "thaw strategy"}.get(kind, kind)
        raise UnknownName(kind, name, known)
    return importlib.import_module(f"{folder.__name__}.{name}")
