"""`thawline doctor`: is everything here that a run needs, and if not, what to do."""

from __future__ import annotations

import os
import shutil
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from flows import repository
from flows.project import find
from tasks import params_file
from tasks.errors import ThawlineError
from tasks.params import Params
from tasks.records import Project

LOW_DISK, LOW_MEMORY = 2e9, 3e9  # bytes below which we warn
STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    what: str
    verdict: Literal["ok", "warn", "fail"]
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Look at everything, wherever the command is called; the project's part needs a project."""
    findings = [*_packages(), *_machine(), *_tool("git")]
    try:
        project = find()
    except ThawlineError as error:
        return [*findings, Finding("project", "warn", str(error), "the rest needs a project")]
    findings.append(Finding("project", "ok", str(project.root)))
    try:
        values = params_file.load(project.root)
    except ThawlineError as error:
        return [*findings, Finding("params", "fail", str(error), "mend it; the rest needs it")]
    checks: list[Callable[[Project, Params], Iterator[Finding]]]
    checks = [_cores, _disk, _dvc, _weights, _mlflow, _prefect, _left_behind]
    for check in checks:
        findings += _guarded(check, project, values)
    return findings


def as_json(findings: list[Finding]) -> dict[str, Any]:
    failed = any(f.verdict == "fail" for f in findings)
    return {"ok": not failed, "findings": [asdict(f) for f in findings]}


def show(console: Console, findings: list[Finding]) -> None:
    """Print the findings for a person."""
    from rich.text import Text

    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    for f in findings:
        verdict = Text(f.verdict.upper() if f.verdict == "fail" else f.verdict, STYLES[f.verdict])
        text = Text(f.found) + Text(f"\n→ {f.advice}" if f.advice else "", "bold")
        table.add_row(verdict, f.what, text)
    console.print(table, highlight=False)


def _guarded(
    check: Callable[[Project, Params], Iterator[Finding]], project: Project, values: Params
) -> list[Finding]:
    """The findings of one check; an error of it is a finding too."""
    what = check.__name__.removeprefix("_")
    try:
        return list(check(project, values))
    except Exception as error:
        return [Finding(what, "fail", f"{type(error).__name__}: {error}")]


def _packages() -> Iterator[Finding]:
    """Whether the installed versions are those that Thawline asks for: some clash silently."""
    from importlib import metadata

    from packaging.requirements import Requirement

    wrong = []
    for text in metadata.requires("thawline") or []:
        requirement = Requirement(text)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            version = "missing"
        if version == "missing" or not requirement.specifier.contains(version, prereleases=True):
            wrong.append(f"{requirement.name} {version} (wanted {requirement.specifier})")
            yield Finding(
                "packages",
                "fail",
                f"{requirement.name} is {version}, Thawline needs {requirement.specifier}",
                f"pip install '{requirement.name}{requirement.specifier}'",
            )
    if not wrong:
        tools = ("thawline", "torch", "dvc", "prefect", "mlflow")
        known = ", ".join(f"{name} {metadata.version(name)}" for name in tools)
        yield Finding("packages", "ok", known)


def _machine() -> Iterator[Finding]:
    import psutil
    import torch

    free = psutil.virtual_memory().available
    verdict: Literal["ok", "warn"] = "warn" if free < LOW_MEMORY else "ok"
    advice = "lower embed.batch_size, or close other programs" if verdict == "warn" else ""
    yield Finding("memory", verdict, f"{free / 1e9:.1f} GB available", advice)
    if torch.cuda.is_available():
        yield Finding("device", "ok", f"cuda: {torch.cuda.get_device_name()}")
    elif torch.backends.mps.is_available():
        yield Finding("device", "ok", "mps")
    else:
        yield Finding("device", "ok", "cpu (no GPU that torch can use)")


def _tool(name: str) -> Iterator[Finding]:
    if path := shutil.which(name):
        yield Finding(name, "ok", path)
    else:
        yield Finding(name, "warn", "not found", f"install {name} to version params and dvc.lock")


def _cores(project: Project, values: Params) -> Iterator[Finding]:
    cores = os.cpu_count() or 1
    if values.threads > cores:
        found = f"threads is {values.threads}, there are {cores} cores"
        yield Finding("cores", "warn", found, f"set threads to {cores} in params.yaml")
    else:
        yield Finding("cores", "ok", f"{cores}, a stage uses {values.threads}")


def _disk(project: Project, values: Params) -> Iterator[Finding]:
    free = shutil.disk_usage(project.root).free
    if free < LOW_DISK:
        advice = "free some space; thawline gc shows what nothing needs"
        yield Finding("disk", "warn", f"{free / 1e9:.1f} GB free", advice)
    else:
        yield Finding("disk", "ok", f"{free / 1e9:.0f} GB free")


def _dvc(project: Project, values: Params) -> Iterator[Finding]:
    """The graph, the inputs, the cache, the remotes."""
    try:
        with repository.opened(project) as repo:
            repository.check_params(repo, values)
            stages = sum(1 for stage in repo.index.stages if stage.cmd)
            missing = repository.missing_inputs(repo)
            cache = Path(repo.cache.local.path)
            remotes = list(repo.config["remote"])
            default = repo.config["core"].get("remote")
            yield from _remotes(repo, remotes)
    except ThawlineError as error:
        yield Finding("dvc", "fail", str(error), "mend dvc.yaml or params.yaml")
        return
    yield Finding("dvc", "ok", f"{stages} stages")
    existing = next(p for p in (cache, *cache.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        yield Finding("cache", "fail", f"{cache} cannot be written", "change its owner or rights")
    for path, owner in missing.items():
        if owner is None:
            advice = "put it there, or change prepare.data in params.yaml"
            yield Finding("data", "fail", f"{path} is missing", advice)
        elif default is None:
            advice = "name one with: dvc remote default NAME"
            yield Finding("data", "fail", f"{path} is missing, and there is no remote", advice)
        else:
            yield Finding("data", "ok", f"{path} is not here yet; a run fetches it")
    if not missing:
        yield Finding("data", "ok", values.prepare.data)


def _remotes(repo: Any, names: list[str]) -> Iterator[Finding]:
    for name in names:
        try:
            odb = repo.cloud.get_remote_odb(name=name)
            there = odb.fs.exists(odb.path)
        except Exception as error:
            yield Finding("remote", "warn", f"{name}: {error}", "check its address and access")
            continue
        found = f"{name}: {odb.path}" + ("" if there else " (nothing there yet)")
        yield Finding("remote", "ok", found)


def _weights(project: Project, values: Params) -> Iterator[Finding]:
    from tasks import catalogue

    for name in values.embed.backbones:
        if name in values.embed.weights:
            file = project.root / values.embed.weights[name].file
            verdict: Literal["ok", "fail"] = "ok" if file.exists() else "fail"
            yield Finding("weights", verdict, f"{name}: {file}", "" if file.exists() else "put it")
        elif entry := catalogue.known_weights().get(name):
            where = "here" if entry.place.exists() else "a run fetches them"
            yield Finding("weights", "ok", f"{name}: {where}")
        else:
            found = f"{name}: from its library, which may download it"
            yield Finding(
                "weights", "warn", found, f"fetch it while online: thawline weights {name}"
            )


def _mlflow(project: Project, values: Params) -> Iterator[Finding]:
    from tasks.tracking import store

    database = store.database_file(project.root)
    if database is not None and not database.is_file():
        yield Finding("mlflow", "ok", "its database is made at the first run")
        return
    try:
        with store.connect(project.root) as client:
            count = len(client.search_experiments())
        yield Finding("mlflow", "ok", f"{store.store_name(project.root)}, {count} experiments")
    except ThawlineError as error:
        yield Finding("mlflow", "fail", str(error), "check MLFLOW_TRACKING_URI")


def _left_behind(project: Project, values: Params) -> Iterator[Finding]:
    from flows import orphans

    for orphan in orphans.found(project):
        yield Finding(f"left {orphan.kind}", "warn", orphan.found, orphan.advice)


def _prefect(project: Project, values: Params) -> Iterator[Finding]:
    url = os.environ.get("PREFECT_API_URL")
    if url is None:
        yield Finding("prefect", "ok", f"its own server, in {project.root / '.prefect'}")
        return
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            yield Finding("prefect", "ok", url)
    except (OSError, ValueError) as error:
        advice = "start it, or unset PREFECT_API_URL to use Prefect's own"
        yield Finding("prefect", "fail", f"{url}: {error}", advice)
