"""The page: everything on it, nothing loaded from elsewhere, every name harmless."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from tasks import report
from tasks.records import Project, TrainRun, Tuning
from tasks.report import charts, formats, views
from tests.tasks import evaluated

HOSTILE = "<script>alert(1)</script>"
CLASSES = ["衬衫", HOSTILE, '"quoted" & {{ 7 * 7 }}', "trouser"]
SECTIONS = """
headline figures learning confusion classes calibration mistakes augmentation backbone thaw
tuning retention data cost provenance
"""


class Page(HTMLParser):
    """The elements and the text that a browser would see."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag  # well-formed: every element is closed where it should be

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.text += data


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return evaluated.write(tmp_path_factory.mktemp("project"), CLASSES)


@pytest.fixture(scope="module")
def source(project: Project) -> str:
    return report.render(project, evaluated.parameters(), 3.0)


@pytest.fixture(scope="module")
def page(source: str) -> Page:
    return Page(source)


def test_all_sections_are_there_and_linked(page: Page) -> None:
    ids = {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    assert set(SECTIONS.split()) <= ids
    links = [a["href"] for tag, a in page.elements if tag == "a"]
    assert len(links) >= 10
    for link in links:
        assert link is not None and link.removeprefix("#") in ids


def test_nothing_is_loaded_from_anywhere(source: str, page: Page) -> None:
    assert not re.search(r"https?://|@import|url\(", source)
    for tag, attributes in page.elements:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        for name in ("src", "href", "srcset", "data", "action"):
            value = attributes.get(name) or "#"
            assert value.startswith(("data:", "#")), (tag, name, value[:60])
        assert not [name for name in attributes if name.startswith("on")]


def test_hostile_and_foreign_names_are_shown_as_they_are(source: str, page: Page) -> None:
    assert HOSTILE not in source
    assert HOSTILE in page.text
    assert "{{ 7 * 7 }}" in page.text
    assert "衬衫/图" in page.text
    assert "坏/<b>.png" in page.text and "truncated & unreadable" in page.text


def test_the_headline_says_what_the_records_say(project: Project, page: Page) -> None:
    evaluation = json.loads((project.evaluate / "evaluation.json").read_text())
    accuracy = evaluation["model"]["accuracy"]
    assert f"interval {formats.span(accuracy)}" in page.text
    assert f"{100 * accuracy['value']:.1f}" in page.text
    for baseline in evaluation["baselines"]:
        assert baseline["sentence"] in page.text
    marks = [a for tag, a in page.elements if tag == "div" and a.get("class") == "track"]
    assert len(marks) == 1 + len(evaluation["baselines"])
    assert formats.percent(accuracy["value"]) in str(marks[0]["aria-label"])


def test_the_page_shows_pictures_curves_plan_data_costs_and_proofs(page: Page) -> None:
    pictures = [a for tag, a in page.elements if tag == "img"]
    assert len(pictures) == 24 + 1  # mistakes and the preview of the augmentation
    assert all(a.get("alt") for a in pictures)
    assert len([1 for tag, _ in page.elements if tag == "svg"]) == 8
    for told in (
        "above the thaw line",  # a phase
        "71.9%",  # what its weights were published with
        "71.2% · 81.0%",  # ridge at two depths
        "80.0% → 85.0%",  # in the race
        "came furthest, but the race could not tell them apart",
        "ahead of the one with the best score by 2.0%",
        "takes 12.3\u202fms here (cpu, float32), its weights 8.9\u202fMB",
        "0.000444",  # the rate of a thawed layer: 0.01 · 0.1 · 0.85⁵
        "68% of the forward compute",
        "40 in 20 groups",
        "5.27\u202fMiB",
        "embed@resnet18",
        "charged here although a cache spared it",
        "forward and backward passes 17.5\u202fs, waiting for inputs 1.2\u202fs.",
        "128\u202fMiB of scratch: 1 view computed, 4 found there",
        "In bfloat16, the inputs of features.12 differ by 0.41% from those in float32.",
        "resumed from step 96 of 640",
        "unchanged, weights and buffers",
        evaluated.DIGEST[:12],
        "more labels would bring a linear head about +",
        "no other model was judged in this copy",
        "Validation and test look alike to the model",
        "<south>",  # a slice
        "Answering only when sure",
        "a rank correlation of 0.610, so trials that fell behind were ended early",
        "70% of the spread of the losses",
        "train.mix cutmix",
        "Cross-validated on 555 examples",
        "standard deviation of 1.23%",
        "torch 2.14.1",
        "alpha 0.5 is ahead of the fine-tuned weights: right on 85.0% of 120",
        "32.5% the same answer as before",
    ):
        assert told in page.text, told


def test_no_python_is_shown_and_what_was_left_out_is_a_table(page: Page) -> None:
    assert not re.search(r"[\[{]'|'[\]}]", page.text)
    assert "Near duplicates left out: 1" in page.text
    assert "near split" in page.text and "乙/4.png" in page.text
    for told in ("head.dropout0.2", "head.hiddennone", "weight_decay0.012"):
        assert told in page.text


def test_the_browser_writes_the_names_beside_the_preview(
    project: Project, source: str, page: Page
) -> None:
    tags = [(tag, a.get("class"), a.get("title")) for tag, a in page.elements]
    begun = tags.index(("div", "preview", None))
    shown = tags[begun : tags.index(("img", None, None), begun)]
    assert [title for _, kind, title in shown if kind == "row"] == CLASSES
    assert len([kind for _, kind, _ in shown if kind == "column"]) == 5
    assert '<span dir="auto">衬衫</span>' in source[source.index('class="preview"') :]
    (project.augment / "preview.json").rename(project.augment / "away.json")
    assert 'class="preview"' not in report.render(project, evaluated.parameters())
    (project.augment / "away.json").rename(project.augment / "preview.json")


def test_every_drawing_has_a_name(page: Page) -> None:
    for tag, attributes in page.elements:
        if tag == "svg" or attributes.get("role") in ("img", "region"):
            assert attributes.get("aria-label")


def test_the_page_is_the_same_for_the_same_records(project: Project, source: str) -> None:
    assert report.render(project, evaluated.parameters(), 3.0) == source
    assert str(project.root) not in source


def test_a_moved_frozen_weight_is_not_called_unchanged(tmp_path: Path) -> None:
    project = evaluated.write(tmp_path, ["a", "b"], 200)
    run = TrainRun.read(project.train / "run.json")
    moved = replace(run, frozen_after={**run.frozen_after, "head": "0" * 64})
    moved.write(project.train / "run.json")
    text = Page(report.render(project, evaluated.parameters())).text
    assert text.count("unchanged, weights and buffers") == 1
    assert f"changed: {evaluated.DIGEST[:12]} before, {'0' * 12} after" in text


def test_a_model_without_mistakes_and_a_run_without_costs(tmp_path: Path) -> None:
    project = evaluated.write(tmp_path, ["a", "b", "c"], 300, skill=40)
    for cost in (project.scratch / "stages").iterdir():
        cost.write_text("{")
    (project.augment / "preview.png").unlink()
    text = Page(report.render(project, evaluated.parameters())).text
    assert "100.0" in text and "Not one mistake" in text and "None to show" in text
    assert "So far0.0\u202fs" in text


def test_of_very_many_classes_the_matrix_shows_the_most_confused(tmp_path: Path) -> None:
    names = [f"class {i:03d}" for i in range(120)]
    project = evaluated.write(tmp_path, names, 1500, skill=2)
    evaluation = json.loads((project.evaluate / "evaluation.json").read_text())
    matrix = views.matrix(evaluation)
    assert (len(matrix["names"]), matrix["all"]) == (views.MATRIX_SHOWN, 120)
    wrong: dict[int, int] = {}
    for true, called, examples in evaluation["confusion"]:
        wrong[true] = wrong.get(true, 0) + (true != called) * examples
    assert names[max(wrong, key=lambda c: wrong[c])] in matrix["names"]
    assert "The 50 most confused of 120 classes" in report.render(project, evaluated.parameters())


def test_confusions_add_up() -> None:
    confused = {
        "classes": ["a", "b", "c"],
        "confusion": [[0, 0, 9], [0, 1, 3], [1, 0, 2], [1, 2, 5], [2, 2, 7]],
    }
    assert views.confusions(confused) == [
        {"one": "a", "other": "b", "examples": 5, "share": 0.5},
        {"one": "b", "other": "c", "examples": 5, "share": 0.5},
    ]


def test_axes_have_round_ticks_that_hold_the_values() -> None:
    axis = charts.axis([0.317, 1.24, float("nan")], 200, 0)
    assert axis.ticks == (0.0, 0.5, 1.0, 1.5)
    assert axis.at(axis.low) == 200 and axis.at(axis.high) == 0
    assert charts.axis([0.5, 0.5], 0, 1).low < 0.5
    missing = charts.Series("", "", [(1, 0.5), (2, float("nan")), (3, 0.5)])
    assert missing.path(charts.counting_axis([1, 3], 0, 30), axis).count("M") == 2


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (8.44, "8.4\u202fs"),
        (125, "2\u202fmin 05\u202fs"),
        (7320, "2\u202fh 02\u202fmin"),
    ],
)
def test_durations(seconds: float | None, shown: str) -> None:
    assert formats.duration(seconds) == shown


def test_sentences_begin_with_a_capital_but_names_stay() -> None:
    assert formats.sentence("not tuned") == "Not tuned."
    assert formats.sentence("mobilenet_v2 is best.") == "mobilenet_v2 is best."


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({}, "the other half (60), beside the written values and as long as they."),
        (
            {"study": {"uncompared": "the written values diverge"}},
            "the other half (60), but not beside the written values: the written values diverge.",
        ),
        ({"study": None}, "Rates were raced on the validation examples"),
        ({"study": None, "trials": []}, "Nothing was tried."),
    ],
)
def test_tuning_says_what_was_measured(project: Project, change: dict[str, Any], told: str) -> None:
    before = Tuning.read(project.tuning)
    study = before.study
    if "study" in change:
        new = change["study"]
        kept = {k: v for k, v in study["confirmed"].items() if k in ("examples", "accuracy")}
        study = {**study, "confirmed": {**kept, **new}} if new else {}
    replace(before, study=study, trials=change.get("trials", before.trials)).write(project.tuning)
    try:
        text = Page(report.render(project, evaluated.parameters(), 3.0)).text
    finally:
        before.write(project.tuning)
    assert told in text
    assert ("measured again" in text) is bool(study)
