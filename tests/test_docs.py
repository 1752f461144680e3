"""The documents name only what exists, and both languages name the same."""

from __future__ import annotations

import re
import shlex
import shutil
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

from flows import dag, repository
from flows.cli import app
from tasks import catalogue, params_file
from tasks.params import FreezeParams, key_paths
from tasks.problems.image_classification.predictor import Predictor
from tasks.records import Layer, Project
from tests.tasks import trained_project

ROOT = Path(__file__).parents[1]
READMES = ("README.md", "README.zh-CN.md")
GUIDES = ("docs/from-article-to-code.md", "docs/from-article-to-code.zh-CN.md")
SERVERS = ("docs/servers.md", "docs/operations.md")
DECISIONS = sorted(f"docs/decisions/{p.name}" for p in (ROOT / "docs/decisions").iterdir())
PAGES = [
    *READMES,
    *GUIDES,
    *SERVERS,
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/design.md",
    *DECISIONS,
]
COMMANDS: Any = typer.main.get_command(app)
KEYS = set(key_paths())
LOOK = ("**Look at**", "**看哪里：**")
FILE = r"(?:tasks|flows|tests|docs|data|infra)/[\w./-]+\.(?:py|md|yaml|dvc)"


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text(page), re.MULTILINE | re.DOTALL)


def prose(page: str) -> str:
    return re.sub(r"^```.*?^```", "", text(page), flags=re.MULTILINE | re.DOTALL)


def code(line: str) -> list[str]:
    return re.findall(r"`([^`]+)`", line)


def rows(page: str) -> list[list[str]]:
    """The cells of all tables but their headings."""
    lines = [line.strip("| ") for line in prose(page).splitlines() if line.startswith("|")]
    cells = [re.split(r"\s*\|\s*", line) for line in lines]
    starts = [i for i, row in enumerate(cells) if set("".join(row)) <= set("-:")]
    return [row for i, row in enumerate(cells) if i not in starts and i + 1 not in starts]


def shell_lines(page: str) -> list[list[str]]:
    """The words of each command in the shell blocks, comments left out."""
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)\s]+)\)", prose(page))
    for link in (x for x in links if not x.startswith(("http://", "https://"))):
        place, _, anchor = link.partition("#")
        target = (ROOT / page).parent / place if place else ROOT / page
        assert target.resolve().exists(), link
        if anchor:
            assert anchor in anchors(str(target.resolve().relative_to(ROOT))), link


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    whole = re.compile(FILE)
    named = [x for x in code(prose(page)) if whole.fullmatch(x)]
    made_up = {"tasks/thaw_strategies/last_two.py"}  # the README's example, for the reader to write
    assert [x for x in named if not (ROOT / x).exists() and x not in made_up] == []


@pytest.mark.parametrize("page", PAGES)
def test_keys_that_are_named_exist(page: str) -> None:
    """What begins like a section of params.yaml and has a dot is a key, perhaps with a value."""
    sections = "|".join({key.partition(".")[0] for key in KEYS if "." in key})
    named = re.findall(rf"`((?:{sections})\.[a-z_.]+)(?::[^`]*)?`", prose(page))
    metrics = {"train.seconds", "train.cpu_seconds", "train.peak_anonymous_mb"}
    assert [key for key in named if key not in KEYS | metrics] == []


@pytest.mark.parametrize("page", [*READMES, *GUIDES, "CONTRIBUTING.md"])
def test_commands_can_be_called_so(page: str) -> None:
    targets = set(re.findall(r"^([a-z-]+):", text("Makefile"), re.MULTILINE))
    seen = 0
    for words in shell_lines(page):
        if words[0] == "make":
            assert words[1] in targets, words
        elif words[0] == "thawline":
            COMMANDS.commands[words[1]].make_context(words[1], words[2:])  # raises for wrong use
        else:
            assert words[0] in ("git", "cd", "source", "pre-commit"), words
            continue
        seen += 1
    assert seen
    for inline in code(prose(page)):
        if inline.startswith("make "):
            assert inline.split()[1] in targets, inline
        if inline.startswith("thawline "):
            assert inline.split()[1] in {*COMMANDS.commands, "--help"}, inline


@pytest.mark.parametrize("page", [READMES[0], GUIDES[0]])
def test_values_that_are_set_are_allowed(page: str, tmp_path: Path) -> None:
    changed: set[str] = set()
    for words in shell_lines(page):
        assignments = [word for flag, word in pairwise(words) if flag == "--set"]
        if assignments:
            shutil.copy(ROOT / "params.yaml", tmp_path)
            before = params_file.load(tmp_path)
            after = params_file.set_values(tmp_path, assignments)
            keys = {assignment.partition("=")[0] for assignment in assignments}
            # What changes nothing must be the way back from an earlier change.
            assert after != before or keys <= changed, words
            changed |= keys


@pytest.mark.parametrize("pages", [READMES, GUIDES])
def test_both_languages_say_the_same(pages: tuple[str, str]) -> None:
    assert shell_lines(pages[0]) == shell_lines(pages[1])
    python = [[re.sub(r"\s+# .*", "", block) for block in blocks(page, "python")] for page in pages]
    assert python[0] == python[1]
    assert blocks(pages[0], "yaml") == blocks(pages[1], "yaml")
    assert [code("".join(row)) for row in rows(pages[0])] == [
        code("".join(row)) for row in rows(pages[1])
    ]
    levels = [re.findall(r"^(#+) ", prose(page), re.MULTILINE) for page in pages]
    assert levels[0] == levels[1]
    # A key or file may stand at another place in a sentence, but must stand there.
    paragraphs = [
        [sorted(code(p)) for p in prose(page).split("\n\n") if p.strip()] for page in pages
    ]
    assert paragraphs[0] == paragraphs[1]


def test_both_languages_give_the_same_results() -> None:
    def figures(page: str) -> list[str]:
        part = re.split(r"^## ", prose(page), flags=re.MULTILINE)
        results = next(x for x in part if x.startswith(("Results", "结果")))
        return sorted(re.findall(r"⟨[^⟩]+⟩|\d[\d.,]*", results))

    assert figures(READMES[0]) == figures(READMES[1])
    outputs = [blocks(page, "text")[1] for page in READMES]
    assert outputs[0] == outputs[1]


def test_the_tables_of_commands_are_complete() -> None:
    named = [x.split() for row in rows(READMES[0]) for x in code(row[0]) if " " in x]
    assert sorted(n[1] for n in named if n[0] == "thawline") == sorted(COMMANDS.commands)


@pytest.mark.parametrize("page", READMES)
def test_how_data_sets_come_is_said(page: str) -> None:
    line = next(line for line in text(page).splitlines() if "`tuxpaint`" in line)
    for name, entry in catalogue.known_data().items():
        packages = [source.debian for source in entry.sources if source.debian]
        downloaded = any(source.url for source in entry.sources)
        if packages and not downloaded:
            assert f"`{name}`" in line and f"`apt-get install {packages[0]}`" in line
        elif downloaded:
            assert f"`{name}`" in line


@pytest.mark.parametrize("page", GUIDES)
def test_the_guide_names_real_keys_files_and_sections(page: str) -> None:
    template = text("tasks/report/page.html.j2")
    sections = set(re.findall(r"<h2>(.*?)</h2>", template))
    table = rows(page)
    assert len(table) >= 9
    for technique, keys, files, seen in table:
        assert re.search(r"\]\(#.+\)$", technique)
        assert code(keys), technique
        assert set(code(keys)) <= KEYS
        assert code(files), technique
        assert all((ROOT / file).is_file() for file in code(files))
        assert set(re.findall(r"\*\*(.+?)\*\*", seen)) <= sections
    looked_at = [line for line in text(page).splitlines() if line.startswith(LOOK)]
    assert len(looked_at) == len(table)
    named = {x for line in looked_at for x in re.findall(r"\*\*(.+?)\*\*", line)}
    assert named - {mark.strip("*") for mark in LOOK} <= sections


def test_the_layout_names_what_there_is() -> None:
    layout = next(b for b in blocks(READMES[0], "text") if "code.yaml" in b)
    parent = ROOT
    for line in layout.splitlines():
        name = line.split()[0]
        place = parent / name if line.startswith(" ") else ROOT / name
        assert place.exists(), line
        parent = parent if line.startswith(" ") else place
    problems = {
        p.name for p in (ROOT / "tasks/problems").iterdir() if (p / "__init__.py").is_file()
    }
    strategies = {p.stem for p in (ROOT / "tasks/thaw_strategies").glob("[a-z]*.py")}
    assert all(name in layout for name in problems | strategies)


def test_the_design_lists_every_decision() -> None:
    listed = re.findall(r"\]\((decisions/[^)]+)\)", text("docs/design.md"))
    assert [f"docs/{x}" for x in listed] == DECISIONS
    for number, page in enumerate(DECISIONS, 1):
        assert text(page).startswith(f"# {number:04}: ")
        assert Path(page).name.startswith(f"{number:04}-")


def test_the_readmes_thaw_strategy_works() -> None:
    source = next(b for b in blocks(READMES[0], "python") if "def plan" in b)
    names: dict[str, Any] = {}
    exec(source, names)
    layers = [Layer(name, 1, 0, 1, 1) for name in ("stem", "one", "two", "head")]
    (phase,) = names["plan"](layers, FreezeParams(learning_rate_fraction=0.5))
    assert phase.learning_rates == {"one": 0.5, "two": 0.5, "head": 1.0}


def test_the_readmes_stage_finds_its_place_in_the_graph(tmp_path: Path) -> None:
    from dvc.repo import Repo

    for name in ("params.yaml", "code.yaml"):
        shutil.copy(ROOT / name, tmp_path)
    (stage,) = blocks(READMES[0], "yaml")
    before, plots, after = text("dvc.yaml").partition("\nplots:")
    (tmp_path / "dvc.yaml").write_text(f"{before}\n{stage}{plots}{after}", encoding="utf-8")
    Repo.init(str(tmp_path), no_scm=True).close()
    with repository.opened(Project(tmp_path)) as repo:
        assert dag.graph(repo)["size"] == ["package"]


def test_the_readmes_plain_pytorch_is_the_packaged_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    project = trained_project.packaged(tmp_path)
    picture = tmp_path / "boot.png"
    Image.radial_gradient("L").resize((64, 64)).save(picture)  # square: squashed is padded
    monkeypatch.chdir(tmp_path)
    load, use = [b for b in blocks(READMES[0], "python") if "record[" in b]
    exec(load + use, {})
    *label, probability = capsys.readouterr().out.split()
    expected = Predictor(project.models).predict([picture]).iloc[0]
    assert " ".join(label) == expected["label"]
    assert float(probability) == pytest.approx(expected["probability"], abs=1e-5)
