"""Write requirements.lock and requirements-dev.lock from what is installed in this environment.

Walks the requirements of the core and of the `dev` extra; names no index. CUDA packages get a
marker, as other platforms do not have them.
"""

from __future__ import annotations

from importlib.metadata import distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
BUILD = {"setuptools", "wheel", "packaging"}  # editable installation without a download
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


def main() -> None:
    core: dict[str, set[str]] = {}
    closure("thawline", ("",), core)
    everything = {name: set(extras) for name, extras in core.items()}
    everything["thawline"] = set()
    closure("thawline", ("", "dev"), everything)
    for file, names in (
        ("requirements.lock", (core.keys() | BUILD) - {"thawline"}),
        ("requirements-dev.lock", everything.keys() - core.keys() - BUILD),
    ):
        header = "# Written by `make lock`.\n"
        (ROOT / file).write_text(header + "\n".join(map(line, sorted(names))) + "\n")


if __name__ == "__main__":
    main()
