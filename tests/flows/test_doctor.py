from __future__ import annotations

import json
import re
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows import doctor
from flows.cli import app
from tasks.records import Project
from tests import small_project
from tests.flows.conftest import thawline
from tests.small_project import here
from tests.tasks.problems import kinds


def test_a_sound_project_passes(project: Project) -> None:
    done = thawline(project, "doctor", "--json")
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads(done.stdout)
    assert found["ok"]
    assert {"packages", "memory", "device", "disk", "dvc", "data", "mlflow", "prefect"} <= {
        f["what"] for f in found["findings"]
    }


def test_a_missing_input_fails(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.root / "data/raw.txt").unlink()
    monkeypatch.chdir(project.root)
    done = CliRunner().invoke(app, ["doctor"])
    assert done.exit_code == 1
    found = [f for f in doctor.examine() if f.verdict == "fail"]
    assert [(f.what, f.found) for f in found] == [("data", "data/raw.txt is missing")]


def test_parameters_that_cannot_be_used_fail(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 3", "epoch: 3"))
    monkeypatch.chdir(project.root)
    done = CliRunner().invoke(app, ["doctor", "--json"])
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert not found["ok"]
    (failed,) = [f["found"] for f in found["findings"] if f["verdict"] == "fail"]
    assert "train.epoch: unknown key: did you mean 'epochs'" in failed


def test_versions_that_clash_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: "0.165.0" if name == "fastapi" else real(name)
    )
    found = [f for f in doctor._packages() if f.verdict == "fail"]
    assert [f.advice for f in found] == ["pip install 'fastapi<0.151'"]


def test_an_unreachable_prefect_server_is_found(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks import params_file

    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    values = params_file.load(project.root)
    (found,) = doctor._prefect(project, values)
    assert found.verdict == "fail" and "unset PREFECT_API_URL" in found.advice


def test_outside_a_project_the_machine_is_looked_at(tmp_path: Path) -> None:
    done = here(tmp_path, "doctor", "--json")
    assert done.returncode == 0, done.stderr
    verdicts = {f["what"]: f["verdict"] for f in json.loads(done.stdout)["findings"]}
    assert verdicts["project"] == "warn"


def test_data_is_judged_without_a_project(tmp_path: Path) -> None:
    data, _ = small_project.draw(tmp_path)
    done = here(tmp_path, "doctor", "--data", str(data), "--json")
    assert done.returncode == 0, done.stderr
    found = {f["what"]: f for f in json.loads(done.stdout)["findings"]}
    assert "3 classes" in found["data"]["found"]
    assert small_project.TRUNCATED in found["unreadable"]["found"]
    assert found["copies"]["found"].startswith("1: ")
    assert found["leaks"]["verdict"] == "ok"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted({data.name, _.name})


def test_data_of_several_labels_is_judged_by_its_separator(tmp_path: Path) -> None:
    data = tmp_path / kinds.KINDS["texts of several labels"].draw(tmp_path)
    ask = ("doctor", "--problem", "text_classification", "--data", str(data), "--json")
    done = thawline(tmp_path, *ask, "--label-separator", ";")
    assert done.returncode == 0, done.stderr
    found = {f["what"]: f for f in json.loads(done.stdout)["findings"]}
    assert found["data"]["found"].startswith("3 labels, several an example; ")
    (wrong,) = json.loads(thawline(tmp_path, *ask, "--label-separator", "|").stdout)["findings"]
    assert "no example has two labels; ';' stands in" in wrong["found"]
    folder = tmp_path / "made"
    made = thawline(tmp_path, "new", str(folder), *ask[1:-1], "--label-separator", ";")
    assert "121 examples of 3 labels, several each, to be split" in made.stdout
    text = (folder / "params.yaml").read_text()
    assert re.search(r"label_separator: '?;'? +# what stands between several labels", text)


def test_a_class_that_may_be_a_missing_label_is_told(tmp_path: Path) -> None:
    words = ("good", "bad", "NaN", "N/A")
    rows = [f"a film called {number},{words[number % 4]}" for number in range(160)]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]) + "\n")
    ask = ("--data", "reviews.csv", "--problem", "text_classification")
    told = "a class is called 'NaN', with 40 examples (the first is reviews.csv#3)"
    made = thawline(tmp_path, "new", "made", *ask)
    assert f"{told}: if that is a missing label, fill it in or remove" in made.stdout
    assert "a class is called 'N/A', with 40 examples" in made.stdout
    done = thawline(tmp_path, "doctor", *ask, "--json")
    assert done.returncode == 0, done.stderr
    warned = [f for f in json.loads(done.stdout)["findings"] if f["what"] == "missing label?"]
    assert [f["verdict"] for f in warned] == ["warn", "warn"]
    assert told in [f["found"] for f in warned]
    assert all(f["advice"].startswith("if that is a missing label, ") for f in warned)


def test_data_that_cannot_be_used_fails_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "list.csv").write_text("path,kind\na.png,x\n")
    done = here(tmp_path, "doctor", "--data", "list.csv", "--json")
    assert done.returncode == 1
    (found,) = json.loads(done.stdout)["findings"]
    assert "no column 'label'" in found["found"]
    done = here(tmp_path, "doctor", "--data", "list.csv", "--label-column", "kind")
    assert done.returncode == 1 and "one class only" in done.stdout
