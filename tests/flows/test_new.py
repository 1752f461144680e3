from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flows import dag, new, repository
from tasks import params_file, versions
from tasks.errors import ThawlineError
from tasks.records import Project
from tests.flows.conftest import thawline
from tests.small_project import here


def draw_images(folder: Path, classes: int = 2, each: int = 12) -> Path:
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"类别{label}").mkdir(parents=True)
        for number in range(each):
            pixels = random.integers(0, 255, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"类别{label}/{number}.png")
    return folder


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("raw") / "my images")


def lines_without(text: str, part: str) -> list[str]:
    return [line for line in text.splitlines() if part not in line]


def test_a_folder_of_class_folders_becomes_a_project(images: Path, tmp_path: Path) -> None:
    done = thawline(tmp_path, "new", "flowers", "--data", str(images), "--name", "Blumen")
    assert done.returncode == 0, done.stderr
    assert "24 examples of 2 classes" in done.stdout
    root = tmp_path / "flowers"
    values = params_file.load(root)
    assert values.prepare.data == str(images)
    assert values.register_.model == "Blumen"
    assert values.train.epochs == 20  # few images, more passes
    assert versions.recorded(root) == versions.VERSIONS
    assert "number draws another split" in (root / "params.yaml").read_text()  # it is explained
    assert (root / ".git").is_dir()
    ignored = subprocess.run(
        ["git", "check-ignore", "mlflow.db", ".thawline/x", ".prefect/x", "logs/x"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert len(ignored.stdout.split()) == 4
    plan = here(root, "plan")
    assert plan.returncode == 0, plan.stderr
    assert "has not run yet" in plan.stdout


@pytest.mark.parametrize(
    ("each", "recipe", "strategy", "contrast"),
    [(6, "few_shot", "head_only", 0), (20, "contrastive", "last_blocks", 0.9)],
)
def test_few_texts_get_a_recipe_for_so_few_and_the_reason_is_told(
    each: int, recipe: str, strategy: str, contrast: float, tmp_path: Path
) -> None:
    rows = ["text,label,split"]
    for number in range(40):
        rows += [f"a {word} film number {number},{word},{split}" for word, split in
                 (("good", "test"), ("bad", "test"))]  # fmt: skip
    rows += [f"{word} {number},{word},train" for word in ("good", "bad") for number in range(each)]
    (tmp_path / "reviews.csv").write_text("\n".join(rows) + "\n")
    asked = ["--data", "reviews.csv", "--problem", "text_classification"]
    done = here(tmp_path, "new", "project", *asked)
    assert done.returncode == 0, done.stderr
    assert f"recipe {recipe} (for fewer than" in done.stdout
    assert f"examples a class, here {each})" in done.stdout  # test examples apart
    values = params_file.load(tmp_path / "project")
    assert (values.freeze.strategy, values.train.contrast) == (strategy, contrast)
    own = here(tmp_path, "new", "own", *asked, "--recipe", "small_data")
    assert "recipe small_data\n" in own.stdout
    assert params_file.load(tmp_path / "own").train.contrast == 0


def test_the_templates_are_the_repositorys_own(repository_root: Path) -> None:
    for name in ("dvc.yaml", "params.yaml"):
        text = (new.TEMPLATES / name).read_text(encoding="utf-8")
        assert text == (repository_root / name).read_text(encoding="utf-8")


def test_a_manifest_depends_on_its_images_too(images: Path, tmp_path: Path) -> None:
    files = sorted(p.relative_to(images) for p in images.rglob("*.png"))
    rows = [f"{file},{file.parent}" for file in files]
    manifest = tmp_path / "list.csv"
    manifest.write_text("\n".join(["picture,label", *rows]) + "\n", encoding="utf-8")
    options = ["--images", str(images), "--path-column", "picture"]
    done = here(tmp_path, "new", "project", "--data", str(manifest), *options)
    assert done.returncode == 0, done.stderr
    root = tmp_path / "project"
    assert params_file.load(root).prepare.path_column == "picture"
    ours, template = (root / "dvc.yaml").read_text(), (new.TEMPLATES / "dvc.yaml").read_text()
    assert lines_without(ours, "${prepare.images}") == template.splitlines()
    with repository.opened(Project(root)) as repo:
        prepare = next(s for s in repo.index.stages if s.addressing == "prepare")
        assert {str(dep) for dep in prepare.deps} >= {str(manifest), str(images)}


def test_in_a_git_repository_dvc_gets_a_subfolder_of_it(images: Path, tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    new.make(new.Wanted(tmp_path / "inside", str(images)))
    assert not (tmp_path / "inside/.git").exists()
    with repository.opened(Project(tmp_path / "inside")) as repo:
        assert "prepare" in dag.graph(repo)


@pytest.mark.parametrize(
    ("classes", "each", "message"),
    [(1, 12, "one class only"), (2, 2, "add images"), (0, 0, "no class folders")],
)
def test_bad_data_leaves_nothing_behind(
    classes: int, each: int, message: str, tmp_path: Path
) -> None:
    (tmp_path / "raw").mkdir()
    draw_images(tmp_path / "raw", classes, each)
    done = here(tmp_path, "new", "project", "--data", "raw")
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["raw"]


def test_a_folder_in_use_is_refused(images: Path, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    (tmp_path / "project/notes.txt").write_text("mine")
    with pytest.raises(ThawlineError, match="not an empty folder"):
        new.make(new.Wanted(tmp_path / "project", str(images)))
    assert [p.name for p in (tmp_path / "project").iterdir()] == ["notes.txt"]


def test_an_unknown_problem_or_data_set_names_what_there_is(images: Path, tmp_path: Path) -> None:
    with pytest.raises(ThawlineError, match="image_classification"):
        new.make(new.Wanted(tmp_path / "project", str(images), problem="image_classifikation"))
    with pytest.raises(ThawlineError, match="tuxpaint"):
        new.make(new.Wanted(tmp_path / "project", "tuxpint"))
    assert list(tmp_path.iterdir()) == []


def test_names_that_a_registry_refuses_are_mended(images: Path, tmp_path: Path) -> None:
    new.make(new.Wanted(tmp_path / "v1.0 of 100%", str(images)))
    assert params_file.load(tmp_path / "v1.0 of 100%").register_.model == "v1-0-of-100"
