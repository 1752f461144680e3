"""package: the model folder, complete in itself and a pure function of what went into it.

`model.safetensors` (the bytes that training left), `model.json` (all that rebuilds the network,
its metrics and its origin), `README.md` (the card), `digests.json`, and `run.json`: the record of
the training that made it. With `package.onnx` also `model.onnx`, and `onnx.json`: how it was
checked against the network, and how fast it is here. `run.json`, `onnx.json` and how many models
had been judged, on the card and so in its digest, alone may differ between two equal models.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks import card, catalogue, costs, files, packaged, problems
from tasks.errors import ThawlineError
from tasks.freeze import epochs_of
from tasks.params import Params, TrainParams
from tasks.records import (
    DataSummary,
    Inspection,
    Project,
    Selection,
    ThawPlan,
    TrainRun,
    Tuning,
    ViewPolicy,
)

RECORD, WEIGHTS, DIGESTS, RUN, CARD = (
    "model.json",
    "model.safetensors",
    "digests.json",
    "run.json",
    "README.md",
)
ONNX, ONNX_CHECK = "model.onnx", "onnx.json"
_FIGURES = ("test.", "baseline.")


def run(project: Project, params: Params) -> None:
    """Write the model folder at once, in place of the one before.

    Raises `ThawlineError` when training's frozen proof does not hold, or the problem knows no
    ONNX and `package.onnx` asks for it.
    """
    trained = TrainRun.read(project.train / "run.json")
    _require_proof(trained)
    exporter = problems.exporting(params.problem) if params.package.onnx else None
    project.models.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".models-", dir=project.models.parent) as name:
        folder = Path(name) / "models"
        folder.mkdir()
        shutil.copyfile(project.train / "weights.safetensors", folder / WEIGHTS)
        assets = problems.load(params.problem).assets(
            project, params, ThawPlan.read(project.thaw_plan).backbone
        )
        for asset, content in assets.items():
            (folder / asset).write_bytes(content)
        record = describe(project, params, assets, trained.warm_start)
        files.write_json(folder / RECORD, record)
        files.write_json(folder / RUN, asdict(trained))
        looks = files.read_json(project.reports / "metrics.json").get("looks.test")
        (folder / CARD).write_text(card.text(record, looks), encoding="utf-8")
        files.write_json(folder / DIGESTS, digests(folder))
        if exporter is not None:
            found = exporter.add(folder, project, params.threads)
            files.write_json(folder / ONNX_CHECK, found)
            files.write_json(folder / DIGESTS, digests(folder))
        for path in folder.iterdir():
            with path.open("rb") as written:
                os.fsync(written.fileno())
        shutil.rmtree(project.models, ignore_errors=True)
        folder.replace(project.models)
    files.fsync_folder(project.models.parent)


def describe(
    project: Project,
    params: Params,
    assets: Mapping[str, bytes],
    start: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The content of `model.json`; `start`: the version that its training went on from."""
    plan = ThawPlan.read(project.thaw_plan)
    summary = DataSummary.read(project.summary)
    chosen = Selection.read(project.selection)
    head = TrainParams.model_validate(Tuning.read(project.tuning).train).head
    metrics: dict[str, float] = files.read_json(project.reports / "metrics.json")
    evaluation = files.read_json(project.evaluate / "evaluation.json")
    return {
        "format": packaged.FORMAT,
        "problem": params.problem,
        "description": params.package.description,
        **({"onnx": True} if params.package.onnx else {}),
        "backbone": plan.backbone,
        "head": head.model_dump(),
        "classes": summary.classes,
        **({packaged.SEVERAL: True} if summary.labelling.several else {}),
        **({"reading": asdict(plan.reading)} if plan.reading else {}),
        **({"files": _digests_of(assets)} if assets else {}),
        **problems.predicting(params.problem).describe(project, params, plan.backbone),
        "temperature": evaluation["temperature"],
        "thaw": {
            "strategy": plan.strategy,
            "thaw_line": plan.thaw_line,
            "frozen_share": plan.frozen_share,
            "batch_norm": plan.batch_norm,
            "phases": [asdict(phase) for phase in plan.phases],
        },
        "weights": {
            "sha256": plan.weights_sha256,
            "source": chosen.weights_source,
            "licence": chosen.licence,
            "pretraining": chosen.pretraining,
        },
        "data": {
            "name": Path(params.prepare.data).stem,
            "licence": params.package.data_licence or _known_licence(params),
            "digest": summary.digest,
            "examples": {split: sum(c.values()) for split, c in summary.counts.items()},
            "given_splits": summary.given_splits,
            "unreadable": len(summary.unreadable),
            **_inspected(project),
        },
        **({"warm_start": {k: start[k] for k in ("model", "version", "digest")}} if start else {}),
        "cost": _cost(project, plan, summary, start),
        "judged": {
            **{key: evaluation[key] for key in ("slices", "worst", "drift", "learning_curve")},
            "baselines": {x["name"]: x["comparison"]["verdict"] for x in evaluation["baselines"]},
        },
        "metrics": {k: v for k, v in metrics.items() if k.startswith(_FIGURES)},
    }


def _digests_of(assets: Mapping[str, bytes]) -> dict[str, str]:
    """sha256 by name: in the record, so that the model's digest covers these files too."""
    return {name: hashlib.sha256(content).hexdigest() for name, content in assets.items()}


def _known_licence(params: Params) -> str:
    """The licence of a data set of the catalogue; empty for other data."""
    path = Path(params.prepare.data)
    fetched = not path.is_absolute() and path.parent == Path("data")  # as the catalogue puts it
    known = catalogue.known_data().get(path.stem) if fetched else None
    return known.licence if known else ""


def _inspected(project: Project) -> dict[str, Any]:
    """What `inspect` found that users of the model should know."""
    found = Inspection.read(project.inspection)
    certificate = found.certificate["sha256"] if found.certificate["holds"] else None
    return {
        "certificate": certificate,
        "label_errors": found.found["label_errors"],
        "inspected": found.examples,
    }


def _cost(
    project: Project, plan: ThawPlan, summary: DataSummary, start: Mapping[str, Any] | None
) -> dict[str, int]:
    """Of the training as planned: the same wherever it runs, which seconds are not."""
    examples = {split: sum(counts.values()) for split, counts in summary.counts.items()}
    settings = TrainParams.model_validate(Tuning.read(project.tuning).train)
    epochs = epochs_of(plan.phases, start["epochs"] if start else settings.epochs)
    policy = ViewPolicy.read(project.augment / "policy.json")
    spent = costs.multiply_adds(plan, policy, examples, epochs)
    return {"epochs": sum(epochs), "multiply_adds": spent}


def digests(folder: Path) -> dict[str, Any]:
    """sha256 of the files that make up the model, and one digest for the model itself."""
    assets = files.read_json(folder / RECORD).get("files", {})
    names = [n for n in (WEIGHTS, RECORD, CARD, ONNX, *assets) if (folder / n).exists()]
    each = {name: files.sha256_file(folder / name) for name in names}
    return {
        "files": each,
        "model_digest": packaged.model_digest(each[WEIGHTS], each[RECORD]),
    }


def _require_proof(trained: TrainRun) -> None:
    moved = [
        phase
        for phase, before in trained.frozen_before.items()
        if trained.frozen_after.get(phase) != before
    ]
    if moved:
        raise ThawlineError(
            f"frozen weights moved in training (phase {', '.join(moved)}), which must not happen: "
            "nothing was packaged; please report it with outputs/train/run.json"
        )
