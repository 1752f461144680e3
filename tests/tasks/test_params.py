"""params.yaml: read as DVC reads it, checked all at once, changed without losing a comment."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks import params as parameters
from tasks import params_file
from tasks.errors import ParamsError

ROOT = Path(__file__).parents[2]
SMALL = "prepare: {data: x}\nembed: {backbones: [a]}\n"


def check(text: str) -> parameters.Params:
    return params_file.check(params_file.parse(text.encode()))


def test_the_project_file_is_valid_and_in_pipeline_order() -> None:
    params_file.load(ROOT)
    tree = params_file.parse((ROOT / "params.yaml").read_bytes())
    schema = [field.alias or name for name, field in parameters.Params.model_fields.items()]
    assert list(tree) == schema
    for name, section in tree.items():
        if isinstance(section, dict):
            kind = type(parameters.get(params_file.load(ROOT), name))
            own = kind.__annotations__  # a problem's keys stand among those of all
            for keys in (own, [key for key in kind.model_fields if key not in own]):
                assert [k for k in section if k in keys] == [k for k in keys if k in section], name


def test_every_line_with_a_value_is_explained() -> None:
    for line in (ROOT / "params.yaml").read_text().splitlines():
        is_value = ":" in line and not line.rstrip().endswith(":") and "space" not in line
        if is_value and not line.strip().startswith("train."):
            assert "#" in line, line


@pytest.mark.parametrize(
    ("text", "value"), [("1e-4", 0.0001), ("1e-3", 0.001), ("0.5", 0.5), ("1", 1.0)]
)
def test_numbers_are_read_as_yaml_1_2(text: str, value: float) -> None:
    assert check(f"{SMALL}train: {{learning_rate: {text}}}").train.learning_rate == value


def test_words_are_not_booleans() -> None:
    assert check(f"{SMALL}freeze: {{cache: on}}").freeze.cache == "on"


def test_dvc_reads_the_same() -> None:
    from dvc.utils.serialize import parse_yaml_for_update

    text = "a: 1e-4\nb: on\nc: 010\nd: 0o10\ne: yes\nf: 1_000\ng: .inf\nh: ~\ni: '1'\n"
    ours: dict[str, Any] = params_file.parse(text.encode())
    assert dict(parse_yaml_for_update(text, "x")) == ours
    assert ours["b"] == "on" and ours["a"] == 0.0001 and ours["c"] == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("problm: x\n", "problm: unknown key: did you mean 'problem'"),
        ("train: {epohcs: 3}\n", "train.epohcs: unknown key: did you mean 'epochs'?"),
        (
            "train: {hidden: [8]}\n",
            "train.hidden: unknown key: did you mean 'train.head.hidden'",
        ),
        ("seed: .nan\n", "seed: must be a finite number (it is nan)"),
        ("train: {learning_rate: .inf}\n", "train.learning_rate: must be a finite number"),
        ("train: {epochs: many}\n", "train.epochs: input should be a valid integer"),
        ("train: {epochs: 0}\n", "train.epochs: input should be greater than or equal to 1"),
        ("select: {backbone: b}\n", "select.backbone: embed.backbones does not list 'b' (a)"),
        ("device: cpu\nprecision: float16\n", "precision: float16 needs a GPU"),
        ("device: gpu\n", "device: string should match pattern"),
        ("tune: {max_drop: 0.1}\n", "measured after whole trainings: set fidelity to full"),
        ("tune: {trials: 3}\n", "tune.trials: is above 0 but tune.space is empty"),
        ("tune: {minutes: 3}\n", "tune.minutes: is above 0 but tune.space is empty"),
        (
            "tune: {space: {train.x: {low: 0, high: 1}}}\n",
            "tune.space.train.x: 'train.x' is not a parameter",
        ),
        (
            "tune: {space: {seed: {low: 0, high: 1}}}\n",
            "tune.space.seed: only train.* can be",
        ),
        (
            "tune: {space: {train.mix: {low: 1, high: 2}}}\n",
            "train.mix: is no number; give choices",
        ),
        ("tune: {space: {train.mix: {choices: [none, mixupp]}}}\n", "reaches mixupp"),
        ("tune: {space: {train.epochs: {low: 1.5, high: 2}}}\n", "train.epochs: reaches 1.5"),
        (
            "tune: {space: {train.checkpoint_seconds: {low: 1, high: 2}}}\n",
            "never changes a result",
        ),
        ("tune: {space: {train.ema: {low: 2, high: 1}}}\n", "give low < high, or choices"),
        ("tune: {space: {train.label_smoothing: {low: 0.5, high: 1.5}}}\n", "reaches 1.5"),
        ("embed: {weights: {b: {file: f, sha256: 'x'}}}\n", "embed.weights.b.sha256"),
        (
            f"embed: {{weights: {{b: {{file: f, sha256: '{'0' * 64}'}}}}}}\n",
            "embed.weights.b: embed.backbones does not list it (a)",
        ),
        (
            "problem: image_classifier\n",
            "problem: there is no such problem: did you mean 'image_classification'? "
            "(it is 'image_classifier')",
        ),
        (
            "freeze: {strategy: last_block}\n",
            "freeze.strategy: there is no such strategy: did you mean 'last_blocks'?",
        ),
        ("freeze: {strategy: _layers}\n", "no such strategy; there are all, auto, "),
        (
            "augment: {policy: flip_crops}\n",
            "augment.policy: there is no such policy: did you mean 'flips_crops'?",
        ),
        ("augment: {policy: x}\n", "there are none, flips_crops, trivial, rand (it is 'x'); or"),
        (
            "freeze: {strategy: gradual, phase_epochs: 4}\n",
            "train.epochs: is 8, but before its last phase freeze.strategy 'gradual' takes 12; "
            "raise train.epochs above 12, or lower freeze.phase_epochs (4)",
        ),
        ("freeze: {strategy: head_then_all}\ntrain: {epochs: 2}\n", "'head_then_all' takes 2;"),
        (
            "freeze: {strategy: multi_layer_head}\ntrain: {head: {init: keep}}\n",
            "train.head.init: keep takes over rows that read one layer, and 'multi_layer_head'",
        ),
        (
            "freeze: {strategy: auto, reinitialise: 1}\n",
            "which 'auto' may leave frozen; set it to 0",
        ),
        (
            "tune: {space: {train.learning_rate: {choices: [auto, 0.1]}}}\n",
            "train.learning_rate: auto is found before the search",
        ),
    ],
)
def test_a_mistake_names_its_key(text: str, message: str) -> None:
    whole = text if text.startswith("embed") else SMALL + text
    if text.startswith("embed"):
        whole = "prepare: {data: x}\n" + text.replace("embed: {", "embed: {backbones: [a], ")
    with pytest.raises(ParamsError) as error:
        check(whole)
    assert message.lower() in str(error.value).lower()
    assert "\n" in str(error.value)


def test_a_list_of_transforms_is_advised_only_where_it_is_taken() -> None:
    texts = f"problem: text_classification\n{SMALL}augment: {{policy: %s}}\n"
    with pytest.raises(ParamsError) as error:
        check(texts % "tokendropout")
    assert str(error.value).endswith("did you mean 'token_dropout'? (it is 'tokendropout')")
    with pytest.raises(ParamsError, match=r"augment\.policy"):
        check(texts % "[token_dropout]")


def test_all_mistakes_are_told_at_once() -> None:
    with pytest.raises(ParamsError) as error:
        check("prepare: {splt: 1}\nembed: {backbones: []}\ntrain: {epochs: -1}\n")
    assert str(error.value).count("\n  ") == 4  # also the missing prepare.data


def test_all_that_does_not_fit_together_is_told_at_once() -> None:
    with pytest.raises(ParamsError) as error:
        check(
            f"{SMALL}select: {{backbone: b}}\ndevice: cpu\nprecision: float16\n"
            "augment: {policy: x}\nfreeze: {strategy: gradual}\ntrain: {epochs: 6}\n"
            "tune: {space: {seed: {low: 0, high: 1}, train.ema: {low: 0, high: 2}}}\n"
        )
    paths = [line.strip().partition(": ")[0] for line in str(error.value).splitlines()[1:]]
    assert paths == [
        *("select.backbone", "precision", "augment.policy", "train.epochs"),
        *("tune.space.seed", "tune.space.train.ema"),
    ]


def test_a_strategy_of_the_users_own_is_known(tmp_path: Path) -> None:
    """As a file beside the others; it need not say how many phases it has."""
    copy = tmp_path / "tasks"
    shutil.copytree(ROOT / "tasks", copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = "def plan(layers, params):\n    raise AssertionError\n"
    (copy / "thaw_strategies/last_two.py").write_text(source)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    code = """
import sys
from pathlib import Path
from tasks import params_file
assert params_file.set_values(Path(), ["freeze.strategy=last_two"]).freeze.strategy == "last_two"
heavy = {"torch", "torchvision", "timm", "mlflow", "prefect", "sklearn", "optuna"}
assert not heavy & set(sys.modules)
"""
    run = [sys.executable, "-c", code]
    subprocess.run(run, cwd=tmp_path, check=True, env=os.environ | {"PYTHONPATH": str(tmp_path)})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a: &x 1\nb: *x\n", "aliases"),
        (b"a: 1\na: 2\n", "duplicate key"),
        (b"a: [1\n", "not valid YAML"),
        (b"\xff\xfe\x00", "not UTF-8 at byte 0"),
        (b"#" * 1_000_001, "larger than"),
        (b"[" * 5000, "nested too deeply"),
        (b"!!python/object/apply:os.system [id]\n", "YAML"),
        (b"- 1\n", "must be a mapping"),
        (b"", "must be a mapping"),
    ],
)
def test_hostile_yaml_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(ParamsError, match=message):
        params_file.check(params_file.parse(data))


@given(st.binary(max_size=200))
def test_any_bytes_give_parameters_or_one_error(data: bytes) -> None:
    with pytest.raises(ParamsError):
        params_file.check(params_file.parse(data))


@pytest.fixture
def project(tmp_path: Path) -> Path:
    shutil.copy(ROOT / "params.yaml", tmp_path)
    return tmp_path


def test_set_keeps_comments_and_changes_only_the_value(project: Path) -> None:
    before = (project / "params.yaml").read_text().splitlines()
    params_file.set_values(project, ["train.learning_rate=3e-3", "prepare.split.salt=7"])
    after = (project / "params.yaml").read_text().splitlines()
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 2
    assert all("#" in new for _, new in changed)
    assert params_file.load(project).train.learning_rate == 0.003


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("train.epochs", "is not key=value"),
        ("train.epoch=3", "did you mean 'train.epochs'"),
        ("train.epochs=zero", "train.epochs"),
        ("train.epochs=[", "not valid YAML"),
        ("nonsense=1", "is not a parameter"),
    ],
)
def test_a_wrong_set_writes_nothing(project: Path, assignment: str, message: str) -> None:
    before = (project / "params.yaml").read_bytes()
    with pytest.raises(ParamsError, match=message):
        params_file.set_values(project, ["seed=3", assignment])
    assert (project / "params.yaml").read_bytes() == before


def test_set_takes_lists_and_new_entries(project: Path) -> None:
    params_file.set_values(project, ["train.head.hidden=[64, 32]", "embed.backbones=[resnet18]"])
    loaded = params_file.load(project)
    assert loaded.train.head.hidden == [64, 32]
    assert loaded.embed.backbones == ["resnet18"]


def test_replace_changes_key_paths_and_checks_again() -> None:
    params = check(SMALL)
    assert parameters.replace(params, {"train.head.dropout": 0.5}).train.head.dropout == 0.5
    with pytest.raises(ValueError, match="dropout"):
        parameters.replace(params, {"train.head.dropout": 2})


def test_a_folder_without_params_is_no_project(tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match=r"is not a Thawline project.*thawline new"):
        params_file.load(tmp_path)
