"""One folder is all that a new problem takes: a project for the toy, made as any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import dag, new, repository, watch
from tasks import params_file
from tasks.errors import ParamsError, ThawlineError
from tasks.records import Project
from tests.tasks.problems.kinds import KINDS

NAME = "signal_classification"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / KINDS[NAME].draw(tmp_path)


def test_a_project_gets_the_sections_of_its_problem(tmp_path: Path, data: Path) -> None:
    data.write_text(data.read_text().replace("signal,label", "reading,label"))
    options = new.own_options(["--signal-column", "reading"])
    told = new.make(new.Wanted(tmp_path / "made", str(data), NAME, options=options))
    assert told[0].startswith("121 examples of 3 classes")
    project = Project(tmp_path / "made")
    params = params_file.load(project.root)
    assert (params.problem, params.augment.policy) == (NAME, "noise")
    assert params.prepare.model_dump()["signal_column"] == "reading"
    assert params.augment.model_dump()["noise"] == 0.05  # what the problem proposes
    text = (project.root / "params.yaml").read_text()
    assert "image" not in text.partition("\nselect:")[0] and "# numbers a signal" in text
    written = (project.root / "dvc.yaml").read_text()
    assert "prepare.length" in written and "max_pixels" not in written
    with repository.opened(project) as repo:  # DVC finds every parameter that stages depend on
        repository.check_places(repo, params)
        assert {"prepare", "embed@mlp_small", "package"} <= set(dag.graph(repo))
    assert watch.fingerprint(project)


def test_what_only_another_problem_has_is_refused(tmp_path: Path, data: Path) -> None:
    for option in ("--path-column", "--no-such"):
        options = new.own_options([f"{option}=x"])
        with pytest.raises(ThawlineError, match=f"{option} is no option of this problem"):
            new.make(new.Wanted(tmp_path / "made", str(data), NAME, options=options))
        assert not (tmp_path / "made").exists()
    with pytest.raises(ThawlineError, match="'stray' is not an option"):
        new.own_options(["stray"])
    tree = KINDS[NAME].params(NAME, "x").model_dump(by_alias=True)
    tree["augment"]["image_size"] = 96
    with pytest.raises(ParamsError, match=r"augment\.image_size: unknown key"):
        params_file.check(tree)
