"""The project's DVC repository: opened, its inputs fetched, its errors told in one sentence."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flows.project import DVC_FILE
from tasks import files, problems
from tasks.errors import ThawlineError
from tasks.params import Params, get
from tasks.params_file import PARAMS_FILE, parse
from tasks.records import Project
from tasks.redaction import redact

LOCK_FILE = "dvc.lock"


@contextlib.contextmanager
def opened(project: Project) -> Iterator[Any]:
    """The project's `dvc.repo.Repo`, inside the project's folder; DVC's errors become one sentence.

    DVC names stages relative to the working folder, hence the change of folder.
    """
    from dvc.exceptions import DvcException
    from dvc.repo import Repo

    if not (project.root / ".dvc").is_dir():
        raise ThawlineError(
            f"{project.root} has no DVC repository; make one there with: dvc init --subdir "
            "(or dvc init, where the folder is the root of a git repository)"
        )
    try:
        with contextlib.chdir(project.root), Repo(".", _wait_for_lock=True) as repo:
            yield repo
    except DvcException as error:
        raise ThawlineError(sentence(error)) from error


def sentence(error: BaseException) -> str:
    """What went wrong, from the innermost of DVC's chained errors, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    if "is busy, it is being blocked by" in text:
        holder = re.search(r"\(PID (\d+)\): (.*?)(?: If there are|$)", text)
        path = text.split("'")[1]
        who = f"process {holder[1]} ({holder[2].strip()})" if holder else "another DVC command"
        return f"{who} is working on {path}; wait until it has finished, or end it"
    return redact(text) or type(error).__name__  # which may hold the address of a remote


def mend(project: Project) -> None:
    """Remove what a kill in mid-write can leave of DVC's own state; DVC makes all of it again.

    Only where nothing of DVC's runs: what another process is writing looks just as broken.
    Without `dvc.lock`, DVC finds each stage's results in its run-cache; the file of path locks
    only matters to processes that are running.
    """
    lock = project.root / LOCK_FILE
    if lock.is_file():
        try:
            whole = isinstance(parse(lock.read_bytes()[:999_999] or b"", LOCK_FILE), dict)
        except ThawlineError:
            whole = lock.stat().st_size > 999_999  # too large for our reader: leave it to DVC
        if not whole:
            lock.replace(lock.with_suffix(".lock.broken"))
    paths = project.root / ".dvc/tmp/rwlock"
    if paths.is_file() and not paths.read_bytes().rstrip().endswith(b"}"):
        paths.unlink(missing_ok=True)


def check_params(repo: Any, values: Params) -> None:
    """Refuse a `params.yaml` that leaves out what `dvc.yaml` depends on: DVC knows no defaults."""
    from dvc.dependency.param import ParamsDependency

    lacking: dict[str, list[str]] = {}
    for stage in repo.index.stages:
        for dep in stage.deps:
            if isinstance(dep, ParamsDependency):
                for key in set(dep.params) - set(dep.read_params()):
                    lacking.setdefault(f"{dep}: {key}", []).append(stage.addressing)
    if not lacking:
        return
    place, wanted_by = sorted(lacking.items())[0]
    file, _, key = place.partition(": ")
    hint = ""
    if file == PARAMS_FILE:
        with contextlib.suppress(ValueError):
            value = get(values, key)
            dumped = value.model_dump(by_alias=True) if hasattr(value, "model_dump") else value
            hint = f" (the default is {dumped!r})"
    raise ThawlineError(
        f"{file} has no value for {key!r}, on which {DVC_FILE}'s {wanted_by[0]!r} depends; "
        f"add it{hint}"
    )


def check_places(repo: Any, values: Params) -> None:
    """Refuse a place of the data that the data's stage does not depend on: changes went unseen."""
    problem = problems.load(values.problem)
    stage = next((s for s in repo.index.stages if s.addressing == "prepare"), None)
    for key, place in problem.places(values.prepare).items():
        wanted = Path(repo.root_dir, place)
        if stage is not None and all(Path(dep.fs_path) != wanted for dep in stage.deps):
            raise ThawlineError(
                f"{key} is {place!r}, but {DVC_FILE}'s 'prepare' does not depend on it, so that "
                f"changed {problem.WORDS.many} would go unseen; add the line '- ${{{key}}}' to its "
                "deps"
            )


def _inputs(repo: Any) -> Iterator[tuple[Any, Any]]:
    """The inputs that no command makes, each with its `.dvc` stage, or None."""
    made = {out.fs_path: stage for stage in repo.index.stages for out in stage.outs}
    # a folder above outputs, such as that of all items of a matrix, is made with them
    holders = {str(folder) for path in made for folder in Path(path).parents}
    for stage in repo.index.stages:
        for dep in stage.deps if stage.cmd else ():
            parents = [dep.fs_path, *map(str, Path(dep.fs_path).parents)]
            owner = next((made[path] for path in parents if path in made), None)
            is_made = dep.fs_path in holders if owner is None else owner.cmd is not None
            if not is_made and not hasattr(dep, "read_params"):
                yield dep, owner


def missing_inputs(repo: Any) -> dict[str, Any]:
    """Inputs that no stage makes and that are not there: path → its `.dvc` stage, or None."""
    return {str(dep): owner for dep, owner in _inputs(repo) if not dep.exists}


def outdated_inputs(repo: Any) -> dict[str, Any]:
    """Inputs older than their `.dvc` file, as after `git pull`: path → its `.dvc` stage.

    What a person or a program has put there is newer than that file, or DVC has it in no cache:
    it is used as it is. Raises `ThawlineError` where both have changed, so that nobody's work is
    lost.
    """
    found = {}
    cache = repo.cache.local
    for dep, owner in _inputs(repo):
        for out in owner.outs if owner is not None and dep.exists else ():
            if not (out.use_cache and out.hash_info and out.exists):
                continue
            now, named = out.get_hash(), out.hash_info
            if now == named or Path(owner.path).stat().st_mtime <= files.newest(Path(out.fs_path)):
                continue
            if cache.exists(now.value):
                found[str(out)] = owner
            elif not cache.exists(named.value):
                raise ThawlineError(
                    f"the input {out} was changed without DVC, and {owner.addressing} names other "
                    f"data that is not here; to keep what is here: dvc add {out}; to have what "
                    f"that names in its place: dvc pull --force {owner.addressing}"
                )
    return found


def pull_inputs(repo: Any) -> list[str]:
    """Fetch the inputs that DVC tracks and that are not here, or older; returns their paths.

    Raises `ThawlineError` naming the input when there is nothing to fetch it from, and as
    `outdated_inputs`.
    """
    from dvc.exceptions import DvcException

    missing = missing_inputs(repo)
    for path, owner in missing.items():
        if owner is None:
            raise ThawlineError(
                f"the input {path} does not exist; put it there, or change what names it "
                f"(the data: prepare.data in {PARAMS_FILE}; other inputs: {DVC_FILE})"
            )
    wanted = missing | outdated_inputs(repo)
    for path, owner in wanted.items():
        try:
            repo.pull([owner.addressing])
        except DvcException as error:
            what = "" if path in missing else " as its .dvc file names it"
            raise ThawlineError(
                f"the input {path} is tracked by DVC but{what} is neither here nor in its remote "
                f"({sentence(error)}); give DVC access to the remote, then run: "
                f"dvc pull {owner.addressing}"
            ) from error
    return list(wanted)


def push_inputs(repo: Any) -> None:
    """Bring the inputs that `.dvc` files name to the remote; imports come from their source.

    Raises `DvcException`, and what the remote's library raises.
    """
    owners = {owner.addressing: owner for _, owner in _inputs(repo) if owner is not None}
    if names := [name for name, owner in owners.items() if not owner.is_import]:
        repo.push(names)


def update_imports(repo: Any) -> list[str]:
    """Bring imported inputs (`dvc import`, `dvc import-url`) up to their source; what has changed.

    Raises `ThawlineError` naming the input when its source cannot be reached.
    """
    from dvc.exceptions import DvcException

    changed = []
    owners = {owner.addressing: owner for _, owner in _inputs(repo) if owner is not None}
    for name, owner in owners.items():
        if not (owner.is_import or owner.is_repo_import):
            continue
        before = [out.hash_info for out in owner.outs]
        try:
            [updated] = repo.update([name])
        except DvcException as error:
            raise ThawlineError(
                f"the input {owner.outs[0]} cannot be brought up to its source "
                f"({sentence(error)}); see that it can be reached, then: dvc update {name}"
            ) from error
        if [out.hash_info for out in updated.outs] != before:
            changed.append(str(updated.outs[0]))
    return changed


def pull_missing_weights(repo: Any, values: Params) -> list[str]:
    """Fetch the files of `embed.weights` that DVC tracks and that are not here; returns them.

    No stage depends on them, as their sha256 stands in the parameters. Raises `ThawlineError`
    naming the file when there is nothing to fetch it from.
    """
    from dvc.exceptions import DvcException

    root = Path(repo.root_dir)
    named = [entry.file for entry in values.embed.weights.values()]
    lacking = [f for f in named if not (root / f).exists() and (root / f"{f}.dvc").is_file()]
    for file in lacking:
        try:
            repo.pull([f"{file}.dvc"])
        except DvcException as error:
            raise ThawlineError(
                f"the weights {file} are tracked by DVC but are neither here nor in its remote "
                f"({sentence(error)}); give DVC access to the remote, then run: "
                f"dvc pull {file}.dvc"
            ) from error
    return lacking


def input_bytes(repo: Any) -> int:
    """The size of all inputs that no stage makes."""
    return sum(files.size(path) for path in {Path(dep.fs_path) for dep, _ in _inputs(repo)})
