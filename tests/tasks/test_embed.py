from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

from tasks import augment, embed, files
from tasks.engine.pooling import Pool
from tasks.errors import ThawlineError
from tasks.params import EmbedParams
from tasks.problems.image_classification import backbones
from tasks.problems.image_classification.image_store import ImageStore
from tasks.problems.image_classification.inputs import normalised, plain
from tasks.records import Embedding, Layer, Project
from tests.tasks import drawn_project

NAME = "mobilenet_v2"


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> None:
    torch.set_num_threads(1)


def embedded(root: Path, name: str = NAME, test_ink: int = 0, **sections: Any) -> Project:
    project = drawn_project.make(root, test_ink=test_ink)
    params = drawn_project.params(**sections)
    augment.run(project, params)
    embed.run(project, params, name)
    return project


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    return embedded(tmp_path_factory.mktemp("embedded") / "project")


def record(project: Project, name: str = NAME) -> Embedding:
    return Embedding.read(project.features(name) / "embedding.json")


def test_the_record_says_what_the_backbone_is(project: Project) -> None:
    found = record(project)
    assert found.backbone == NAME
    assert found.weights_sha256.startswith("b0353104")
    assert [layer.name for layer in found.layers][-2:] == ["features.18", "head"]
    assert sum(layer.parameters for layer in found.layers) == 3_504_872
    # Its authors count 300 million multiply-adds at 224 pixels; here it is 64.
    flops = sum(layer.flops for layer in found.layers[:-1])
    assert flops == pytest.approx(300e6 * (64 / 224) ** 2, rel=0.01)
    assert {layer.item_bytes for layer in found.layers} == {4}  # float32


def test_three_depths_at_about_half_three_quarters_and_all_of_the_compute(project: Project) -> None:
    found = record(project)
    names = [layer.name for layer in found.layers]
    done = np.cumsum([layer.flops for layer in found.layers[:-1]])
    shares = [done[names.index(name)] / done[-1] for name in found.depths]
    assert shares == pytest.approx([0.5, 0.75, 1.0], abs=0.05)
    assert list(found.depths)[-1] == "features.18"


def test_the_features_are_the_pooled_outputs_of_the_frozen_network(project: Project) -> None:
    found, folder = record(project), project.features(NAME)
    rows = np.load(folder / found.rows)
    frame = pd.read_parquet(project.manifest)
    assert rows.dtype == np.int64
    assert (frame["split"].to_numpy()[rows] != "test").all()
    assert len(rows) == (frame["split"] != "test").sum() == 24
    store = ImageStore(project.prepared, frame)
    pixels = torch.stack([plain(store.image(row), 64, "squash") for row in rows])
    backbone = backbones.backbone(NAME, EmbedParams(backbones=[NAME]), project.root)
    values = normalised(pixels, backbone.mean, backbone.std)
    with torch.inference_mode():
        for number, layer in enumerate(backbone.model.features):
            values = layer(values)
            if file := found.depths.get(f"features.{number}"):
                kept = np.load(folder / file)
                assert kept.dtype == np.float32
                expected = values.mean((2, 3)).numpy()
                assert np.allclose(kept, expected, atol=1e-4), file


def test_real_weights_tell_the_shapes_apart(project: Project) -> None:
    from tasks.select import knn_accuracy

    found, folder = record(project), project.features(NAME)
    targets = pd.read_parquet(project.manifest)["target"].to_numpy()[np.load(folder / "rows.npy")]
    assert knn_accuracy(np.load(folder / found.depths["features.18"]), targets) > 0.7


def everything(project: Project, name: str = NAME) -> dict[str, str]:
    return {p.name: files.sha256_file(p) for p in project.features(name).iterdir()}


def test_the_outputs_repeat_and_do_not_look_at_test_images(
    project: Project, tmp_path: Path
) -> None:
    other = embedded(tmp_path / "elsewhere", test_ink=255)
    stores = [(p.prepared / "images.bin").read_bytes() for p in (project, other)]
    assert stores[0] != stores[1]  # the test images are others
    assert everything(project) == everything(other)
    assert len(everything(other)) == 5  # three depths, the rows, the record


def test_nothing_of_this_machine_or_moment_is_recorded(project: Project) -> None:
    text = (project.features(NAME) / "embedding.json").read_text()
    assert str(Path.home()) not in text
    assert str(project.root) not in text
    assert "seconds" not in text


def test_local_weights_of_another_architecture_embed_too(tmp_path: Path) -> None:
    name = "timm.test_resnet"
    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    path = tmp_path / "weights/own.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    section = {
        "backbones": [name],
        "weights": {
            name: {"file": "../weights/own.safetensors", "sha256": files.sha256_file(path)}
        },
        "batch_size": 7,  # 24 rows: the last batch is smaller
    }
    project = embedded(tmp_path / "project", name, embed=section)
    found = record(project, name)
    assert found.weights_source == "local file own.safetensors"
    for file in found.depths.values():
        assert np.load(project.features(name) / file).shape[0] == 24
        assert np.abs(np.load(project.features(name) / file)).sum(1).min() > 0


def test_bfloat16_gives_float32_features_close_by(project: Project, tmp_path: Path) -> None:
    other = embedded(tmp_path / "half", precision="bfloat16")
    file = record(project).depths["features.18"]
    exact, rough = (np.load(p.features(NAME) / file) for p in (project, other))
    assert rough.dtype == np.float32
    assert not np.array_equal(exact, rough)
    assert np.corrcoef(exact.ravel(), rough.ravel())[0, 1] > 0.95


def test_images_of_a_wrong_size_are_one_sentence(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    path = tmp_path / "vit.safetensors"
    save_file(timm.create_model(name).state_dict(), path)
    section = {
        "backbones": [name],
        "weights": {name: {"file": str(path), "sha256": files.sha256_file(path)}},
    }
    with pytest.raises(ThawlineError, match=f"{name} does not take images of 64 pixels"):
        embedded(tmp_path / "project", name, embed=section)
    assert not (tmp_path / "project/outputs/features").exists()


class _Counting(nn.Module):
    """A buffer that moves in evaluation mode, as no frozen pass may."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen += 1
        return x


def test_a_pass_that_changes_a_buffer_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = backbones.backbone

    def counting(name: str, section: EmbedParams, root: Path) -> Any:
        found = original(name, section, root)
        found.model.features[0].add_module("count", _Counting())
        return found

    monkeypatch.setattr(backbones, "backbone", counting)
    with pytest.raises(RuntimeError, match="changed weights or buffers"):
        embedded(tmp_path / "project")
    assert not (tmp_path / "project/outputs/features/mobilenet_v2/embedding.json").exists()


def test_pooling_knows_where_the_channels_are() -> None:
    values = torch.rand(2, 5, 4, 4)
    expected = values.mean((2, 3))
    assert torch.allclose(Pool()(values), expected)
    assert torch.allclose(Pool()(values.permute(0, 2, 3, 1)), expected)
    assert torch.allclose(Pool()(values.flatten(2).transpose(1, 2)), expected)
    assert torch.equal(Pool()(expected), expected)


def test_depths_of_a_short_network_are_not_doubled() -> None:
    layers = [Layer(name, 1, 0, flops, 2) for name, flops in (("a", 90), ("b", 10), ("head", 1))]
    assert embed.depths(layers) == [1, 2]
    assert embed.depths([layers[0], layers[2]]) == [1]
