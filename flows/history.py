"""What DVC's files say in every commit that git can reach."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

from tasks.errors import ThawlineError

# Wherever in the repository: the project's folder may have moved.
_PATHS = (":(top,glob)**/dvc.lock", ":(top,glob)**/*.dvc")


def has_git(root: Path) -> bool:
    """Whether a folder is in a git repository; asks no git, which might refuse to say."""
    return any((folder / ".git").exists() for folder in (root, *root.parents))


def is_shallow(root: Path) -> bool:
    return _git(root, "rev-parse", "--is-shallow-repository").strip() == b"true"


def dvc_files(root: Path, last: int | None = None) -> Iterator[str]:
    """The texts of all lock and `.dvc` files of the commits that any ref reaches, each text once.

    Those of the index and of all stashes too. `last`: only so many commits of each ref. Raises
    `ThawlineError` when git cannot say.
    """
    blobs = _staged(root)
    for trees in _trees(root, last):
        blobs |= _blobs(root, trees)
    yield from _texts(root, sorted(blobs))


def _trees(root: Path, last: int | None) -> Iterator[set[bytes]]:
    stashes = _git(root, "stash", "list", "--format=%H").decode().split()
    if last is None:
        yield _revisions(root, "--all", *stashes)
        return
    refs = _git(root, "for-each-ref", "--format=%(refname)").decode().split()
    if _git(root, "rev-parse", "--quiet", "--verify", "HEAD", may_fail=True):
        refs.append("HEAD")
    for ref in [*refs, *stashes]:
        commit = f"{ref}^{{commit}}"
        if _git(root, "rev-parse", "--quiet", "--verify", commit, may_fail=True):
            yield _revisions(root, f"--max-count={last}", commit)


def _revisions(root: Path, *which: str) -> set[bytes]:
    lines = _git(root, "rev-list", "--format=%T", *which).splitlines()
    return {line for line in lines if not line.startswith(b"commit ")}


def _blobs(root: Path, trees: set[bytes]) -> set[bytes]:
    """The files in question of whole trees, by their difference from an empty one."""
    empty = _git(root, "hash-object", "-t", "tree", "--stdin", given=b"").strip()
    pairs = b"".join(empty + b" " + tree + b"\n" for tree in sorted(trees))
    options = ("--stdin", "-r", "--raw", "--no-renames", "--no-abbrev")
    lines = _git(root, "diff-tree", *options, "--", *_PATHS, given=pairs).splitlines()
    entries = [line.split() for line in lines if line.startswith(b":")]
    return {entry[3] for entry in entries if entry[1].startswith(b"100")}  # no links, no submodules


def _staged(root: Path) -> set[bytes]:
    lines = _git(root, "ls-files", "--stage", "--", *_PATHS).splitlines()
    return {line.split()[1] for line in lines if line.startswith(b"100")}


def _texts(root: Path, blobs: list[bytes]) -> Iterator[str]:
    answer = _git(root, "cat-file", "--batch", given=b"".join(blob + b"\n" for blob in blobs))
    at = 0
    for blob in blobs:
        end = answer.index(b"\n", at)
        header = answer[at:end].split()
        if len(header) != 3:
            raise _refusal(root, f"it has no {blob.decode()}")
        at = end + 1 + int(header[2]) + 1
        yield answer[end + 1 : at - 1].decode(errors="replace")


def _git(root: Path, *arguments: str, given: bytes | None = None, may_fail: bool = False) -> bytes:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], input=given, capture_output=True, check=False
        )
    except OSError as error:
        raise _refusal(root, str(error)) from None
    if done.returncode and not may_fail:
        raise _refusal(root, " ".join(done.stderr.decode(errors="replace").split()))
    return b"" if done.returncode else done.stdout


def _refusal(root: Path, why: str) -> ThawlineError:
    return ThawlineError(
        f"git cannot say what the commits of {root} need ({why or 'no reason given'}); mend that "
        "first (nothing was deleted)"
    )
