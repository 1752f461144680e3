from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from flows.cli import app
from flows.project import QUIET
from tasks.records import Project
from tests.flows.conftest import thawline
from tests.small_project import here

COMMANDS = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
HEAVY = "torch torchvision timm mlflow prefect dvc pandas sklearn optuna matplotlib"


def test_the_commands_are_those_of_the_design() -> None:
    promised = "run plan stage new doctor report ui register promote rollback predict status data"
    assert {*promised.split(), "changes", "gc", "weights", "recipes"} <= set(COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example(command: str) -> None:
    from typer.testing import CliRunner

    shown = CliRunner().invoke(app, [command, "--help"])
    assert shown.exit_code == 0
    assert re.search(rf"Example: thawline {command}\b", shown.output)


@pytest.mark.parametrize("arguments", ["['--help']", "['run', '--help']"])
def test_help_imports_nothing_heavy(arguments: str) -> None:
    code = f"""
import sys
sys.argv = ["thawline", *{arguments}]
from flows.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("heavy:", *[name for name in {HEAVY.split()} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy:"


def test_every_command_tells_the_libraries_not_to_call_home() -> None:
    code = """
import os, sys
sys.argv = ["thawline", "recipes"]
from flows.cli import main
from flows.project import QUIET
try:
    main()
finally:
    print({name: os.environ.get(name) for name in QUIET} == QUIET)
"""
    env = {name: value for name, value in os.environ.items() if name not in QUIET}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True", done.stderr


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["run", "--nosuch"], ["stage"], ["new", "x"], ["predict"]],
    ids=lambda a: " ".join(a),
)
def test_wrong_use_exits_with_2(arguments: list[str], tmp_path: Path) -> None:
    assert here(tmp_path, *arguments).returncode == 2


@pytest.mark.parametrize(
    "command",
    ["run", "plan", "status", "report", "register", "promote", "rollback", "changes", "ui", "gc"],
)
def test_outside_a_project_one_sentence_says_so(command: str, tmp_path: Path) -> None:
    done = here(tmp_path, command)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "is not in a Thawline project" in done.stderr


def test_a_mistyped_key_is_refused_before_dvc_is_opened(project: Project) -> None:
    params = project.root / "params.yaml"
    params.write_text(params.read_text().replace("epochs: 3", "epoch: 3"))
    (project.root / "dvc.yaml").write_text("stages: [broken")  # DVC would fail over this
    done = thawline(project, "plan")
    assert done.returncode == 1
    assert "train.epoch: unknown key: did you mean 'epochs'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_traceback_is_shown_on_request(tmp_path: Path) -> None:
    done = thawline(tmp_path, "plan", env={"THAWLINE_DEBUG": "1"})
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_report_says_how_to_make_one(project: Project) -> None:
    done = thawline(project, "report")
    assert (done.returncode, done.stdout) == (1, "")
    assert "make it with: thawline run" in done.stderr
    project.reports.mkdir()
    (project.reports / "report.html").write_text("<p>")
    assert here(project, "report").stdout.strip() == str(project.reports / "report.html")


def test_commands_work_from_a_folder_inside_the_project(project: Project) -> None:
    done = here(project.root / "data", "plan", "--json")
    assert done.returncode == 0, done.stderr
    assert '"prepare"' in done.stdout


def test_a_recipe_is_shown_as_the_problem_has_it(project: Project) -> None:
    images = here(project, "recipes", "standard").stdout
    assert images.startswith("# From about") and "\naugment.policy: flips_crops\n" in images
    texts = here(project, "recipes", "standard", "--problem", "text_classification").stdout
    assert "\naugment.policy: none\n" in texts and "\ntrain.learning_rate: 0.0002\n" in texts


def test_data_and_weights_are_listed_and_fetched(project: Project) -> None:
    shown = here(project, "data").stdout
    assert "tuxpaint" in shown and "fashion_mnist_sample" in shown
    fetched = here(project, "weights", "mobilenet_v2")
    assert fetched.returncode == 0, fetched.stderr
    assert Path(fetched.stdout.strip()).stat().st_size > 10_000_000
    unknown = here(project, "data", "fashion_mnits")
    assert unknown.returncode == 1
    assert "did you mean 'fashion_mnist'" in unknown.stderr
