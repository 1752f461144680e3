"""One label an example or several: what is read, said and counted."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn import metrics as sklearn_metrics

from flows import new
from tasks import (
    baselines,
    calibration,
    changes,
    data_quality,
    evidence,
    labelling,
    metrics,
    params,
    params_file,
    prepare,
    raw_examples,
    repeat,
    ridge,
    select,
    tables,
)
from tasks.changes import DataVersion
from tasks.errors import DataError, ParamsError
from tasks.gate import subsets
from tasks.gate.evidence import Shared
from tasks.labelling import Labelling
from tasks.metrics import Bootstrap
from tasks.params import PrepareParams, PromoteParams
from tasks.records import DataSummary, Project
from tests.tasks.text_classification.test_sources import json_lines, read, refused, saved, written


def decided(n: int = 500, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Members [n, classes] and what was said of them: a tenth of the decisions are wrong."""
    random = np.random.default_rng(seed)
    labels = random.random((n, classes)) < np.linspace(0.5, 0.05, classes)
    return labels, labels ^ (random.random((n, classes)) < 0.1)


def each(n: int) -> Bootstrap:
    return Bootstrap(np.arange(n), 200)


# --- cells of tables -----------------------------------------------------------------------------


def test_names_that_may_be_missing_labels_are_told_each_with_its_first_example():
    labels = ["a", "None", "a | null", "(none)", "null", "annulled"]
    frame = pd.DataFrame({"label": labels, "source": list("uvwxyz")})
    told = "a class is called 'None', with 1 example (the first is v)"
    several = [told, "a class is called 'null', with 2 examples (the first is w)"]
    assert list(raw_examples.like_missing(frame, True)) == several
    assert next(raw_examples.like_missing(frame, False)) == told
    assert not list(raw_examples.like_missing(frame[frame["label"] == "annulled"], False))


def test_a_cell_holds_labels_in_any_order_once_each_or_none(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        "r.csv",
        "text,label\na,politics|sport\nb, sport | politics |sport\nc,\nd,|\ne,sport\n",
    )
    frame = read(path, label_separator="|")
    both = "politics | sport"
    assert frame["label"].tolist() == [both, both, "(none)", "(none)", "sport"]
    assert "row 3 has no label" in refused(path)  # without a separator as ever


def test_two_forms_of_unicode_are_one_label(tmp_path: Path) -> None:
    path = written(tmp_path, "r.csv", "text,label\na,Tür;b\nb,b;Tu\u0308r\n c,b\n")
    assert read(path, label_separator=";")["label"].tolist() == ["Tür | b"] * 2 + ["b"]


def test_lists_of_json_are_labels_where_there_may_be_several(tmp_path: Path) -> None:
    path = json_lines(
        tmp_path,
        {"text": "a", "label": ["x", 3]},
        {"text": "b", "label": []},
        {"text": "c", "label": "x|y"},
        {"text": "d", "label": None},
        {"text": "e"},
    )
    told = read(path, label_separator="|")["label"].tolist()
    assert told == ["3 | x", "(none)", "x | y", "(none)", "(none)"]
    assert refused(path) == (
        "r.jsonl, line 1: 'label' is a list; where examples have several labels each, set "
        'prepare.label_separator, such as "|"'
    )
    path = json_lines(tmp_path, {"text": "a", "label": [["x"]]})
    assert "r.jsonl, line 1: among the labels is ['x']" in refused(path, label_separator="|")


@pytest.mark.parametrize("feature", ["Sequence", "List", "old"])
def test_lists_of_parquet_with_named_classes(tmp_path: Path, feature: str) -> None:
    import json

    inner = {"names": ["news", "sport"], "_type": "ClassLabel"}
    kind: Any = [inner] if feature == "old" else {"feature": inner, "_type": feature}
    table = pa.table({"text": list("abc"), "label": [[1, 0], [], [1]]})
    said = json.dumps({"info": {"features": {"label": kind}}}).encode()
    pq.write_table(table.replace_schema_metadata({b"huggingface": said}), tmp_path / "r.parquet")
    found = read(tmp_path / "r.parquet", label_separator=",")["label"].tolist()
    assert found == ["news | sport", "(none)", "sport"]
    assert "is a list" in refused(tmp_path / "r.parquet")


def test_data_sets_that_were_saved_hold_lists_too(tmp_path: Path) -> None:
    saved(tmp_path / "d", [("a", [1, 0]), ("b", None)], [("c", []), ("d", [1])], several=True)
    found = read(tmp_path / "d", label_separator=",")["label"].tolist()
    assert found == ["neg | pos", "(none)", "(none)", "pos"]


@pytest.mark.parametrize(
    ("cells", "separator", "told"),
    [
        (["a;b", "b"], "|", "no example has two labels; ';' stands in 'a;b'"),
        (["a", "b"], "|", "no example has two labels: set it to what stands between them"),
        (["a | b,c", "c"], ",", "row 1: the label 'a | b' has “ | ” inside"),
        (["(none)|b", "c"], "|", "row 1: the label '(none)' has the meaning of no label"),
    ],
)
def test_labels_that_could_not_be_told_apart_are_refused(
    tmp_path: Path, cells: list[str], separator: str, told: str
) -> None:
    frame = pd.DataFrame({"text": [f"t{i}" for i in range(len(cells))], "label": cells})
    frame.to_csv(tmp_path / "r.csv", index=False)
    assert told in refused(tmp_path / "r.csv", label_separator=separator)


def test_class_folders_give_one_label(tmp_path: Path) -> None:
    written(tmp_path, "data/a/1.txt", "x")
    written(tmp_path, "data/b/1.txt", "y")
    assert "give each of the texts one label" in refused(tmp_path / "data", label_separator="|")


def test_a_column_without_lists_is_read_as_before(tmp_path: Path) -> None:
    table = pd.DataFrame({"label": [1.0, None, 2.0]})
    table.index.name = "row"
    found = tables.examples(table, PrepareParams(data="x", label_separator="|"), "t")
    assert found["label"].tolist() == ["1", "(none)", "2"]


# --- parameters ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.balance", "sampling"),
        ("train.contrast", 0.1),
        ("train.keep_close_to", "old_predictions"),
        ("train.head.init", "keep"),
    ],
)
def test_what_is_made_for_one_label_is_refused(key: str, value: object) -> None:
    tree: dict[str, Any] = {
        "problem": "text_classification",
        "prepare": {"data": "x.csv"},
        "embed": {"backbones": ["minilm_l6"]},
        "train": {"mix": "none"},
    }
    one = params.replace(params_file.check(tree), {key: value})
    with pytest.raises(ParamsError) as error:
        params_file.check(
            {**one.model_dump(by_alias=True), "prepare": {"data": "x", "label_separator": "|"}}
        )
    assert f"{key}: " in str(error.value) and "prepare.label_separator" in str(error.value)


def test_a_separator_that_yaml_takes_for_something_else_must_be_quoted(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(new.template("text_classification"))
    with pytest.raises(ParamsError, match="alone is nothing in YAML; write it in quotes: --set '"):
        params_file.set_values(tmp_path, ["prepare.label_separator=|"])
    for text, value in (('"|"', "|"), (";", ";"), ("''", "")):
        found = params_file.set_values(tmp_path, [f"prepare.label_separator={text}"])
        assert found.prepare.label_separator == value


def test_a_search_may_not_reach_it_either() -> None:
    tree = {
        "prepare": {"data": "x.csv", "label_separator": "|"},
        "embed": {"backbones": ["mobilenet_v2"]},
        "tune": {"space": {"train.balance": {"choices": ["none", "sampling"]}}},
    }
    with pytest.raises(ParamsError, match=r"tune.space.train.balance: reaches sampling: sampling"):
        params_file.check(tree)


# --- prepared data -------------------------------------------------------------------------------


def prepared(root: Path, cells: list[str], **values: object) -> tuple[pd.DataFrame, DataSummary]:
    frame = pd.DataFrame({"text": [f"text {i} of many" for i in range(len(cells))]})
    frame.assign(label=cells).to_csv(root / "r.csv", index=False)
    tree = {
        "problem": "text_classification",
        "prepare": {"data": str(root / "r.csv"), "label_separator": "|", "near_duplicates": False},
        "embed": {"backbones": ["minilm_l6"]},
    }
    dotted = {f"prepare.{key.replace('__', '.')}": value for key, value in values.items()}
    project = Project(root)
    prepare.run(project, params.replace(params_file.check(tree), dotted))
    return pd.read_parquet(project.manifest), DataSummary.read(project.summary)


def test_a_manifest_knows_labels_and_their_combinations(tmp_path: Path) -> None:
    cells = ["a|b", "b", "", "c|a", "a|b|c", "c"] * 20
    manifest, summary = prepared(tmp_path, cells)
    assert summary.classes == ["a", "b", "c"]
    known = summary.labelling
    assert [known.names[t] for t in manifest["target"]] == manifest["label"].tolist()
    assert known.names == sorted(set(manifest["label"])) and "(none)" in known.names
    truth = known.truth(manifest["target"].to_numpy(np.int64))
    for row, label in zip(truth, manifest["label"], strict=True):
        assert [n for n, has in zip(summary.classes, row, strict=True) if has] == [
            *labelling.parts(label)
        ]
    for split, by_combination in summary.counts.items():
        here = truth[(manifest["split"] == split).to_numpy()]
        assert sum(by_combination.values()) == len(here)
        counted = dict(zip(summary.classes, here.sum(0), strict=True))
        assert summary.examples_of(split) == counted and min(counted.values()) > 0


def test_the_record_of_one_label_has_no_other_keys(tmp_path: Path) -> None:
    cells = ["a", "b"] * 60
    _, summary = prepared(tmp_path, cells, label_separator="")
    assert summary.combinations is None
    assert '"combinations"' not in (tmp_path / "data/prepared/summary.json").read_text()


def test_each_label_must_be_in_each_split_but_no_combination_must(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    names = list("abcdefg")
    cells = ["|".join(n for n in names if random.random() < 0.5) for _ in range(120)]
    assert len(set(cells)) > 60  # hardly one is there twice
    manifest, summary = prepared(tmp_path, cells)
    alone = set(manifest.loc[manifest["split"] == "test", "label"]) - set(
        manifest.loc[manifest["split"] == "train", "label"]
    )
    assert alone  # what training has never seen together is asked for all the same
    for split in ("train", "validation", "test"):
        assert min(summary.examples_of(split).values()) > 0
    with pytest.raises(DataError, match="class 'rare' has 1 different texts"):
        prepared(tmp_path, ["a|rare", *cells])


def test_folds_spread_the_rarest_label_of_each_example(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    shares = {"common": 0.8, "usual": 0.5, "rare": 0.1}
    cells = ["|".join(n for n, p in shares.items() if random.random() < p) for _ in range(150)]
    manifest, summary = prepared(tmp_path, cells)
    tree = {
        "prepare": {"data": "x", "label_separator": "|"},
        "embed": {"backbones": ["mobilenet_v2"]},
        "repeat": {"folds": 5},
    }
    known = summary.labelling
    truth = known.truth(manifest["target"].to_numpy(np.int64))
    found = repeat.folds(manifest, params_file.check(tree), known)
    rare = summary.classes.index("rare")
    counts = [truth[rows["test"], rare].sum() for rows in found]
    assert max(counts) - min(counts) <= 1
    for rows in found:
        assert truth[rows["train"]].any(0).all()
    tree["repeat"] = {"folds": 30}
    with pytest.raises(DataError, match=r"repeat\.folds is 30, but the smallest class has"):
        repeat.folds(manifest, params_file.check(tree), known)


# --- answers and figures -------------------------------------------------------------------------


def test_figures_are_those_of_scikit_learn() -> None:
    labels, said = decided()
    found = metrics.answers(labels, said, 4, each(500))
    assert found["accuracy"].value == sklearn_metrics.accuracy_score(labels, said)
    for name in ("micro", "macro"):
        expected = sklearn_metrics.f1_score(labels, said, average=name)
        assert found[f"{name}_f1"].value == pytest.approx(expected)
    expected = sklearn_metrics.recall_score(labels, said, average="macro")
    assert found["balanced_accuracy"].value == pytest.approx(expected)
    expected = 1 - sklearn_metrics.hamming_loss(labels, said)
    assert found["hamming_accuracy"].value == pytest.approx(expected)
    assert all(x.low < x.value < x.high for x in found.values())


def test_each_label_is_judged_as_a_question_of_its_own() -> None:
    labels, said = decided()
    scores = metrics.per_class(labels, said, list("abcd"), each(500))
    expected = sklearn_metrics.precision_recall_fscore_support(labels, said)
    for score, precision, recall, f1, support in zip(scores, *expected, strict=True):
        assert score.precision and score.recall and score.f1
        found = (score.precision.value, score.recall.value, score.f1.value)
        assert found == pytest.approx((precision, recall, f1)) and score.support == support


def test_never_right_as_a_whole_is_not_never_right() -> None:
    labels = np.ones((30, 3), bool)
    said = labels.copy()
    said[:, 0] = False
    found = metrics.answers(labels, said, 3, each(30))
    assert found["accuracy"].value == 0 and found["accuracy"].high > 0.05
    assert found["hamming_accuracy"].value == pytest.approx(2 / 3)
    assert found["hamming_accuracy"].low == pytest.approx(2 / 3)


def test_probabilities_answers_and_their_confidence() -> None:
    logits = np.array([[2.0, -1.0, 0.5], [-3.0, -0.1, -800.0], [0.0, 900.0, 1.0]])
    shares = labelling.probabilities(logits, several=True, temperature=2.0)
    np.testing.assert_allclose(shares[:, 0], 1 / (1 + np.exp(-logits[:, 0] / 2)))
    assert np.isfinite(shares).all() and shares[2, 1] == 1
    known = Labelling(["a", "b", "c"], [])
    assert known.called(known.answers(shares)).tolist() == ["a | c", "(none)", "b | c"]
    certain = np.where(shares > 0.5, shares, 1 - shares)
    np.testing.assert_allclose(labelling.confidence(shares, True), certain.prod(1))


def test_a_temperature_and_the_calibration_of_whole_answers() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (4000, 3))
    labels = random.random(logits.shape) < 1 / (1 + np.exp(-logits / 3))  # too sure threefold
    assert calibration.fit_temperature(logits, labels) == pytest.approx(3, rel=0.1)
    shares = labelling.probabilities(logits, several=True, temperature=3.0)
    found = calibration.calibration(shares, labels, each(4000))
    assert found["ece"].value < 0.03
    expected = 3 * sklearn_metrics.log_loss(labels.ravel(), shares.ravel())
    assert found["nll"].value == pytest.approx(expected)
    before = labelling.probabilities(logits, several=True)
    assert calibration.calibration(before, labels, each(4000))["ece"].value > 0.1


def test_a_judgement_has_no_confusion_and_says_so() -> None:
    labels, _ = decided(300, 3)
    logits = np.where(labels, 2.0, -2.0) + np.random.default_rng(1).normal(0, 1.5, labels.shape)
    shares = labelling.probabilities(logits, several=True)
    known = Labelling(["a", "b", "c"], [[0], [0, 1], []])
    majority = baselines.majority(np.array([1, 1, 0]), known, 300)
    assert majority.title == "Always answering “a | b”"
    assert majority.predicted.tolist()[0] == [True, True, False]
    both = {"before": shares, "after": shares}
    found = evidence.judge(labels, both, [majority], known.classes, each(300), False)
    assert found["several"] and found["confusion"] == []
    assert found["headline"].startswith("All labels right on ")
    assert found["model"]["micro_f1"]["value"] > found["baselines"][0]["micro_f1"]["value"]


# --- features ------------------------------------------------------------------------------------


def features(n: int = 400, wrong: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.random((n, 3)) < 0.4
    directions = random.normal(size=(3, 12))
    return (labels @ directions + random.normal(0, 0.3, (n, 12))).astype(np.float32), labels


def test_ridge_of_one_column_each_is_that_of_one_hot_rows() -> None:
    x, _ = features()
    targets = np.random.default_rng(1).integers(0, 3, len(x))
    one, many = ridge.fit(x, targets, 3), ridge.fit(x, np.eye(3)[targets], 3)
    # Other strengths may be chosen; the rows that are fitted are the same.
    assert one.weight.shape == many.weight.shape
    x, labels = features()
    found = ridge.fit(x, labels, 3)
    said = x @ found.weight.T + found.bias > 0.5
    assert (said == labels).all(1).mean() > 0.95
    assert found.accuracy == pytest.approx((found.left_out > 0.5).__eq__(labels).all(1).mean())


def test_neighbours_vote_for_each_label() -> None:
    x, labels = features()
    assert select.knn_accuracy(x, labels) > 0.8
    shuffled = np.random.default_rng(0).permutation(labels)
    assert select.knn_accuracy(x, shuffled) < 0.4


def test_a_label_too_many_and_one_that_is_missing_are_found() -> None:
    x, truth = features(600)
    labels = truth.copy()
    wrong = {7: 0, 100: 1, 255: 2, 400: 1}
    for row, number in wrong.items():
        labels[row, number] ^= True
    distances, nearest = select.neighbours(x)
    says = data_quality.left_out_probabilities(x, labels, nearest, 3)
    found = data_quality.label_errors(says, labels)
    assert {suspect.row: suspect.likely for suspect in found[:4]} == wrong
    assert len({suspect.row for suspect in found}) == len(found) < 20
    assert data_quality.odd_classes(x, says, labels, distances) == []


# --- champions -----------------------------------------------------------------------------------


def test_the_gate_looks_at_each_label() -> None:
    texts = ["a | b", "b", "(none)", "a"] * 50
    steps = np.array([-1, 0, 0, -1] * 50)  # all that have `a` are lost
    examples = pd.DataFrame({"label": texts})
    found = subsets.judge(Shared(examples, steps, np.arange(200), 0), PromoteParams(), True)
    rule = next(rule for rule in found if rule.name == "classes")
    rows = {row["name"]: row["examples"] for row in rule.numbers["worst"]}
    assert rule.state == "failed" and rows == {"a": 100, "b": 100}


def test_a_new_combination_is_no_new_class() -> None:
    def version(*labels: str) -> DataVersion:
        ids = [f"{i}" for i in range(len(labels))]
        rows = {"id": ids, "label": labels, "split": "train", "source": ids, "group": ids}
        return DataVersion(pd.DataFrame(rows))

    old, new = version("a", "b"), version("a", "a | b")
    assert changes.compare(old, new, 0.99, 0, several=True).new_classes == []
    assert changes.compare(old, new, 0.99, 0).new_classes == ["a | b"]
    named = changes.compare(old, version("a", "b | c"), 0.99, 0, several=True)
    assert named.new_classes == ["c"]
