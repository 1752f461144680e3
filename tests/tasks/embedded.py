"""The embedded sample as the repository stores it, also where `dvc pull` has not been called."""

from __future__ import annotations

from pathlib import Path

from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[2]
SAMPLE = ROOT / "data/fashion_mnist_sample.parquet"


def stored_sample() -> Path:
    """The sample's file in the directory remote."""
    pointer = YAML(typ="safe").load(SAMPLE.with_name(f"{SAMPLE.name}.dvc"))
    md5 = pointer["outs"][0]["md5"]
    return ROOT / "data/remote/files/md5" / md5[:2] / md5[2:]
