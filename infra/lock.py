"""Write the locked versions from what is installed in this environment.

`requirements.lock` is the core; `requirements-extras.lock` what the extras that the image has need
beside it; `requirements-dev.lock` all that the `dev` extra needs beside the core. Walks the
requirements of each; names no index. CUDA packages get a
marker, as other platforms do not have them.
"""

from __future__ import annotations

from importlib.metadata import distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BUILD = {"setuptools", "wheel", "packaging"}  # editable installation without a download
IMAGE = ("distributed", "lora", "onnx", "postgres", "s3", "text")  # extras
LINUX_ONLY = ("nvidia-", "cuda-", "triton")


def closure(name: str, extras: tuple[str, ...], seen: dict[str, set[str]]) -> None:
    """Add the installed requirements of a distribution, and theirs, to `seen`."""
    name = canonicalize_name(name)
    new = set(extras or ("",)) - seen.setdefault(name, set())
    seen[name] |= new
    for text in distribution(name).requires or [] if new else []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in new):
            closure(requirement.name, (*requirement.extras, ""), seen)


def line(name: str) -> str:
    marker = '; sys_platform == "linux" and platform_machine == "x86_64"'
    return f"{name}=={version(name)}{marker if name.startswith(LINUX_ONLY) else ''}"


def beyond(core: dict[str, set[str]], extras: tuple[str, ...]) -> set[str]:
    """What extras of Thawline need beside the core."""
    seen = {name: set(known) for name, known in core.items()} | {"thawline": set()}
    closure("thawline", ("", *extras), seen)
    return seen.keys() - core.keys() - BUILD


def main() -> None:
    core: dict[str, set[str]] = {}
    closure("thawline", ("",), core)
    for file, names in (
        ("requirements.lock", (core.keys() | BUILD) - {"thawline"}),
        ("requirements-extras.lock", beyond(core, IMAGE)),
        ("requirements-dev.lock", beyond(core, ("dev",))),
    ):
        header = "# Written by `make lock`.\n"
        (ROOT / file).write_text(header + "\n".join(map(line, sorted(names))) + "\n")


if __name__ == "__main__":
    main()
