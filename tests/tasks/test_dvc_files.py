"""The `.dvc` files of the data are found wherever the data lies in the project."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks import dvc_files, snapshot
from tasks.records import Project
from tasks.tracking import runs

PARAMS = """\
problem: image_classification
prepare:
  data: {}
embed:
  backbones: [mobilenet_v2]
"""


def project(root: Path, data: str, *dvc: str) -> Project:
    root.mkdir()
    (root / "params.yaml").write_text(PARAMS.format(data))
    for number, name in enumerate(dvc):
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        out = file.name.removesuffix(".dvc")
        file.write_text(f"outs:\n- md5: '{number}'\n  hash: md5\n  path: {out}\n")
    return Project(root)


@pytest.mark.parametrize(
    ("data", "own"),
    [
        ("reviews.csv", "reviews.csv.dvc"),
        ("./raw/2026/photos", "raw.dvc"),  # a folder around it is tracked
        ("raw/reviews.csv", "raw/reviews.csv.dvc"),
    ],
)
def test_the_file_of_the_data_is_part_of_the_data_version(
    tmp_path: Path, data: str, own: str
) -> None:
    made = project(tmp_path / "p", data, "data/more.csv.dvc", own, "weights.pt.dvc")
    wanted = {"data/more.csv.dvc", own}
    found = {path.relative_to(made.root).as_posix() for path in dvc_files.of_data(made.root)}
    assert found == wanted
    kept = {path.relative_to(made.root).as_posix() for path in snapshot.paths(made)}
    assert kept == {"params.yaml", *wanted}
    tags = runs.model_lineage(made)
    assert tags[f"{runs.DVC}{own.removesuffix('.dvc')}"] == "1"
    assert tags[f"{runs.DVC}data/more.csv"] == "0"


def test_data_outside_and_unusable_parameters_name_none(tmp_path: Path) -> None:
    (tmp_path / "outside.csv.dvc").write_text("outs: []\n")
    assert dvc_files.of_data(project(tmp_path / "a", "../outside.csv").root) == []
    assert dvc_files.of_data(project(tmp_path / "b", f"{tmp_path}/outside.csv").root) == []
    assert dvc_files.of_data(project(tmp_path / "c", "[", "data/x.csv.dvc").root) != []
