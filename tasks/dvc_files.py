"""The `.dvc` files that say which data a project reads."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tasks import params_file, problems
from tasks.errors import ThawlineError


def of_data(root: Path) -> list[Path]:
    """Those in `data/`, and those of what `prepare` reads, or of a folder around it, in `root`."""
    found = dict.fromkeys(sorted((root / "data").glob("*.dvc")))
    with contextlib.suppress(ThawlineError):  # parameters that cannot be used name no data
        params = params_file.load(root)
        places = problems.load(params.problem).places(params.prepare).values()
        for place in (params.prepare.data, *places):
            path = Path(os.path.normpath(root / place))
            inside = [each for each in (path, *path.parents) if each.is_relative_to(root)]
            found |= {each.with_name(f"{each.name}.dvc"): None for each in inside if each != root}
    return [path for path in found if path.is_file()]
