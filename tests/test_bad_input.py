"""A user's mistakes, through the command line: one clear sentence, and nothing half-written.

Mistakes that concern one module only are tested beside it. Elsewhere: two runs at once
(`tests/flows/test_run.py`), a folder that is no project (`tests/flows/test_cli.py`), empty or small
data (`tests/flows/test_new.py`), an alias that somebody else moved (`tests/test_main_job.py`).
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tasks import params_file
from tasks.records import Project
from tests import small_project as small


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.draw(tmp_path_factory.mktemp("bad_input"))[0]


@pytest.fixture(scope="module")
def project(data: Path) -> Project:
    """Made and never run; tests leave it as it is."""
    return small.new(data.parent / "project", data)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file and what is in it, without DVC's own caches, which any reading may touch."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b""
        for path in sorted(folder.rglob("*"))
        if not {".git", "tmp", ".thawline"} & set(path.relative_to(folder).parts)
    }


def refused(folder: Path, *command: str, program: bool = False) -> str:
    """The sentence with which a command refuses, having changed nothing.

    `program`: as one of its own, which leaves no file open.
    """
    before = listing(folder)
    if program:
        done = small.call(folder, "thawline", *command, limit=60)
    else:
        done = small.here(folder, *command)
    assert done.returncode == 1, done.stdout + done.stderr
    assert done.stdout == ""
    assert done.stderr.count("thawline: ") == 1 and done.stderr.startswith("thawline: ")
    assert "Traceback" not in done.stderr
    assert listing(folder) == before
    return done.stderr.removeprefix("thawline: ").strip()


@pytest.mark.parametrize(
    ("right", "wrong", "sentence"),
    [
        ("learning_rate: 0.001 ", "learning_rat: 0.01 ", "train.learning_rat: unknown key"),
        ("learning_rate: 0.001 ", "learning_rate: .nan ", "train.learning_rate"),
        ("learning_rate: 0.001 ", "learning_rate: .inf ", "train.learning_rate"),
        ("weight_decay: 0.05 ", "weight_decay: .nan ", "train.weight_decay"),
        (
            "  backbone: auto",
            "  backbone: resnet18",
            "select.backbone: embed.backbones does not list 'resnet18'",
        ),
        ("problem: image", "problem: picture", "problem: there is no such problem: did you mean"),
        ("strategy: last_blocks ", "strategy: last_block ", "did you mean 'last_blocks'?"),
        ("policy: flips_crops ", "policy: flip_crops ", "did you mean 'flips_crops'?"),
        ("device: auto", "device: cpu\nprecision: float16 #", "precision: float16 needs a GPU"),
        (
            "trials: 0",
            "trials: 5\n  space: {prepare.store_side: {low: 1, high: 2}} #",
            "only train.*",
        ),
    ],
    ids=[
        "mistyped",
        "nan",
        "infinite",
        "nan without bounds",
        "not listed",
        "no problem",
        "no strategy",
        "no policy",
        "no GPU",
        "not tunable",
    ],
)
def test_parameters_that_cannot_be_used(
    right: str, wrong: str, sentence: str, project: Project
) -> None:
    path = project.root / params_file.PARAMS_FILE
    text = path.read_text(encoding="utf-8")
    assert right in text
    lines = text.replace(right, wrong, 1).splitlines(keepends=True)
    if "precision: float16" in wrong:
        lines = [line for line in lines if not line.startswith("precision: auto")]
    if "space:" in wrong:
        start = next(n for n, line in enumerate(lines) if line.startswith("  space:   "))
        del lines[start : start + 3]
    path.write_text("".join(lines), encoding="utf-8")
    try:
        told = refused(project.root, "run")
    finally:
        path.write_text(text, encoding="utf-8")
    assert sentence in told
    assert len(told.splitlines()) <= 2  # the file, and what is wrong in it


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["包/图000.png,包", "../outside.png,包"], "row 2: '../outside.png' lies outside"),
        (["包/图000.png,包", "/etc/hostname,包"], "lies outside"),
        (["包/图000.png,包", "长裤/图000.png,"], "has no label"),
        (["包/图000.png,包", "长裤/none.png,长裤"], "none.png"),
    ],
    ids=["above its root", "absolute", "no label", "no such file"],
)
def test_manifests_that_cannot_be_used(
    rows: list[str], sentence: str, data: Path, tmp_path: Path
) -> None:
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join(["path,label", *rows]) + "\n", encoding="utf-8")
    told = refused(tmp_path, "new", "made", "--data", str(manifest), "--images", str(data))
    assert sentence in told
    assert len(told.splitlines()) == 1


def test_an_empty_folder_and_no_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "no class folders" in refused(tmp_path, "new", "made", "--data", "empty")
    assert "no such file or folder" in refused(tmp_path, "new", "made", "--data", "nowhere")
    (tmp_path / "empty/cat").mkdir()
    assert "class folder cat has no images" in refused(tmp_path, "new", "made", "--data", "empty")


def test_images_that_cannot_be_read_are_each_named_with_the_reason(
    data: Path, tmp_path: Path
) -> None:
    good = (data / "包/图000.png").read_bytes()
    for name, kind in {"cat": 0, "dog": 1}.items():
        (tmp_path / "raw" / name).mkdir(parents=True)
        for number, source in enumerate(
            sorted((data / list(small.CLASSES.values())[kind]).iterdir())[2:12]
        ):
            (tmp_path / f"raw/{name}/{number}.png").write_bytes(source.read_bytes())
    bad = {
        "truncated.png": good[: len(good) // 2],
        "nothing.png": b"",
        "text.png": b"this is a text\n",
        "photo.heic": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 64,
    }
    for name, content in bad.items():
        (tmp_path / "raw/cat" / name).write_bytes(content)
    told = refused(tmp_path, "new", "made", "--data", "raw")
    assert "4 of 24 images cannot be read" in told and "prepare.max_unreadable" in told
    for name in bad:
        assert f"cat/{name}: " in told
    assert len(told.splitlines()) == 1


def test_backbones_unknown_or_out_of_reach(
    data: Path, server: dict[str, str], tmp_path: Path
) -> None:
    """Through the whole flow; no features are left."""
    project = small.new(tmp_path / "project", data)
    done = small.call(
        project.root, "thawline", "run", "--set", "embed.backbones=[mobilenet_v22, resnet18]",
        TORCH_HOME=str(tmp_path / "none"), **small.guarded(tmp_path / "guard"), **server,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    told = done.stderr.partition("thawline: ")[2].splitlines()
    assert len(told) == 3  # two stages, and where the log is
    assert "unknown backbone 'mobilenet_v22'" in "".join(told)
    assert "'mobilenet_v2'" in "".join(told)
    assert "weights of resnet18 are not on this machine and cannot be downloaded" in "".join(told)
    assert "thawline weights resnet18" in "".join(told)
    features = project.root / "outputs/features"
    assert not features.exists() or not [p for p in features.rglob("*") if p.suffix == ".npy"]
    assert not project.models.exists()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB, where the tester may make one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("only the superuser of a Linux machine can make a small file system")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_too_full(tiny_disk: Path, data: Path) -> None:
    project = small.new(tiny_disk / "project", data)
    told = refused(project.root, "run", program=True)
    assert "has 0.0 GB free, this run needs about 0.3 GB; free some space" in told
    assert len(told.splitlines()) == 1
