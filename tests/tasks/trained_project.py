"""A project as `evaluate` leaves it, made in a moment: a tiny real network, real records."""

from __future__ import annotations

import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from safetensors.torch import save_file

from tasks import files, package
from tasks.params import HeadParams, Params
from tasks.problems.image_classification import architectures, heads
from tasks.records import (
    DataSummary,
    Inspection,
    Layer,
    Phase,
    Project,
    Selection,
    ThawPlan,
    TrainRun,
    Tuning,
    ViewPolicy,
)
from tasks.tracking import store

BACKBONE = "timm.test_resnet.r160_in1k"
CLASSES = ["ankle boot", "bag", "帽子"]


def params(**register: str) -> Params:
    return Params.model_validate(
        {
            "threads": 1,
            "prepare": {"data": "data/shoes.parquet", "store_side": 64},
            "embed": {"backbones": [BACKBONE]},
            "register": {"experiment": "shoes", "model": "shoes", **register},
        }
    )


def make(root: Path, seed: int = 0, accuracy_low: float = 0.8) -> Project:
    """Write what `package` reads; another seed is another training."""
    project = Project(root)
    root.mkdir(parents=True, exist_ok=True)
    _records(project, f"run-{seed}")
    torch.manual_seed(seed)
    architecture = architectures.find(BACKBONE)
    model = architecture.model()
    heads.with_head(model, architecture.head(model), len(CLASSES), HeadParams())
    project.train.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), project.train / "weights.safetensors")
    (project.train / "history.csv").write_text(
        "epoch,phase,train_loss,validation_loss\n0,all,1.5,1.25\n1,all,0.5,0.75\n"
    )
    shares = {"value": 0.8, "low": 0.7, "high": 0.88}
    slow = {"column": "site", "value": "south", "examples": 120, "accuracy": shares, "worse": True}
    files.write_json(
        project.evaluate / "evaluation.json",
        {
            "temperature": 1.5,
            "slices": [slow],
            "worst": slow,
            "drift": {"p_value": 0.001, "differs": True, "distance": 0.3, "target": 2},
            "learning_curve": None,
            "baselines": [baseline(name) for name in ("majority", "linear_probe")],
        },
    )
    _predictions(seed).to_parquet(project.evaluate / "predictions.parquet", index=False)
    metrics = {
        "test.accuracy": 0.9,
        "test.accuracy_low": accuracy_low,
        "test.accuracy_high": 0.95,
        "baseline.majority.accuracy": 0.5,
        "baseline.linear_probe.accuracy": 0.85,
        "train.seconds": 12.5,
    }
    files.write_json(project.reports / "metrics.json", metrics)
    (project.reports / "report.html").write_text("<html>the report</html>")
    return project


def baseline(name: str, verdict: str = "better") -> dict[str, object]:
    """Of `evaluation.json`: a baseline, and the verdict on the model beside it."""
    return {"name": name, "comparison": {"verdict": verdict}}


def _predictions(seed: int) -> pd.DataFrame:
    """Of 300 test examples; another seed is wrong on others, a tenth in all."""
    labels = np.array(CLASSES, dtype=object)[np.arange(300) % 3]
    wrong = np.random.default_rng(seed).permutation(300)[:30]
    predicted = labels.copy()
    predicted[wrong] = CLASSES[0]
    ids = [f"example {i}" for i in range(300)]
    return pd.DataFrame({"id": ids, "group": ids, "label": labels, "predicted": predicted})


def packaged(root: Path, seed: int = 0, accuracy_low: float = 0.8) -> Project:
    project = make(root, seed, accuracy_low)
    package.run(project, params())
    return project


@cache
def _empty_store() -> Path:
    """An MLflow database without runs, made once: its migrations take seconds."""
    folder = Path(tempfile.mkdtemp())
    with store.connect(folder):
        return folder / store.DATABASE


def with_store(root: Path) -> Project:
    """A project folder with an MLflow store that is ready."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copy(_empty_store(), root / store.DATABASE)
    return Project(root)


def pictures(folder: Path) -> list[Path]:
    """Three pictures, one of them no picture."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / "a.png", folder / "鞋.jpg", folder / "broken.png"]
    Image.linear_gradient("L").resize((80, 60)).save(paths[0])
    Image.radial_gradient("L").convert("RGB").resize((200, 300)).save(paths[1])
    paths[2].write_text("no picture")
    return paths


def _records(project: Project, run_key: str) -> None:
    layers = [Layer("stem", 10, 0, 100, 20), Layer("head", 5, 0, 5, 6)]
    counts = dict.fromkeys(CLASSES, 10)
    DataSummary(
        problem="image_classification",
        classes=CLASSES,
        counts=dict.fromkeys(("train", "validation", "test"), counts),
        digest="d" * 64,
        unreadable=[],
        exact_duplicates=[],
        near_duplicate_groups=0,
        near_duplicate_examples=0,
        conflicts=[],
        given_splits=["test"],
    ).write(project.summary)
    ViewPolicy("image_classification", 0, 4, {"image_size": 64, "resize": "pad"}, []).write(
        project.augment / "policy.json"
    )
    certificate = {"data": "d" * 64, "holds": True}
    Inspection(
        certificate={**certificate, "sha256": files.sha256_json(certificate)},
        examples=60,
        label_errors=[{"id": "1", "source": "a", "split": "train", "label": "bag"}],
        outliers=[],
        odd_classes=[],
        telling_columns=[],
        drift={"differs": False},
        balance={"ratio": 1.0},
        found={"label_errors": 1, "outliers": 0},
    ).write(project.inspection)
    origin = {"weights_sha256": "e" * 64, "layers": layers}
    Selection(
        backbone=BACKBONE,
        why="the only one",
        candidates=[],
        weights_source="timm",
        licence="Apache-2.0",
        pretraining="ImageNet-1k",
        examples=30,
        classes=3,
        **origin,  # type: ignore[arg-type]
    ).write(project.selection)
    ThawPlan(
        strategy="last_blocks",
        backbone=BACKBONE,
        phases=[Phase("all", None, {"head": 1.0})],
        thaw_line="head",
        frozen_share=0.95,
        cache=True,
        cache_bytes=100,
        batch_norm="train",
        why="so",
        **origin,  # type: ignore[arg-type]
    ).write(project.thaw_plan)
    Tuning(json.loads(params().train.model_dump_json()), {}, [], "none").write(project.tuning)
    TrainRun(
        run_key=run_key,
        mlflow_run_id=None,
        resumed_from_step=0,
        steps=8,
        best_epoch=1,
        stopped_early=False,
        frozen_before={"all": "a" * 64},
        frozen_after={"all": "a" * 64},
        seconds=12.5,
        cpu_seconds=20.0,
        prefix_seconds=1.0,
        prefix_cached=False,
        peak_anonymous_mb=500.0,
        device="cpu",
        precision="float32",
        threads=1,
        versions={"torch": "2"},
    ).write(project.train / "run.json")
