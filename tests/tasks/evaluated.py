"""A small project as it stands after evaluation, made in a second: real images and records, and
logits drawn by a seeded generator in place of a training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from sklearn.datasets import load_digits

from tasks import evaluate, files, params_file
from tasks.baselines import Baseline
from tasks.learning_curve import LearningCurve, measure
from tasks.metrics import Bootstrap, group_index
from tasks.params import Params
from tasks.problems.image_classification import pictures
from tasks.problems.image_classification.image_store import IMAGES
from tasks.records import (
    Candidate,
    DataSummary,
    Layer,
    Phase,
    Project,
    Selection,
    ThawPlan,
    TrainRun,
    Tuning,
    ViewPolicy,
)
from tasks.retention import Blend, Knowledge, Retention

SERVING = {"looks.test": 1, "predict.milliseconds": 12.3, "predict.megabytes": 8.9}
DIGEST = "5d41402abc4b2a76b9719d911017c592" * 2
LAYERS = [
    Layer(f"features.{i}", 900 * (i + 1) ** 2, 40 * (i + 1), 12_000_000 // (1 + i % 4), 40_000)
    for i in range(18)
] + [Layer("head", 12_810, 0, 12_800, 20)]


def write(root: Path, classes: list[str], examples: int = 600, skill: float = 3.0) -> Project:
    """A project with `examples` digits named after `classes`; `skill`: how good the model is."""
    project, settings = Project(root), parameters()
    manifest = images(project, classes, examples)
    _records(project, settings, manifest, classes)
    logits = _logits(manifest, len(classes), skill, 1)
    probe = _logits(manifest, len(classes), skill, 2)["test"].argmax(axis=1)
    title = "A linear probe on the frozen backbone"
    baseline = Baseline("linear_probe", title, probe, {"C": 0.01, "features": 1280})
    known = Retention.read(project.train / "retention.json").knowledge
    accuracy = {"value": 0.91, "low": 0.88, "high": 0.94}
    files.write_json(
        project.repeat / "repeat.json",
        {
            "folds": {"examples": 555, "accuracy": accuracy, "each": [0.89, 0.93]},
            "seeds": {"examples": 240, "mean": 0.9, "spread": 0.0123, "each": [0.89, 0.91]},
        },
    )
    curve = _learning_curve(manifest, len(classes))
    other = Baseline("linear_probe_resnet18", "A linear probe on resnet18", probe[::-1], {})
    beside = [baseline, other]
    evaluate.conclude(project, settings, manifest, logits, beside, known, curve)
    evaluate._write_metrics(project, settings, 7.0, SERVING)
    return project


def _learning_curve(manifest: pd.DataFrame, classes: int) -> LearningCurve | None:
    """Of features that tell the classes apart with some noise."""
    known = manifest[manifest["split"] != "test"]
    targets = known["target"].to_numpy(np.int64)
    features = np.eye(classes)[targets] + np.random.default_rng(3).normal(
        0, 0.5, (len(known), classes)
    )
    resamples = Bootstrap(group_index(known["group"]), 200)
    return measure(features.astype(np.float32), targets, classes, resamples, len(known))


def parameters(**changes: Any) -> Params:
    tree = {
        "prepare": {"data": "data/digits"},
        "embed": {"backbones": ["mobilenet_v2", "resnet18"]},
        "augment": {"image_size": 96},
        "train": {"learning_rate": 0.01, "head": {"dropout": 0.2}},
        "register": {"experiment": "digits", "model": "digits"},
        "evaluate": {"bootstrap": 200},
    }
    return params_file.check(tree | changes)


def images(project: Project, classes: list[str], examples: int) -> pd.DataFrame:
    digits = load_digits()
    generator = np.random.default_rng(0)
    weights = np.linspace(1, 2, len(classes))
    targets = generator.choice(len(classes), examples, p=weights / weights.sum())
    pictures = [
        np.asarray(Image.fromarray((pixels * 15).astype(np.uint8)).resize((96, 96)))
        for pixels in digits.images[:examples]
    ]
    project.prepared.mkdir(parents=True, exist_ok=True)
    (project.prepared / IMAGES).write_bytes(b"".join(p.tobytes() for p in pictures))
    manifest = pd.DataFrame(
        {
            "id": [f"{i:064x}" for i in range(examples)],
            "label": np.asarray(classes, dtype=object)[targets],
            "target": targets,
            "split": generator.choice(["train", "validation", "test"], examples, p=[0.4, 0.2, 0.4]),
            "group": [str(i // 2 if i < 40 else i) for i in range(examples)],
            "source": [f"{classes[t]}/图 {i}.png" for i, t in enumerate(targets)],
            "offset": np.arange(examples) * 96 * 96,
            "height": 96,
            "width": 96,
            "channels": 1,
            "column.site": generator.choice(["north", "<south>"], examples),
        }
    )
    manifest.to_parquet(project.manifest)
    return manifest


def _logits(
    manifest: pd.DataFrame, classes: int, skill: float, seed: int
) -> dict[str, evaluate.Floats]:
    """Overconfident logits; neighbouring classes are alike, as in real confusions."""
    generator = np.random.default_rng(seed)
    found = {}
    for split in ("validation", "test"):
        targets = manifest["target"][manifest["split"] == split].to_numpy()
        near = np.exp(-np.abs(np.arange(classes)[None, :] - targets[:, None]))
        found[split] = 2 * (skill * near + generator.normal(0, 1, near.shape))
    return found


def _records(
    project: Project, settings: Params, manifest: pd.DataFrame, classes: list[str]
) -> None:
    names = {"weights_sha256": DIGEST, "weights_source": "torchvision", "licence": "BSD-3-Clause"}
    counts = manifest.groupby("split")["label"].value_counts()
    DataSummary(
        problem="image_classification",
        classes=classes,
        counts={
            s: {c: int(counts.get((s, c), 0)) for c in classes} for s in counts.index.levels[0]
        },
        digest=DIGEST,
        unreadable=[{"source": "坏/<b>.png", "reason": "truncated & unreadable"}],
        exact_duplicates=[{"source": "a/1.png", "kept": "a/2.png", "action": "dropped"}],
        near_duplicate_groups=20,
        near_duplicate_examples=40,
        conflicts=[],
        given_splits=["test"],
        details={
            "near_duplicates_left_out": [
                {"source": "a/3.png", "split": "train", "near": "乙/4.png", "near_split": "test"}
            ],
            "height": {"min": 8, "median": 8, "max": 8},
            "grey": 600,
            "store_bytes": 5529600,
        },
    ).write(project.summary)
    policy = [{"name": "RandomHorizontalFlip", "arguments": {}}]
    ViewPolicy("image_classification", 0, 4, {"image_size": 96, "resize": "squash"}, policy).write(
        project.augment / "policy.json"
    )
    grey = np.full((len(classes), 5, 96, 96, 3), 210, np.uint8)
    pictures.grid(grey, project.augment / "preview.png")
    views = ["plain", *(f"view {number}" for number in range(1, 5))]
    files.write_json(project.augment / "preview.json", {"rows": classes, "columns": views})
    figures = {"value": 0.85, "low": 0.8, "high": 0.89}
    raced = [{"epochs": 2, "accuracy": figures, "curve": [0.8, 0.85], "multiply_adds": 5 * 10**9}]
    depths = {"features.10": 0.712, "features.18": 0.81}
    candidates = [
        Candidate(
            "mobilenet_v2", 2_223_872, 58_000_000, 0.81, 0.77, 0.80, 1,
            race=raced, prior=0.71878, depths=depths,
        ),
        Candidate("resnet18", 11_176_512, 330_000_000, 0.82, 0.76, 0.74, 2, race=raced),
    ]  # fmt: skip
    lead = {"value": 0.02, "low": -0.005, "high": 0.045}
    agreement = {
        "same_first": False,
        "tau": -1.0,
        "kept": True,
        "lead": lead,
        "multiply_adds": 10**10,
    }
    why = "mobilenet_v2 has the highest score: almost as accurate at a sixth of the compute"
    Selection(
        backbone="mobilenet_v2", why=why, candidates=candidates, pretraining="ImageNet-1k",
        layers=LAYERS, examples=240, classes=len(classes),
        agreement=agreement, **names,
    ).write(project.selection)  # fmt: skip
    _plan(project)
    Tuning(
        train=settings.train.model_dump() | {"weight_decay": 0.012},
        changed={"train.weight_decay": 0.012},
        trials=[
            {
                "number": number,
                "values": {"train.weight_decay": 0.012, "train.mix": "cutmix"},
                "losses": {"head": loss + 1, "short": loss},
                "validation_loss": loss,
                "validation_accuracy": 0.8,
                "pruned": False,
            }
            for number, loss in enumerate((0.7, 0.5, 0.6))
        ],
        why="the best of 3 trials by validation loss",
        study={
            "fidelities": ["head", "short"],
            "agreement": 0.61,
            "pruning": True,
            "importances": {"train.weight_decay": 0.7, "train.mix": 0.3},
            "confirmed": {
                "examples": 60, "accuracy": figures, "difference": lead,
                "only_model_right": 3, "only_baseline_right": 2, "p_value": 1.0,
                "verdict": "not distinguishable",
            },
        },
    ).write(project.tuning)  # fmt: skip
    _training(project)


def _plan(project: Project) -> None:
    rates = {f"features.{i}": 0.1 * 0.85 ** (17 - i) for i in range(12, 18)} | {"head": 1.0}
    ThawPlan(
        strategy="head_then_all", backbone="mobilenet_v2", weights_sha256=DIGEST, layers=LAYERS,
        phases=[Phase("head", 3, {"head": 1.0}), Phase("above the thaw line", None, rates)],
        thaw_line="features.12", frozen_share=0.68, cache=True, cache_bytes=2**28,
        batch_norm="train", why="features.12 and above learn, 68% of the compute stays frozen",
    ).write(project.thaw_plan)  # fmt: skip


def _training(project: Project) -> None:
    project.train.mkdir(parents=True)
    epochs = np.arange(1, 9)
    pd.DataFrame(
        {
            "epoch": epochs,
            "phase": ["head"] * 3 + ["above the thaw line"] * 5,
            "learning_rate": 0.001 * np.cos(epochs / 6),
            "train_loss": 0.35 + 0.9 * np.exp(-epochs / 2.5),
            "validation_loss": 0.52 + 0.7 * np.exp(-epochs / 2) + 0.004 * epochs**1.5,
            "validation_accuracy": 0.86 - 0.25 * np.exp(-epochs / 2),
        }
    ).to_csv(project.train / "history.csv", index=False)
    frozen = {"head": DIGEST, "above the thaw line": DIGEST[::-1]}
    TrainRun(
        run_key="20260102-030405-abcdef01", mlflow_run_id=None, resumed_from_step=96, steps=640,
        best_epoch=7, stopped_early=False, frozen_before=frozen, frozen_after=dict(frozen),
        seconds=41.2, cpu_seconds=78.9, prefix_seconds=18.4, prefix_cached=True,
        spent={"inputs": 1.2, "gradients": 17.5},
        peak_anonymous_mb=612.5, device="cpu", precision="bfloat16", threads=2,
        versions={"torch": "2.14.1", "torchvision": "0.29.1"},
        prefix_computed=1, prefix_found=4, prefix_bytes=2**27,
        prefix_errors={"features.12": 0.0041},
    ).write(project.train / "run.json")  # fmt: skip
    Retention(
        knowledge=Knowledge(120, 0.325, 1.71, 0.75, 0.775, 0.41),
        curve=[
            Blend(0.0, 0.76, 0.72, 1.0, 6, 14),
            Blend(0.25, 0.8, 0.61, 0.83, 6, 9),
            Blend(0.5, 0.85, 0.52, 0.61, 5, 2),
            Blend(0.75, 0.84, 0.5, 0.44, 3, 1),
            Blend(1.0, 0.825, 0.55, 0.325, 0, 0),
        ],
        best=0.5,
        used=1.0,
        examples=120,
    ).write(project.train / "retention.json")
    for stage, seconds in (("prepare", 6.2), ("embed@mobilenet_v2", 21.5), ("train", 44.0)):
        cost = {"stage": stage, "seconds": seconds, "cpu_seconds": 2 * seconds, "peak_mb": 700.1}
        files.write_json(project.scratch / f"stages/{stage}.json", cost)
