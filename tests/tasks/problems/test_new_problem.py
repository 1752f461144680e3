"""One folder is all that a new problem takes: a project for the toy, made as any other."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from flows import dag, new, repository, watch
from flows.cli import app
from tasks import catalogue, files, params_file, problems
from tasks.catalogue import Source
from tasks.errors import ParamsError, ThawlineError
from tasks.records import Project
from tests.tasks.problems.kinds import KINDS

NAME = "signal_classification"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / KINDS[NAME].draw(tmp_path)


def test_a_project_gets_the_sections_of_its_problem(tmp_path: Path, data: Path) -> None:
    data.write_text(data.read_text().replace("signal,label", "reading,label"))
    options = {"signal_column": "reading"}
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


def test_a_known_data_set_brings_its_problem(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = catalogue.known_data()["fashion_mnist_sample"].model_copy(
        update={
            "problem": NAME,
            "files": {data.name: files.sha256_file(data)},
            "sources": [Source(folder=str(data.parent))],
        }
    )
    monkeypatch.setattr(catalogue, "known_data", lambda: {"signals": entry})
    new.make(new.Wanted(tmp_path / "made", "signals"))
    params = params_file.load(tmp_path / "made")
    assert (params.problem, params.augment.policy) == (NAME, "noise")
    assert params.prepare.data == "data/signals.parquet"
    assert "/data/signals.parquet\n" in (tmp_path / "made/.gitignore").read_text()
    with pytest.raises(
        ThawlineError, match="not a readable Parquet"
    ):  # what the user says comes first
        new.make(new.Wanted(tmp_path / "images", "signals", problems.DEFAULT))
    (tmp_path / "signals").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ThawlineError, match="no class folders"):  # and so does a folder here
        new.make(new.Wanted(tmp_path / "images", "signals"))


def test_what_only_another_problem_has_is_refused(tmp_path: Path, data: Path) -> None:
    for key in ("path_column", "no_such"):
        option = f"--{key.replace('_', '-')}"
        with pytest.raises(ThawlineError, match=f"{option} is no option of this problem"):
            new.make(new.Wanted(tmp_path / "made", str(data), NAME, options={key: "x"}))
        assert not (tmp_path / "made").exists()
    tree = KINDS[NAME].params(NAME, "x").model_dump(by_alias=True)
    tree["augment"]["image_size"] = 96
    with pytest.raises(ParamsError, match=r"augment\.image_size: unknown key"):
        params_file.check(tree)


def asked(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def test_its_options_can_be_given_and_are_listed(tmp_path: Path, data: Path) -> None:
    data.write_text(data.read_text().replace("signal,label", "reading,2024"))
    folder = tmp_path / "made"
    named = ["--problem", NAME, "--data", str(data), "--label-column", "2024"]
    done = asked(
        *["new", "--signal-column", "reading", str(folder), *named],
        *["--max-unreadable=0.5", "--columns", "2024, reading"],
    )
    assert done.exit_code == 0, done.output
    prepare = params_file.load(folder).prepare.model_dump()
    assert (prepare["signal_column"], prepare["label_column"]) == ("reading", "2024")
    assert prepare["max_unreadable"] == 0.5 and prepare["columns"] == ["2024", "reading"]
    assert "max_unreadable: 0.5 " in (folder / "params.yaml").read_text()  # a number, as ever
    shown = asked("new", "--problem", NAME, "--help").output
    assert f"Options of {NAME}" in shown and "--signal-column" in shown
    assert "# " not in shown and "numbers a signal" in shown  # as its params.yaml explains it
    assert f"Example: thawline new … --problem {NAME} --signal-column signal" in shown
    assert "--path-column" not in shown.partition("Options of")[2]


def test_a_known_data_set_brings_the_options_of_its_problem() -> None:
    shown = asked("new", "--data", "movie_snippets", "--help").output
    assert "Options of text_classification" in shown and "--text-column" in shown
    assert "Options of image_classification" in asked("new", "--help").output


def test_a_problem_whose_libraries_are_missing_makes_no_project(
    tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(problems.load(NAME), "LIBRARIES", ("no-such-library",))
    with pytest.raises(ThawlineError, match="needs no-such-library, which is not installed"):
        new.make(new.Wanted(tmp_path / "made", str(data), NAME))
    assert not (tmp_path / "made").exists()


def test_wrong_options_are_wrong_use(tmp_path: Path, data: Path) -> None:
    start = ["new", str(tmp_path / "made"), "--data", str(data), "--problem", NAME]
    for wrong in (["--path-column", "x"], ["--no-such=x"], ["--signal-column"], ["stray"]):
        assert asked(*start, *wrong).exit_code == 2
    assert asked("new", "--problem", "no_such", "--help").exception
    assert not (tmp_path / "made").exists()
