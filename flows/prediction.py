"""`thawline predict`: the champion's answers for image files and folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks import params
from tasks.errors import ThawlineError
from tasks.records import Project

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".heic", ".heif")


def predictions(
    project: Project, given: list[Path], output: Path, model: str | None
) -> dict[str, Any]:
    """Predict for files, and for the images in folders; `{images, file}`.

    Raises `ThawlineError` when there is nothing to predict for.
    """
    images = [image for path in given for image in _images(path)]
    if not images:
        raise ThawlineError(f"no images in {', '.join(map(str, given))}; known: {SUFFIXES}")
    from tasks import predict

    predict.predict(project, params.load(project.root), images, output, model)
    return {"images": len(images), "file": str(output)}


def _images(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not path.exists():
        raise ThawlineError(f"there is no file or folder {path}")
    return [path]
