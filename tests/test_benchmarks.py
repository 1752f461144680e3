"""What benchmarks conclude from their runs, and the header of their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks import choice, faults, faults_report, peers, peers_report
from benchmarks.arms import measured
from benchmarks.arms.runner import Arm, Run
from benchmarks.options import benchmark_parser, parsed
from benchmarks.peers_report import Hits, Summary
from benchmarks.results_file import Results
from tasks import files


def drawn(rate: float, seeds: int = 3, count: int = 2000, seed: int = 0) -> Hits:
    """Right or wrong at random, example by example."""
    return (np.random.default_rng(seed).random((seeds, count)) < rate).astype(np.float64)


def summary(label: str, kind: str, cpu: float, validation: float, hits: Hits) -> Summary:
    figures: dict[str, Any] = {"cpu_seconds": cpu, "seconds": cpu / 2, "others": 0.0}
    record = figures | {"validation_accuracy": validation, "validation_loss": 1 - validation}
    arm = Arm(label, kind)
    return Summary([Run(arm, i, record, right > 0) for i, right in enumerate(hits)])


def test_the_interval_of_a_difference_holds_the_true_one_and_no_other() -> None:
    found = peers_report.interval(drawn(0.9), drawn(0.8, seed=1))
    assert found.low < 10 < found.high
    assert 0 < found.low < found.value < found.high < 20


def test_what_two_arms_have_in_common_does_not_widen_their_difference() -> None:
    hits = drawn(0.5, seeds=1)
    better = hits.copy()
    better[0, np.flatnonzero(hits[0] == 0)[:20]] = 1
    paired = peers_report.interval(better, hits)
    apart = peers_report.interval(better, drawn(0.5, seeds=1, seed=1))
    assert paired.value == pytest.approx(1.0)
    assert paired.low > 0
    assert paired.high - paired.low < (apart.high - apart.low) / 3


def test_seeds_that_disagree_widen_the_interval() -> None:
    alike = np.repeat(drawn(0.8, seeds=1), 3, axis=0)
    apart = np.concatenate([drawn(rate, seeds=1) for rate in (0.7, 0.8, 0.9)])
    narrow, wide = (peers_report.interval(hits) for hits in (alike, apart))
    assert wide.high - wide.low > 2 * (narrow.high - narrow.low)


def test_the_reference_is_chosen_on_validation_and_equal_cost_favours_the_peer() -> None:
    cheap = summary("fine_tune(1)", "fastai", 60, 0.80, drawn(0.70))
    middle = summary("fine_tune(2)", "fastai", 110, 0.85, drawn(0.75))
    dear = summary("fine_tune(5)", "fastai", 300, 0.84, drawn(0.95))  # best on test alone
    own = summary("default", "thawline", 100, 0.9, drawn(0.9))
    arms = [own, cheap, middle, dear]
    rows = {row["arm"]: row for row in peers_report.rows(arms)}
    assert {row["against"] for row in rows.values()} == {"fine_tune(2)"}
    assert rows["fine_tune(2)"]["difference"] is None
    assert rows["default"]["cpu_ratio"] == pytest.approx(100 / 110)
    [equal] = peers_report.equal_cost(arms)
    assert equal["against"] == "fine_tune(2)"
    assert equal["difference"]["low"] > 0


def test_of_equal_validation_accuracies_the_lower_loss_is_chosen() -> None:
    runs = [
        Run(Arm(f"{loss}", "fastai"), 0, {"validation_accuracy": 0.9, "validation_loss": loss}, x)
        for loss, x in ((0.5, np.ones(1, bool)), (0.4, np.zeros(1, bool)))
    ]
    assert peers._best(runs).arm.label == "0.4"


def test_logits_are_judged_by_accuracy_and_cross_entropy() -> None:
    logits = {"validation": np.log([[0.8, 0.2], [0.6, 0.4]]), "test": np.eye(2) * 900}
    targets = {"validation": np.array([0, 1]), "test": np.array([0, 1])}
    found, right = measured.judged(logits, targets)
    assert found["validation_accuracy"] == 0.5
    assert found["validation_loss"] == pytest.approx(-np.log([0.8, 0.4]).mean())
    assert found["test_accuracy"] == 1 and right.all()


def test_copies_that_are_missed_or_false_alarms_are_told() -> None:
    def lines(found: int, alarms: int) -> str:
        copies = {"found": {"exact": found}, "false_alarms": alarms, "not_without_planting": 0}
        labels = {"planted": 10, "among_the_first": 8, "columns": ["camera"]}
        untouched = {"left_out": [], "odd_classes": [], "label_errors": 0}
        value = {"examples": 100, "untouched": untouched, "copies": [copies], "labels": [labels]}
        value |= {"corrupted": {"noise": [{"broken": "a", "odd": ["a"]}]}}
        return "\n".join(faults_report.lines({"some": value}))

    assert "missed" not in lines(5, 2)
    assert "4 of 5 | 2 of 100 (2.00%) | **missed**" in lines(4, 2)
    assert "5 of 5 | 3 of 100 (3.00%) | **missed**" in lines(5, 3)


def test_the_interval_of_a_mean_over_draws() -> None:
    half = 4.3027 * 0.1 / 3**0.5  # Student's quantile with two degrees of freedom
    expected = pytest.approx((0.5, 0.5 - half, 0.5 + half), abs=1e-4)
    assert faults_report.mean_interval([0.4, 0.5, 0.6]) == expected
    assert faults_report.mean_interval([0.8, 0.9, 1.0])[2] == 1
    assert faults_report.mean_interval([0.5]) == (0.5, 0.0, 1.0)


def test_each_part_of_divided_data_has_every_class_and_a_given_test_split_stays() -> None:
    frame = pd.DataFrame({"label": ["a", "b"] * 40, "split": None})
    drawn_splits = faults.divided(frame)
    assert (drawn_splits.groupby(["split", "label"]).size() >= 6).all()
    assert drawn_splits["split"].value_counts().to_dict() == {
        "train": 52,
        "validation": 12,
        "test": 16,
    }
    frame.loc[:19, "split"] = "test"
    given = faults.divided(frame)["split"]
    assert (given[:20] == "test").all() and not (given[20:] == "test").any()


def test_a_choice_is_charged_what_it_looked_at_and_judged_against_the_best() -> None:
    def run(name: str, rate: float, cpu: float) -> Run:
        notes = {"stages": {"train": {"cpu_seconds": cpu}}}
        record = {"validation_accuracy": rate, "notes": notes}
        return Run(Arm(name, "thawline"), 0, record, drawn(rate, seeds=1)[0] > 0)

    names = ("mobilenet_v2", "tf_efficientnet_lite0", "resnet18")
    runs = {n: [run(n, r, 100)] for n, r in zip(names, (0.9, 0.8, 0.5), strict=True)}
    pick: dict[str, Any] = {"backbone": names[1], "scores": dict.fromkeys(names, 0.5)}
    pick |= {"embed_cpu_seconds": 20.0, "select_cpu_seconds": 30.0}
    found = choice.judged(runs, {prefer: [pick] for prefer in choice.PREFERENCES})
    assert found["best"] == "mobilenet_v2" and found["cpu_seconds"] == 300
    [first, _] = found["choices"]
    assert first["cpu_seconds"] == 150 and first["cost_ratio"] == 0.5
    assert first["difference"]["high"] < 0
    assert "**missed** | 150 | 0.50 | **missed**" in "\n".join(choice.table(found))


def test_results_say_where_and_when_they_were_measured(tmp_path: Path) -> None:
    Results("example", "An example", tmp_path).write({"figure": 1}, ["text"])
    found = files.read_json(tmp_path / "example.json")
    assert {"date", "machine", "commit", "load", "figure"} <= found.keys()
    text = (tmp_path / "example.md").read_text()
    assert text.startswith("# An example\n") and text.endswith("text\n")
    assert found["machine"] in text and found["commit"] in text


def test_results_of_some_data_sets_replace_no_others(tmp_path: Path) -> None:
    parser = benchmark_parser("example", None, data=("images", "texts"))
    arguments = ["--work", str(tmp_path), "--data"]
    assert parsed(parser, [*arguments, "texts", "images"]).some == []
    some = parsed(parser, [*arguments, "texts"]).some
    Results("example", "An example", tmp_path, some).write({}, [])
    found = files.read_json(tmp_path / "example_texts.json")
    assert found["benchmark"] == "python -m benchmarks.example --data texts"
    Results("example", "An example", tmp_path, some, "again").write({}, [])
    found = files.read_json(tmp_path / "example_again_texts.json")
    assert found["benchmark"] == "python -m benchmarks.example --again … --data texts"
