"""What cannot be run here (containers) is held to its schema; the rest to what reads it."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from ruamel.yaml import YAML

from infra.lock import IMAGE

ROOT = Path(__file__).parents[2]
COMPOSE = ROOT / "infra/compose.yaml"
DOCKERFILE = (ROOT / "infra/Dockerfile").read_text(encoding="utf-8")


def read(path: Path) -> Any:
    return YAML(typ="safe", pure=True).load(path)


def program(name: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    folder = Path(sys.executable).parent
    return subprocess.run([folder / name, *arguments], capture_output=True, text=True)


def test_prefect_reads_the_deployment_of_a_flow_that_exists() -> None:
    from prefect.cli.deploy._models import PrefectYamlModel
    from prefect.client.schemas.schedules import CronSchedule
    from prefect.flows import load_flow_from_entrypoint

    given = read(ROOT / "infra/prefect.yaml")
    model = PrefectYamlModel.model_validate(given)
    assert model.pull == []
    (deployment,) = model.deployments
    known = {name.replace("-", "_") for name in type(deployment).model_fields}
    assert given["deployments"][0].keys() <= known  # the model passes over a mistyped key
    assert deployment.work_pool is not None and deployment.work_pool.name == "thawline"
    assert deployment.concurrency_limit is None  # a run that is paused would lose its slot, and end
    (schedule,) = deployment.schedules or []
    assert CronSchedule(cron=schedule.cron, timezone=schedule.timezone).cron == "0 3 * * *"
    assert deployment.entrypoint is not None
    flow = load_flow_from_entrypoint(deployment.entrypoint, use_placeholder_flow=False)
    wanted = inspect.signature(flow.fn).parameters
    assert deployment.parameters.keys() <= wanted.keys()
    needed = {n for n, p in wanted.items() if p.default is inspect.Parameter.empty}
    assert needed <= deployment.parameters.keys()


def test_compose_keeps_to_the_specification(tmp_path: Path) -> None:
    def check(file: Path) -> int:
        return program(
            "check-jsonschema", "--builtin-schema", "vendor.compose-spec", file
        ).returncode

    assert check(COMPOSE) == 0
    wrong = tmp_path / "compose.yaml"
    wrong.write_text(COMPOSE.read_text().replace("healthcheck:", "helthcheck:", 1))
    assert check(wrong) != 0


def test_compose_opens_nothing_and_holds_no_password() -> None:
    compose = read(COMPOSE)
    services = compose["services"]
    assert services.keys() == {"postgres", "prefect", "worker", "mlflow"}
    for name, service in services.items():
        assert service["healthcheck"]["test"], name
        assert all(str(port).startswith("127.0.0.1:") for port in service.get("ports", [])), name
        for needed, how in service.get("depends_on", {}).items():
            assert needed in services and how == {"condition": "service_healthy"}
        volumes = [v.partition(":")[0] for v in service.get("volumes", []) if v[0] not in "$./"]
        assert set(volumes) <= compose["volumes"].keys()
        assert not re.search(r":(latest)?$", service["image"])
    text = COMPOSE.read_text()
    passwords = re.findall(r"\$\{(\w*PASSWORD\w*)(.*?)\}", text)
    assert passwords and all(rest.startswith(":?") for _, rest in passwords)
    assert not re.search(r"//\w+:[^/\s]*@", text)  # no address with one


@pytest.mark.parametrize("name", ["Prefect", "MLflow"])
def test_the_databases_of_compose_are_those_that_its_servers_use(name: str) -> None:
    from sqlalchemy import make_url

    compose = read(COMPOSE)
    postgres = compose["services"]["postgres"]
    made = re.findall(r"CREATE DATABASE (\w+)", compose["configs"]["databases"]["content"])
    variables = compose["services"][name.lower()]["environment"]
    (url,) = (make_url(v) for v in variables.values() if str(v).startswith("postgresql"))
    assert url.database in [postgres["environment"]["POSTGRES_DB"], *made]
    assert (url.host, url.username) == ("postgres", postgres["environment"]["POSTGRES_USER"])
    assert "PGPASSWORD" in variables


def test_the_dockerfile_is_as_hadolint_wants_it(tmp_path: Path) -> None:
    done = program("hadolint", ROOT / "infra/Dockerfile")
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "Dockerfile"
    wrong.write_text(re.sub(r"^USER .*$", "USER root", DOCKERFILE, flags=re.MULTILINE))
    assert program("hadolint", wrong).returncode != 0


def test_the_image_is_pinned_and_names_no_index() -> None:
    assert re.search(r"^ARG PYTHON=\d+\.\d+\.\d+-", DOCKERFILE, re.MULTILINE)
    stages = re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)
    assert stages == ["python:${PYTHON}"] * 2
    assert "://" not in DOCKERFILE
    assert re.findall(r"^USER (\d+)$", DOCKERFILE, re.MULTILINE)[-1] != "0"


def test_the_image_gets_every_file_that_it_copies() -> None:
    ignored = (ROOT / "infra/Dockerfile.dockerignore").read_text().splitlines()
    copied = re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists()
        assert any(Path(name).match(line[1:]) for line in ignored if line.startswith("!")), name


def test_the_image_takes_the_cpu_build_where_it_is_asked_to(tmp_path: Path) -> None:
    """The commands by which the image makes its list, run on the locks."""
    (tmp_path / "requirements.lock").write_text((ROOT / "requirements.lock").read_text())
    commands = DOCKERFILE.split("pip.conf \\\n", 1)[1].split("python -m venv")[0].rstrip("\\ \n&")
    subprocess.run(["sh", "-c", f"TORCH=cpu; {commands}"], cwd=tmp_path, check=True)
    lines = (tmp_path / "requirements.lock").read_text().splitlines()
    assert [x for x in lines if re.fullmatch(r"torch==[\d.]+\+cpu", x)]
    assert not [x for x in lines if x.startswith("nvidia")]


def test_the_image_has_what_the_extras_need() -> None:
    """Every problem, strategy and remote; not HEIF, whose library is not locked."""
    installed = re.findall(r"-r (\S+)", DOCKERFILE)
    lines = [line for lock in installed for line in (ROOT / lock).read_text().splitlines()]
    locked = dict(line.partition(";")[0].split("==") for line in lines if "==" in line)
    assert len(locked) == sum("==" in line for line in lines)  # none twice, none in two versions
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    assert extras.keys() == {*IMAGE, "heif", "servers", "dev"}
    for extra in IMAGE:
        for requirement in map(Requirement, extras[extra]):
            assert requirement.specifier.contains(locked[requirement.name]), requirement
    dev = (ROOT / "requirements-dev.lock").read_text().splitlines()
    assert set((ROOT / "requirements-extras.lock").read_text().splitlines()) <= set(dev)  # tested
