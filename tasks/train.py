"""train: the phases of the thaw plan on the one training loop, with its record and its proof."""

from __future__ import annotations

import csv
import importlib.metadata
import shutil
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks import files, tracking, trainings, versions, warm_start
from tasks.errors import ThawlineError
from tasks.params import NEVER_CHANGES_A_RESULT, Params, TrainParams
from tasks.records import Project, ThawPlan, TrainRun, Tuning
from tasks.retention import Retention
from tasks.tracking.registry import WARM_START
from tasks.warm_start import WarmStart

if TYPE_CHECKING:
    import torch

    from tasks.engine.device import Compute
    from tasks.engine.loop import Trainer
    from tasks.engine.parallel import Ranks
    from tasks.engine.setup import Setup
    from tasks.engine.state import PhaseData, State

KEPT_TRAININGS = 3  # folders of checkpoints of earlier trainings that stay in scratch


def run(project: Project, params: Params) -> None:
    """Train, or go on where a killed training stopped, and write weights, history and record."""
    from tasks.engine import parallel
    from tasks.engine.device import resolve
    from tasks.engine.memory import PeakMemory
    from tasks.engine.setup import Setup

    plan = ThawPlan.read(project.thaw_plan)
    fixed = params.train.model_dump(include=NEVER_CHANGES_A_RESULT)
    settings = TrainParams.model_validate(fixed | Tuning.read(project.tuning).train)
    start = warm_start.of(project, params)
    weights = start.weights(project) if start else None
    used = params
    if start is not None:
        settings = start.settings(settings)
        used = params.model_copy(update={"train": settings})
    with PeakMemory() as memory:
        compute = resolve(params.device, params.precision)
        ranks = parallel.start(settings.devices, compute.device)
        setup = Setup.make(project, params, plan, settings, ranks, start=weights)
        folder = _scratch(project, _identity(project, params, compute, ranks, start))
        if ranks.rank:  # the first process alone keeps records and writes results
            _fit(setup, setup.trainer(folder, lambda state: None))
            raise SystemExit(0)
        run_key = _run_key(folder)
        trainings.end_abandoned(project, run_key)
        name = f"{plan.backbone} {plan.strategy}"
        tags = {"thawline.thaw_line": plan.thaw_line}
        if start is not None:
            tags[WARM_START] = str(start)
        header = tracking.header(project, used, name, tags)
        spool = tracking.Spool.open(project, run_key, header)
        tracking.start_drainer(project)  # it ends by itself
        sent = 0

        def report(state: State) -> None:
            nonlocal sent
            spool.extend(state.points[sent:], start=sent)  # type: ignore[arg-type]
            sent = len(state.points)

        trainer = setup.trainer(folder, report)
        try:
            state = _fit(setup, trainer)
        except ThawlineError:
            spool.end("FAILED")  # going on later opens it again
            raise
        spool.end()
        retained, learned = _blended(setup, state)
        peak = memory.mb
    path = _write(project, learned, state)
    retained.write(path.with_name("retention.json"))
    record = _record(params, setup, trainer, run_key, peak, start)
    record.write(path.with_name("run.json"))
    setup.cache.close()


def _fit(setup: Setup, trainer: Trainer) -> State:
    """Train, or go on from a checkpoint; from here on the first process is alone."""
    if trainer.restore():
        setup.account = trainer.state.account
    else:
        trainer.state.account = setup.account
        trainer.state.seconds, trainer.state.cpu_seconds = setup.init_head()

    def data(index: int) -> PhaseData:
        setup.note_error(index)
        return setup.data(index)

    state = trainer.fit(data)
    setup.ranks = setup.ranks.end()
    return state


def _blended(setup: Setup, state: State) -> tuple[Retention, dict[str, Any]]:
    """What training has kept of the backbone, and the final weights; blending them is charged."""
    from tasks.engine import blend
    from tasks.engine.prefix import cpu_seconds

    clock, cpu = time.perf_counter(), cpu_seconds()
    retained, weights = blend.run(setup, setup.model_state())
    if setup.settings.average_weights != "none":
        state.seconds += time.perf_counter() - clock
        state.cpu_seconds += cpu_seconds() - cpu
    return retained, weights


def _record(
    params: Params,
    setup: Any,
    trainer: Trainer,
    run_key: str,
    peak: float,
    start: WarmStart | None,
) -> TrainRun:
    state = trainer.state
    project: Project = setup.project
    return TrainRun(
        run_key=run_key,
        mlflow_run_id=tracking.run_id(project, run_key, wait_seconds=45),
        resumed_from_step=trainer.resumed_from_step,
        steps=state.step,
        best_epoch=state.best_epoch,
        stopped_early=state.stopped_early,
        frozen_before=state.frozen_before,
        frozen_after=state.frozen_after,
        seconds=round(state.seconds + setup.account.seconds, 2),
        cpu_seconds=round(state.cpu_seconds + setup.account.cpu_seconds, 2),
        prefix_seconds=round(setup.account.seconds, 2),
        prefix_cached=setup.account.spared,
        prefix_computed=setup.account.computed,
        prefix_found=setup.account.found,
        prefix_bytes=sum(setup.account.sizes.values()),
        prefix_errors={line: round(e, 6) for line, e in setup.account.errors.items()},
        peak_anonymous_mb=peak,
        spent={what: round(seconds, 2) for what, seconds in state.spent.items()},
        device=_devices(setup.compute.device, trainer.ranks.size),
        precision=setup.compute.precision,
        threads=params.threads,
        warm_start=start.told(setup.settings) if start else None,
        versions={
            "thawline": importlib.metadata.version("thawline"),
            **versions.libraries(params.problem),
        },
    )


def _write(project: Project, weights: dict[str, Any], state: State) -> Path:
    from safetensors.torch import save_file

    project.train.mkdir(parents=True, exist_ok=True)
    path = project.train / "weights.safetensors"
    with files.atomic(path) as temporary:
        save_file(weights, temporary)
    with (
        files.atomic(project.train / "history.csv") as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.DictWriter(file, list(state.history[0]))
        writer.writeheader()
        writer.writerows(state.history)
    return path


def _devices(device: torch.device, count: int) -> str:
    return str(device) if count == 1 else f"{count} × {device.type}"


def _identity(
    project: Project, params: Params, compute: Compute, ranks: Ranks, start: WarmStart | None
) -> str:
    """A digest of all that determines this training; checkpoints of another are never taken up."""
    return files.sha256_json(
        {
            "data": files.sha256_file(project.manifest),
            "policy": files.sha256_file(project.augment / "policy.json"),
            "plan": files.sha256_file(project.thaw_plan),
            "tuning": files.sha256_file(project.tuning),
            "seed": params.seed,
            "threads": params.threads,
            "device": compute.device.type,
            "devices": ranks.size,
            "precision": compute.precision,
            "libraries": versions.libraries(params.problem),
            "batch_size": params.embed.batch_size,
            "version": versions.VERSIONS["train"],
            **({"start": start.digest} if start else {}),
        }
    )


def _scratch(project: Project, identity: str) -> Path:
    """The folder of this training's checkpoints; the oldest of other trainings are dropped."""
    parent = trainings.folder(project)
    folder = parent / identity[:24]
    folder.mkdir(parents=True, exist_ok=True)
    others = sorted((f for f in parent.iterdir() if f != folder), key=lambda f: f.stat().st_mtime)
    for old in others[: -KEPT_TRAININGS or None]:
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _run_key(folder: Path) -> str:
    """The key of this training's run, the same after a resume."""
    path = folder / "run_key.json"
    if not path.is_file():
        key = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:8]}"
        files.write_json(path, {"run_key": key})
    return str(files.read_json(path)["run_key"])
