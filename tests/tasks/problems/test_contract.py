"""What `tasks.problems.Problem` asks for, tried on every problem there is and on a toy."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from markupsafe import escape

import tasks.problems
from tasks import (
    augment,
    challenge,
    compare,
    embed,
    evaluate,
    files,
    freeze,
    package,
    packaged,
    predict,
    prepare,
    problems,
    promotion,
    recipes,
    register,
    repeat,
    report,
    select,
    train,
    tune,
)
from tasks import inspect as inspect_stage
from tasks.engine import labels
from tasks.engine.split import HEAD, chain
from tasks.errors import DataError, ThawlineError
from tasks.params import AugmentParams, HeadParams, Params, PrepareParams, key_paths, replace
from tasks.problems import INPUT, Problem
from tasks.records import DataSummary, Project, ThawPlan, TrainRun, ViewPolicy
from tasks.tracking import registry, store
from tests.tasks import judged, trained_project
from tests.tasks.problems.kinds import KINDS, TOY, Kind

torch.set_num_threads(1)
TOY_PROBLEM = "signal_classification"
HEAVY = ("torch", "torchvision", "timm", "mlflow", "prefect", "sklearn", "transformers")


@dataclass(frozen=True)
class Case:
    """A problem after all stages on data of its kind."""

    name: str
    problem: Problem
    kind: Kind
    project: Project
    params: Params

    @property
    def manifest(self) -> pd.DataFrame:
        return pd.read_parquet(self.project.manifest)

    @property
    def policy(self) -> ViewPolicy:
        return ViewPolicy.read(self.project.augment / "policy.json")


def test_each_problem_has_data_to_be_tried_with() -> None:
    named = {kind.problem or name for name, kind in KINDS.items()}
    assert named == set(problems.names())  # a new one adds its kind to `kinds.py`


@pytest.fixture(scope="module", params=[*KINDS])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    kind = KINDS[request.param]
    name = kind.problem or request.param
    project = trained_project.with_store(tmp_path_factory.mktemp(name) / "project")
    params = kind.params(name, kind.draw(project.root))
    prepare.run(project, params)
    augment.run(project, params)
    embed.run(project, params, kind.backbone)
    for stage in (select, inspect_stage, freeze, tune, train, repeat, evaluate, package):
        stage.run(project, params)
    return Case(name, problems.load(name), kind, project, params)


def test_every_member_is_there_with_its_arguments(case: Case) -> None:
    members = {k: v for k, v in vars(Problem).items() if not k.startswith("_")}
    assert len(members) > 20
    for name, wanted in members.items():
        own = getattr(case.problem, name)
        if not isinstance(wanted, property):
            arguments = [*inspect.signature(wanted).parameters][1:]
            assert [*inspect.signature(own).parameters] == arguments, name
    modules = problems.predicting(case.name), problems.starting(case.name)
    assert modules[0].Predictor and modules[0].describe and modules[1].write
    assert (problems.folder_of(case.name) / "pyfunc_model.py").is_file()


def test_looking_a_problem_up_is_light(case: Case) -> None:
    code = (
        "import sys, tasks.problems; tasks.problems.__path__.append(sys.argv[1])\n"
        "problem = tasks.problems.load(sys.argv[2]); problem.sections(); problem.policies()\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    command = [sys.executable, "-c", code, str(TOY), case.name]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "[]"


def test_its_sections_are_those_of_all_problems_and_more(case: Case) -> None:
    own = case.problem.sections()
    assert issubclass(own.prepare, PrepareParams) and issubclass(own.augment, AugmentParams)
    assert type(case.params.prepare) is own.prepare and type(case.params.augment) is own.augment
    keys = set(key_paths(case.name))
    assert {f"prepare.{key}" for key in case.problem.PACKAGED} <= keys
    assert replace(case.params, {"seed": 3}).prepare == case.params.prepare
    with pytest.raises(ValueError, match="Extra inputs"):
        replace(case.params, {"augment.no_such_key": 1})


@pytest.mark.parametrize("name", recipes.names())
def test_every_recipe_can_be_used_where_it_has_a_meaning(case: Case, name: str) -> None:
    values = recipes.values(name, case.name)
    if case.params.prepare.label_separator and values["train.contrast"]:
        with pytest.raises(ValueError, match=r"train\.contrast"):
            replace(case.params, values)
    else:
        replace(case.params, values)


def test_bad_data_and_names_are_refused_in_one_sentence(case: Case, tmp_path: Path) -> None:
    (tmp_path / "empty.csv").write_text("")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "odd.xyz").write_bytes(b"\0\1\2")
    embedding = case.params.embed

    def read(name: str) -> Callable[[], object]:
        asked = case.params.prepare.model_copy(update={"data": name})
        return lambda: case.problem.read(asked, tmp_path)

    def ask(name: str) -> Callable[[], object]:
        return lambda: case.problem.asked([tmp_path / name], case.params.prepare)

    refused = [read(name) for name in ("nowhere", "empty.csv", "other.csv", "odd.xyz")]
    refused += [ask("nowhere.txt"), lambda: case.problem.backbone("no_net", embedding, tmp_path)]
    for call in refused:
        with pytest.raises(ThawlineError) as error:
            call()
        told = str(error.value)
        assert told and "\n" not in told and "Traceback" not in told
    with pytest.raises(DataError):
        read("nowhere")()


def test_what_cannot_be_read_is_set_aside_and_named(case: Case) -> None:
    summary = DataSummary.read(case.project.summary)
    assert summary.problem == case.name
    assert len(summary.unreadable) == 1
    assert all(summary.unreadable[0][key] for key in ("source", "reason"))
    assert json.dumps(summary.details, allow_nan=False)


def test_the_store_is_the_same_for_the_same_data(case: Case, tmp_path: Path) -> None:
    raw = case.problem.read(case.params.prepare, case.project.root)
    assert {"source", "label", "split", "group"} <= set(raw)
    stored = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        stored.append(case.problem.store(raw, tmp_path / name, case.params.prepare, 1))
    pd.testing.assert_frame_equal(stored[0][0], stored[1][0])
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "other" / path.name).read_bytes()
    frame, refused = stored[0]
    assert len(frame) + len(refused) == len(raw)
    assert frame["id"].str.fullmatch("[0-9a-f]{64}").all()
    assert set(case.problem.TELLING) <= set(frame)
    twice = pd.concat([frame, frame.iloc[:1]], ignore_index=True)
    pairs = case.problem.near_duplicates(twice, tmp_path / "one")
    assert pairs.dtype == np.int64 and pairs.shape[1] == 2
    assert {0, len(frame)} in [set(map(int, pair)) for pair in pairs]  # a copy is almost the same


def test_views_follow_from_row_and_number_alone(case: Case) -> None:
    backbone = case.problem.backbone(case.kind.backbone, case.params.embed, case.project.root)
    examples = case.problem.examples(case.project, case.policy, backbone)
    rows = np.array([3, 0, 5])
    for view in (0, 1, 2):
        batch = examples.batch(rows, view)
        assert len(batch) == 3
        assert torch.equal(batch, examples.batch(rows, view))
        assert torch.equal(batch.flip(0), examples.batch(rows[::-1].copy(), view))
    plain = case.problem.examples(case.project, case.policy.behind(0), backbone)
    assert torch.equal(examples.batch(rows, 0), plain.batch(rows, 0))
    assert not torch.equal(examples.batch(rows, 0), examples.batch(rows, 1))
    assert len(case.problem.test_views(examples.batch(rows, 0), case.policy)) >= 1


def test_policies_can_be_read_again_and_told(case: Case, tmp_path: Path) -> None:
    assert "none" in case.problem.policies()
    for name in case.problem.policies():
        section = case.params.augment.model_copy(update={"policy": name})
        found = case.problem.policy(section, seed=3)
        found.write(tmp_path / "policy.json")
        assert ViewPolicy.read(tmp_path / "policy.json") == found
        assert (found.problem, found.seed) == (case.name, 3)
        assert bool(found.transforms) == (name != "none")
        assert case.problem.in_words(found).sentence.endswith(".")
    preview = [case.project.augment / f"preview.{kind}" for kind in ("png", "json")]
    assert preview[0].exists() == preview[1].exists()


def test_the_network_is_a_chain_of_layers_with_costs(case: Case) -> None:
    backbone = case.problem.backbone(case.kind.backbone, case.params.embed, case.project.root)
    assert backbone.licence and backbone.pretraining and len(backbone.weights_sha256) == 64
    examples = case.problem.examples(case.project, case.policy, backbone)
    inputs = examples.batch(np.array([0, 1]), 0)
    cut = chain(backbone.model.eval(), backbone.head, inputs)
    names = [layer.name for layer in cut.layers]
    assert names[-1] == HEAD and len(set(names)) == len(names) >= 3
    for layer in cut.layers:
        assert layer.parameters > 0 and layer.flops >= 0 and layer.output_bytes > 0 < layer.width
    assert sum(layer.flops for layer in cut.layers) > 0
    with torch.no_grad():
        values = inputs
        for place in range(len(names)):
            values = cut.part(place, place + 1)(values)
        torch.testing.assert_close(values, backbone.model(inputs))


@pytest.mark.parametrize("hidden", [[], [16]])
def test_head_targets_and_loss_fit_together(case: Case, hidden: list[int]) -> None:
    classes = len(DataSummary.read(case.project.summary).classes)
    backbone = case.problem.backbone(case.kind.backbone, case.params.embed, case.project.root)
    model, path = case.problem.build(backbone, classes, HeadParams(hidden=hidden))
    assert path == backbone.head
    own, old = (
        {k for k in m.state_dict() if not k.startswith(path)} for m in (model, backbone.model)
    )
    assert own == old
    examples = case.problem.examples(case.project, case.policy, backbone)
    rows = np.arange(4)
    logits = model.train()(examples.batch(rows, 1))
    assert logits.shape == (4, classes)
    known = DataSummary.read(case.project.summary).labelling
    targets = labels.tensor(known.truth(case.manifest["target"].to_numpy(np.int64)[rows]))
    loss = labels.loss(logits, targets)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(p.grad is not None for p in model.get_submodule(path).parameters())


def test_the_packaged_model_says_what_was_evaluated(case: Case) -> None:
    module = problems.predicting(case.name)
    model = module.Predictor(case.project.models)
    assert model.digest == packaged.verify(case.project.models)
    said = pd.read_parquet(case.project.evaluate / "predictions.parquet")
    tested = case.manifest[case.manifest["split"] == "test"]
    found = model.predict(case.problem.samples(case.project, [*tested.index]))
    classes = DataSummary.read(case.project.summary).classes
    assert [*found] == ["label", "probability", "error", *(f"p_{name}" for name in classes)]
    assert found["error"].isna().all()
    shares = said[[f"p_{i}" for i in range(len(classes))]].to_numpy()
    np.testing.assert_allclose(found.iloc[:, 3:].to_numpy(), shares, atol=1e-4)
    bad = model.predict([*case.problem.samples(case.project, [0]), case.kind.unreadable])
    assert bad["error"].notna().tolist() == [False, True]
    assert bad["label"].isna().tolist() == [False, True]
    assert bad.iloc[1, 3:].isna().all()


def test_a_file_that_was_changed_is_refused(case: Case, tmp_path: Path) -> None:
    for path in case.project.models.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    record = files.read_json(tmp_path / "model.json")
    files.write_json(tmp_path / "model.json", {**record, "temperature": 9.0})
    with pytest.raises(ThawlineError, match="is not the file that was packaged"):
        problems.predicting(case.name).Predictor(tmp_path)


def test_it_has_learned_something(case: Case) -> None:
    metrics = files.read_json(case.project.reports / "metrics.json")
    assert metrics["test.accuracy"] > metrics["baseline.majority.accuracy"]


def test_one_label_and_several_are_judged_and_told_each_in_their_way(case: Case) -> None:
    several = bool(case.params.prepare.label_separator)
    metrics = files.read_json(case.project.reports / "metrics.json")
    assert ("test.micro_f1" in metrics) == ("baseline.majority.micro_f1" in metrics) == several
    page = (case.project.reports / "report.html").read_text()
    assert ('aria-label="Confusion matrix"' in page) == ("<h2>Per class</h2>" in page) != several
    assert ("Wrongly said" in page) == ("<h2>Per label</h2>" in page) == several
    card = (case.project.models / "README.md").read_text()
    assert ("It gives one of these labels" in card) == ("single decisions" not in card) != several
    record = files.read_json(case.project.models / "model.json")
    assert ("several_labels" in record) == packaged.several(record) == several
    if several:
        assert metrics["test.accuracy"] > metrics["baseline.majority.accuracy"] + 0.3
        said = pd.read_parquet(case.project.evaluate / "predictions.parquet")
        assert set(said["predicted"]) > {"(none)", "praise | 抱怨"}


def test_a_training_can_start_from_the_packaged_model(case: Case) -> None:
    path = case.project.root / "start.safetensors"
    start = problems.starting(case.name).write(case.project.models, "a model", path)
    assert start.backbone == case.kind.backbone and start.linear
    assert start.classes == DataSummary.read(case.project.summary).classes
    again = replace(case.params, start.values)  # keys that there are, values that they may have
    weights = {start.backbone: {"file": path.name, "sha256": files.sha256_file(path)}}
    embedding = replace(again, {"embed.weights": weights}).embed
    backbone = case.problem.backbone(start.backbone, embedding, case.project.root)
    assert [*backbone.classes] == start.classes and "a model" in backbone.weights_source


def test_what_only_this_problem_has_is_judged_shown_and_packaged(case: Case) -> None:
    metrics = files.read_json(case.project.reports / "metrics.json")
    tested = int((case.manifest["split"] == "test").sum())
    for baseline in case.problem.baselines(case.project):
        assert len(baseline.predicted) == tested
        assert 0 <= metrics[f"baseline.{baseline.name}.accuracy"] <= 1
    page = (case.project.reports / "report.html").read_text()
    for panel in case.problem.panels(case.project):
        assert f'<section id="{panel.name}">' in page and f'href="#{panel.name}"' in page
        assert all(len(row) == len(panel.columns) for row in panel.rows)
        assert all(str(escape(value)) in page for row in panel.rows for value in row)
    record, digests = (
        files.read_json(case.project.models / f"{n}.json") for n in ("model", "digests")
    )
    assets = case.problem.assets(case.project, case.params, case.kind.backbone)
    assert set(record.get("files", {})) == set(assets)
    for name, content in assets.items():
        assert hashlib.sha256(content).hexdigest() == files.sha256_file(case.project.models / name)
        assert digests["files"][name] == record["files"][name]


def test_people_are_told_in_its_own_words(case: Case) -> None:
    shown = case.problem.shown(case.project, [0, 1])
    assert len(shown) == 2
    assert all(bool(one.image) != bool(one.text) for one in shown)
    assert all(not one.image or one.image.startswith("data:image/") for one in shown)
    page = report.render(case.project, case.params, 1.0)
    galleries = re.findall(r'class="(gallery[^"]*)"', page)  # of mistakes and odd examples
    assert set(galleries) <= {"gallery texts" if shown[0].text else "gallery"}
    if not any(layer.buffers for layer in ThawPlan.read(case.project.thaw_plan).layers):
        assert "Batch norms" not in page
    assert case.problem.in_words(case.policy).sentence.split()[-1] in page
    assert f"decoded {case.problem.WORDS.many}" in page
    card = (case.project.models / "README.md").read_text()
    argument, plain = case.problem.usage(files.read_json(case.project.models / "model.json"))
    assert f"model.predict({argument})" in card and plain in card
    assert case.problem.WORDS.things in card


def test_the_champion_predicts_what_it_is_asked(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    register.register(case.project, case.params)
    given = case.kind.ask(tmp_path)
    asked = case.problem.asked(given, case.params.prepare)
    assert [*asked][-1] == INPUT and len(asked) == 2
    out = tmp_path / "predictions.csv"
    frame = predict.predict(case.project, case.params, given, out, "challenger")
    assert predict.about(frame) == [*asked][:-1]
    alone = problems.predicting(case.name).Predictor(case.project.models).predict([*asked[INPUT]])
    pd.testing.assert_frame_equal(frame[[*alone]], alone, check_dtype=False)
    assert pd.read_csv(out)["label"].tolist() == alone["label"].tolist()
    model = predict.load(case.project, case.params, "challenger")
    assert model.predict(case.problem.input_example())["error"].isna().all()


@pytest.fixture
def rivals(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Case:
    """The model as champion, and as challenger the same network packaged with other words."""
    (tmp_path / "sitecustomize.py").write_text(
        f"import tasks.problems\ntasks.problems.__path__.append({str(TOY)!r})\n"
    )
    path = [str(tmp_path), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))  # of the gate's process
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    project = Project(shutil.copytree(case.project.root, tmp_path / "project"))
    named = {"register.model": "rivals", "promote.max_calibration_error": None}  # of few examples
    params = replace(case.params, named)
    register.register(project, params)
    promotion.promote(project, params, "1", {})
    params = replace(params, {"package.description": "Packaged once more."})
    package.run(project, params)
    assert register.register(project, params).version == 2
    return dataclasses.replace(case, project=project, params=params)


def aliases(case: Case) -> dict[str, int]:
    with store.connect(case.project.root) as client:
        return registry.aliases(client, "rivals")


def test_the_gate_judges_a_second_model_which_is_promoted_and_rolled_back(rivals: Case) -> None:
    project, params = rivals.project, rivals.params
    answers = pd.read_parquet(project.evaluate / "predictions.parquet")
    wrong = [next(x for x in answers["label"] if x != label) for label in answers["label"]]
    judged.log(project, 1, answers.assign(predicted=wrong), compare.ARTIFACT, "rivals")
    found = challenge.judge(project, params)
    assert found is not None and found.verdict.decision == "promote", found.verdict.sentence
    rules = {rule.name: rule.state for rule in found.verdict.rules}
    sound = ("another", "same_test", "better", "certificate", "digest", "loads")
    assert {rules[name] for name in sound} == {"passed"}
    made = challenge.decide(project, params, found)
    assert (made.kind, made.from_version, made.to_version) == ("promotion", 1, 2)
    assert aliases(rivals) == {"champion": 2, "previous": 1, "challenger": 2}
    assert promotion.rollback(project, params).to_version == 1
    assert aliases(rivals) == {"champion": 1, "challenger": 2}


KILLED = """
import os, signal, sys, tasks.problems
import torch

torch.set_num_threads(1)  # as here: with more, sums are taken in another order
tasks.problems.__path__.append(sys.argv[1])
from tasks import params_file, train
from tasks.engine.loop import Trainer
from tasks.records import Project

saved = Trainer.save


def save(trainer, running):
    saved(trainer, running)
    if trainer.state.step >= int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)


Trainer.save = save
project = Project(tasks.problems.Path.cwd())
train.run(project, params_file.load(project.root))
"""


def test_a_killed_training_goes_on_bit_for_bit_and_proves_what_was_frozen(
    case: Case, tmp_path: Path
) -> None:
    project = Project(tmp_path / "project")
    shutil.copytree(case.project.root, project.root)
    shutil.rmtree(project.scratch / "checkpoints")
    params = replace(case.params, {"train.checkpoint_seconds": 0.001})
    files.write_json(project.root / "params.yaml", params.model_dump(by_alias=True))  # YAML too
    command = [sys.executable, "-c", KILLED, str(TOY), "4"]
    done = subprocess.run(command, cwd=project.root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    train.run(project, params)
    run = TrainRun.read(project.train / "run.json")
    assert run.resumed_from_step == 4 < run.steps
    assert run.frozen_before == run.frozen_after and len(run.frozen_before) == 1
    ended = [x.train / "weights.safetensors" for x in (project, case.project)]
    assert files.sha256_file(ended[0]) == files.sha256_file(ended[1])


def test_it_can_be_written_as_onnx_or_says_that_it_cannot(case: Case, tmp_path: Path) -> None:
    if not (problems.folder_of(case.name) / "onnx_export.py").is_file():
        with pytest.raises(ThawlineError, match="cannot be written as ONNX; set package"):
            problems.exporting(case.name)
        return
    shutil.copytree(case.project.models, tmp_path / "models")
    found = problems.exporting(case.name).add(tmp_path / "models", case.project, 1)
    tested = int((case.manifest["split"] == "test").sum())
    assert found[case.problem.WORDS.many] == tested and found["ties"] <= 1
    assert found["largest_difference"] < 1e-4
    assert (tmp_path / "models/model.onnx").stat().st_size > 10_000


def test_the_core_names_no_problem() -> None:
    """But for the default; what `image` means is known in one folder alone."""
    core = [
        path
        for folder in ("tasks", "flows")
        for path in Path(tasks.problems.__file__).parents[2].joinpath(folder).rglob("*.py")
        if path.parent.name not in problems.names()
    ]
    assert len(core) > 100
    for word in (*problems.names(), "flips_crops", "token_dropout"):
        naming = [path.name for path in core if word in path.read_text()]
        assert naming == (["__init__.py"] if word == problems.DEFAULT else [])
