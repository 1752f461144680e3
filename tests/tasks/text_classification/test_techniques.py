"""Techniques on encoders: each strategy ends in a plain network with its proof; layers that start
anew, slower rates further down, and the contrastive loss do what they say."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import BertConfig, BertForMaskedLM

import tasks.thaw_strategies
from tasks import augment, embed, evaluate, files, freeze, plugins, problems, select, train, tune
from tasks.engine import pooling
from tasks.engine.multi_layer import MultiLayer
from tasks.engine.objective import Objective
from tasks.engine.setup import Setup
from tasks.params import HeadParams, Params
from tasks.problems.text_classification import weights
from tasks.records import Project, Selection, ThawPlan, TrainRun, ViewPolicy
from tests.tasks.text_classification import reviews
from tests.tasks.text_classification.small_encoder import CONFIG, tokenizer

LAYERS = 4
TOP = f"encoder.layer.{LAYERS - 1}."
OWN_WORDS = {"animal": ["fox", "brown"], "letter": ["a", "b"], "other": ["quick", "end"]}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """Texts of a few words up to the choice of the backbone, a small encoder of random weights."""
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    examples = []
    for number in range(72):
        label = [*OWN_WORDS][number % 3]
        words = random.choice(["the", "c", *OWN_WORDS[label], *OWN_WORDS[label]], 8)
        examples.append((f"{' '.join(words)} {number}", label))
    made = reviews.project(tmp_path_factory.mktemp("techniques") / "project", examples)
    torch.manual_seed(0)
    config = BertConfig(**{**CONFIG, "num_hidden_layers": LAYERS})
    BertForMaskedLM(config).save_pretrained(made.root / "small")
    tokenizer().save(str(made.root / "small/tokenizer.json"))
    params = settings(made)
    augment.run(made, params)
    embed.run(made, params, "small")
    select.run(made, params)
    return made


@pytest.fixture(autouse=True)
def _without_a_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr("tasks.tracking.start_drainer", lambda project: None)
    monkeypatch.setattr("tasks.tracking.run_id", lambda *_, **__: None)
    torch.set_num_threads(1)
    yield


def settings(project: Project, **sections: dict[str, object]) -> Params:
    folder = project.root / "small"
    local = {"small": {"file": folder.name, "sha256": weights.digest(folder)}}
    recipe = {"epochs": 1, "batch_size": 12, "mix": "none", "ema": 0.0}
    return Params.model_validate(
        {
            "problem": "text_classification",
            "threads": 1,
            "device": "cpu",
            "precision": "float32",
            "prepare": {"data": "reviews.csv"},
            "augment": {"policy": "none", "views": 1, "max_tokens": 16},
            "embed": {"backbones": ["small"], "weights": local},
            "select": {"race": 0},
            **sections,
            "train": {**recipe, **sections.get("train", {})},
        }
    )


def trained(project: Project, params: Params) -> tuple[ThawPlan, TrainRun, dict[str, Tensor]]:
    freeze.run(project, params)
    tune.run(project, params)
    train.run(project, params)
    return (
        ThawPlan.read(project.thaw_plan),
        TrainRun.read(project.train / "run.json"),
        load_file(project.train / "weights.safetensors"),
    )


def made(project: Project, params: Params) -> Setup:
    policy = ViewPolicy.read(project.augment / "policy.json")
    plan = freeze.make(Selection.read(project.selection), params.freeze, policy)
    return Setup.make(project, params, plan, params.train)


def pretrained(project: Project) -> dict[str, Tensor]:
    problem = problems.load("text_classification")
    return problem.backbone("small", settings(project).embed, project.root).model.state_dict()


def moved(found: dict[str, Tensor], before: dict[str, Tensor]) -> dict[str, float]:
    """Parameter below the head → how far it is from what it was, if it is."""
    return {
        key: float((value - before[key]).norm())
        for key, value in found.items()
        if not key.startswith("head.") and not torch.equal(value, before[key])
    }


@pytest.mark.parametrize("strategy", plugins.names(tasks.thaw_strategies))
def test_every_strategy_ends_in_a_plain_encoder(project: Project, strategy: str) -> None:
    chosen = {"strategy": strategy, "layers": [TOP[:-1]], "phase_epochs": 1, "lora_rank": 2}
    chosen["thaw_fraction"] = 0.8
    plan, run, found = trained(project, settings(project, freeze=chosen, train={"epochs": 4}))
    problem = problems.load("text_classification")
    backbone = problem.backbone("small", settings(project).embed, project.root)
    model, head = problem.build(backbone, 3, HeadParams())
    if plan.reading:
        model = MultiLayer(model, head, plan.reading, 3, HeadParams())
    model.load_state_dict(found)  # strict: no adapter and no wrapper is left
    before = backbone.model.state_dict()
    if plan.reading:
        found = model.backbone.state_dict()
    changed = moved(found, before)
    assert run.frozen_before == run.frozen_after
    assert list(run.frozen_before) == [f"{i} {p.name}" for i, p in enumerate(plan.phases, 1)]
    line = [layer.name for layer in plan.layers].index(plan.thaw_line)
    assert not [k for k in changed if k.startswith(tuple(x.name for x in plan.layers[:line]))]
    matrices = [key for key in changed if found[key].ndim > 1]
    if strategy in ("head_only", "multi_layer_head"):
        assert not changed
    elif strategy in ("norms_only", "biases_only"):
        assert changed and not matrices
    elif strategy == "pattern":
        assert changed and all(key.startswith(TOP) for key in changed)
    elif strategy == "gradual":
        assert len(plan.phases) > 2 and matrices
    elif strategy == "lora":
        assert matrices == [*changed]
        ranks = {int(torch.linalg.matrix_rank(found[k] - before[k], rtol=1e-3)) for k in changed}
        assert ranks <= {1, 2}
    elif strategy != "auto":
        assert matrices


def test_an_encoder_without_a_head_of_its_own_has_no_old_predictions_to_keep(
    project: Project,
) -> None:
    params = settings(project, freeze={"strategy": "head_only"})
    trained(project, params)
    evaluate.run(project, params)
    metrics = files.read_json(project.reports / "metrics.json")
    found = {key: value for key, value in metrics.items() if key.startswith("retention.")}
    assert found == {"retention.overlap": 1, "retention.drop": 0}


def test_layers_further_down_move_less_with_decay(project: Project) -> None:
    chosen = {"strategy": "all", "layer_decay": 0.1}
    plan, _, found = trained(project, settings(project, freeze=chosen))
    names = [f"encoder.layer.{i}" for i in range(LAYERS)]
    rates = [plan.phases[0].learning_rates[name] for name in names]
    assert rates == pytest.approx([0.001, 0.01, 0.1, 1.0])
    far = moved(found, pretrained(project))
    distances = [
        np.hypot.reduce([v for k, v in far.items() if k.startswith(name)]) for name in names
    ]
    assert distances == sorted(distances) and distances[0] < distances[-1] / 100


def test_layers_that_start_anew_are_random_and_the_others_pretrained(project: Project) -> None:
    params = settings(project, freeze={"strategy": "all", "reinitialise": 1})
    setup, before = made(project, params), pretrained(project)
    assert setup.plan.reinitialised == [TOP[:-1]]
    changed = moved(setup.model.state_dict(), before)
    assert all(key.startswith(TOP) for key in changed)
    matrices = {key for key in before if key.startswith(TOP) and before[key].ndim > 1}
    assert matrices <= {*changed}
    again = made(project, params).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in setup.model.state_dict().items())
    _, run, found = trained(project, params)
    assert run.frozen_before == run.frozen_after
    assert all(torch.isfinite(value).all() for value in found.values())


def test_contrastive_tuning_draws_classes_together_and_ends_in_a_working_head(
    project: Project,
) -> None:
    recipe = {"epochs": 12, "learning_rate": 0.005}
    apart: dict[float, float] = {}
    right: dict[float, float] = {}
    for weight in (0.0, 0.9):
        params = settings(project, freeze={"strategy": "all"}, train={**recipe, "contrast": weight})
        setup = made(project, params)
        start = contrast(setup)
        setup.init_head()
        state = setup.trainer(None, lambda state: None).fit(setup.data)
        apart[weight], right[weight] = contrast(setup), float(setup.right().mean())
        assert apart[weight] < start
        losses = [row["train_loss"] for row in state.history[1:]]
        assert losses[-1] < losses[0]
    assert apart[0.9] < apart[0.0]
    assert right[0.9] > 0.9


def contrast(setup: Setup) -> float:
    """The contrastive loss of all training examples at once."""
    inputs = setup.examples.batch(setup.rows["train"], 0)
    with torch.no_grad():
        features = pooling.of(setup.model)(setup.network.run(0, -1).eval()(inputs))
    settings = setup.settings.model_copy(update={"contrast": 1.0})
    targets = setup.targets["train"]
    return float(Objective.of(settings, targets).contrast(features, targets))
