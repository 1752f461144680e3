from __future__ import annotations

import http.server
import pickle
import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_image
from torch import nn

from tasks import catalogue, files
from tasks.engine.split import chain
from tasks.errors import ThawlineError, UnknownName
from tasks.params import EmbedParams, HeadParams
from tasks.problems.image_classification import downloads, inputs, weights
from tasks.problems.image_classification.architectures import find
from tasks.problems.image_classification.backbones import backbone, build, normalisation, with_head

PALACE = 698  # in ImageNet's order
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def embed(name: str, path: Path | None = None, sha256: str | None = None) -> EmbedParams:
    if path is None:
        return EmbedParams(backbones=[name])
    file = {"file": path.name, "sha256": sha256 or files.sha256_file(path)}
    return EmbedParams.model_validate({"backbones": [name], "weights": {name: file}})


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A local file of ResNet-18's shape."""
    path = tmp_path_factory.mktemp("weights") / "resnet18.pth"
    torch.manual_seed(0)
    torch.save(torchvision.models.resnet18().state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["mobilenet_v2", "tf_efficientnet_lite0"])
def test_packaged_weights_know_a_palace_when_they_see_one(name: str, tmp_path: Path) -> None:
    found = backbone(name, embed(name), tmp_path)
    image = inputs.plain(load_sample_image("china.jpg"), 224, "crop")
    with torch.inference_mode():
        scores = found.model(inputs.normalised(image[None], found.mean, found.std))
    assert scores.argmax().item() == PALACE
    assert found.weights_sha256 == catalogue.known_weights()[name].sha256
    assert "ImageNet" in found.pretraining
    assert found.licence != weights.UNKNOWN
    assert not found.model.training


def test_the_normalisation_is_that_of_the_weights() -> None:
    assert normalisation("mobilenet_v2") == IMAGENET
    assert normalisation("tf_efficientnet_lite0") == ((0.5,) * 3, (0.5,) * 3)


@pytest.mark.parametrize(
    ("name", "head", "plain"),
    [
        ("mobilenet_v2", "classifier", lambda n: torchvision.models.mobilenet_v2(num_classes=n)),
        ("resnet18", "fc", lambda n: torchvision.models.resnet18(num_classes=n)),
        ("timm.resnet18", "fc", lambda n: timm.create_model("resnet18", num_classes=n)),
        ("densenet121", "classifier", lambda n: torchvision.models.densenet121(num_classes=n)),
        (
            "tf_efficientnet_lite0",
            "classifier",
            lambda n: timm.create_model("tf_efficientnet_lite0", num_classes=n),
        ),
    ],
)
def test_a_linear_head_loads_into_the_librarys_own_model(name: str, head: str, plain: Any) -> None:
    model, path = build(name, 7, HeadParams(dropout=0.3))
    own = plain(7)
    own.load_state_dict(model.state_dict())
    batch = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(model.eval()(batch), own.eval()(batch))
    assert path == head
    dropout = [m.p for m in model.get_submodule(path).modules() if isinstance(m, nn.Dropout)]
    assert dropout == [0.3]


@pytest.mark.parametrize(
    ("name", "plain"),
    [
        *(("mobilenet_v2", True), ("shufflenet_v2_x0_5", True), ("timm.test_resnet", True)),
        *(("squeezenet1_1", False), ("googlenet", False), ("timm.resnetv2_50", False)),
    ],
)
def test_it_is_known_which_networks_the_library_makes_alone(name: str, plain: bool) -> None:
    architecture = find(name)
    timms = architecture.library == "timm"
    make = timm.create_model if timms else torchvision.models.get_model
    own = make(architecture.full if timms else architecture.arch, num_classes=3)
    model, _ = build(name, 3, HeadParams())
    shapes = [{key: value.shape for key, value in x.state_dict().items()} for x in (own, model)]
    assert (shapes[0] == shapes[1]) == architecture.plain() == plain


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18"])
def test_dropout_before_the_head_acts_in_training_alone(name: str) -> None:
    model, path = build(name, 4, HeadParams(dropout=0.5))
    head = model.get_submodule(path)
    features = torch.ones(
        2, next(m.in_features for m in head.modules() if hasattr(m, "in_features"))
    )
    assert not torch.equal(head.train()(features), head(features))
    assert torch.equal(head.eval()(features), head(features))


@pytest.mark.parametrize("name", ["mobilenet_v2", "resnet18", "vit_b_32", "squeezenet1_1"])
def test_hidden_layers_and_the_cut_before_the_head(name: str) -> None:
    model, path = build(name, 5, HeadParams(hidden=[16, 8], dropout=0.1))
    kinds = [type(m).__name__ for m in model.get_submodule(path).modules() if not any(m.children())]
    new = ["Dropout", "Linear", "ReLU", "Dropout", "Linear", "ReLU", "Dropout", "Linear"]
    assert kinds[-8:] == new
    layers = chain(model, path, torch.zeros(1, 3, 224, 224))
    assert layers.layers[-1].name == "head"
    features = layers.part(0, -1 + len(layers.layers))(torch.zeros(2, 3, 224, 224))
    assert layers.part(len(layers.layers) - 1)(features).shape == (2, 5)


@pytest.mark.parametrize(
    "name",
    [
        *("googlenet", "inception_v3", "maxvit_t", "convnext_tiny", "swin_t", "regnet_y_400mf"),
        *("timm.test_resnet", "mobilenetv3_small_050", "resnetv2_50x1_bit", "vit_tiny_patch16_224"),
    ],
)
def test_other_kinds_of_networks_get_a_head(name: str) -> None:
    model, _ = build(name, 3, HeadParams())
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_a_network_with_two_heads_is_refused() -> None:
    with pytest.raises(ThawlineError, match="no single classifier"):
        build("deit_tiny_distilled_patch16_224", 3, HeadParams())


def test_a_head_is_replaced_in_place(resnet: Path) -> None:
    found = backbone("resnet18", embed("resnet18", resnet), resnet.parent)
    before = found.model.conv1.weight.clone()
    model = with_head(found.model, found.head, 3, HeadParams())
    assert model is found.model
    assert torch.equal(model.conv1.weight, before)
    assert model.fc.weight.shape == (3, 512)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_local_weights_are_loaded(resnet: Path, suffix: str) -> None:
    path = resnet.with_suffix(suffix)
    state = torch.load(resnet, weights_only=True)
    if suffix == ".safetensors":
        save_file(state, path)
    found = backbone("resnet18", embed("resnet18", path), resnet.parent)
    assert all(torch.equal(v, state[k]) for k, v in found.model.state_dict().items())
    assert (found.head, found.mean, found.std) == ("fc", *IMAGENET)
    assert found.weights_sha256 == files.sha256_file(path)
    assert found.weights_source == f"local file resnet18{suffix}"  # and no path of this machine
    assert found.licence == weights.UNKNOWN


def test_a_wrapped_state_dict_is_unwrapped(resnet: Path, tmp_path: Path) -> None:
    state = torch.load(resnet, weights_only=True)
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    found = backbone("resnet18", embed("resnet18", tmp_path / "checkpoint.pth"), tmp_path)
    assert torch.equal(found.model.fc.weight, state["fc.weight"])


def test_another_sha256_is_refused(resnet: Path) -> None:
    wrong = "0" * 64
    with pytest.raises(ThawlineError, match=r"embed.weights.resnet18: resnet18.pth has sha256 \w+"):
        backbone("resnet18", embed("resnet18", resnet, wrong), resnet.parent)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ThawlineError, match=r"embed.weights.resnet18: there is no file gone.pth"):
        backbone("resnet18", embed("resnet18", tmp_path / "gone.pth", "0" * 64), tmp_path)


def test_the_file_of_another_network_is_refused_by_its_keys(resnet: Path) -> None:
    with pytest.raises(ThawlineError, match=r"does not fit resnet34: layer1.2.conv1.weight is mis"):
        backbone("resnet34", embed("resnet34", resnet), resnet.parent)


class _Marker:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, legacy: bool) -> None:
    marker, path = tmp_path / "ran", tmp_path / "evil.pth"
    content = {"fc.weight": _Marker(marker)}
    if legacy:
        path.write_bytes(pickle.dumps(content, protocol=2))
    else:
        torch.save(content, path)
    with pytest.raises(ThawlineError, match=r"evil.pth is refused: it holds more than tensors"):
        backbone("resnet18", embed("resnet18", path), tmp_path)
    assert not marker.exists()


@pytest.mark.parametrize("name", ["noise.pth", "noise.safetensors", "empty.pth"])
def test_what_is_no_file_of_weights_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"" if "empty" in name else bytes(range(256)) * 4)
    with pytest.raises(ThawlineError, match=name):
        backbone("resnet18", embed("resnet18", path), tmp_path)


def test_unknown_names_bring_the_nearest() -> None:
    with pytest.raises(UnknownName, match="'mobilenet_v3': did you mean"):
        find("mobilenet_v3")
    with pytest.raises(UnknownName, match=r"'resnet18d'.*did you mean 'resnet18'"):
        find("torchvision.resnet18d")  # timm has it, torchvision has not
    with pytest.raises(UnknownName, match="weights of timm's resnet18 'a4_in1k': did you mean"):
        find("timm.resnet18.a4_in1k")


@pytest.mark.parametrize(
    ("name", "library", "arch", "tag"),
    [
        ("resnet18", "torchvision", "resnet18", ""),
        ("timm.resnet18", "timm", "resnet18", ""),
        ("resnet18.a1_in1k", "timm", "resnet18", "a1_in1k"),
        ("resnet50.IMAGENET1K_V1", "torchvision", "resnet50", "IMAGENET1K_V1"),
        ("tf_efficientnet_lite0", "timm", "tf_efficientnet_lite0", ""),
    ],
)
def test_a_name_means_one_network(name: str, library: str, arch: str, tag: str) -> None:
    found = find(name)
    assert (found.library, found.arch, found.tag) == (library, arch, tag)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No cached weights, and a proxy that nobody listens at."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for scheme in ("http", "https"):
        monkeypatch.setenv(f"{scheme}_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["resnet18", "timm.resnet18"])
def test_weights_that_cannot_be_had_say_how_to_get_them(name: str, tmp_path: Path) -> None:
    begun = time.monotonic()
    with pytest.raises(ThawlineError, match="cannot be downloaded") as caught:
        backbone(name, embed(name), tmp_path)
    assert time.monotonic() - begun < 10
    message = str(caught.value)
    assert f"thawline weights {name}" in message
    assert f"embed.weights.{name}" in message


@pytest.mark.usefixtures("offline")
def test_the_hubs_offline_switch_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ThawlineError, match="HF_HUB_OFFLINE is set"):
        weights.fetch("timm.resnet18")


def test_a_host_that_never_answers_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(downloads, "CONNECT_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        reason = downloads.unreachable(f"http://127.0.0.1:{silent.getsockname()[1]}/x")
        assert reason is not None
        assert "does not answer" in reason
        assert time.monotonic() - begun < 3


@pytest.mark.usefixtures("offline")
def test_weights_in_torchs_own_cache_are_used_and_checked(tmp_path: Path) -> None:
    name = "torchvision.mobilenet_v2.IMAGENET1K_V1"
    original = catalogue.fetch_weights("mobilenet_v2")
    cached = tmp_path / "torch/hub/checkpoints" / "mobilenet_v2-b0353104.pth"
    cached.parent.mkdir(parents=True)
    shutil.copyfile(original, cached)
    found = backbone(name, embed(name), tmp_path)
    assert found.weights_sha256.startswith("b0353104")
    assert found.pretraining == "ImageNet-1k (IMAGENET1K_V1)"
    with cached.open("r+b") as file:
        file.seek(1000)
        file.write(b"flip")
    with pytest.raises(ThawlineError, match="damaged"):
        backbone(name, embed(name), tmp_path)


REVISION = "a" * 40


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    """A mirror of the hub with one file, `model.safetensors` of every repository."""
    torch.manual_seed(0)
    path = tmp_path / "model.safetensors"
    save_file(timm.create_model("test_resnet").state_dict(), path)
    content = path.read_bytes()

    class Mirror(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found = self.path.endswith("/model.safetensors") or self.path == "/"
            self.send_response(200 if found else 404)
            self.send_header("X-Repo-Commit", REVISION)
            self.send_header("ETag", f'"{files.sha256_file(path)}"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self) -> None:
            self.do_HEAD()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_timm_weights_come_from_the_hub_and_then_from_its_cache(
    hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for scheme in ("http", "https"):
        monkeypatch.delenv(f"{scheme}_proxy", raising=False)
        monkeypatch.delenv(f"{scheme}_proxy".upper(), raising=False)
    constants = "huggingface_hub.constants"
    template = hub + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(f"{constants}.ENDPOINT", hub)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    original = tmp_path / "model.safetensors"
    for offline in (False, True):
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", offline)
        found = backbone("timm.test_resnet", embed("timm.test_resnet"), tmp_path)
        assert found.weights_sha256 == files.sha256_file(original)
        assert found.weights_source == "timm: timm/test_resnet.r160_in1k"
        assert found.licence == "apache-2.0"
        expected, loaded = load_file(original), found.model.state_dict()
        assert expected.keys() == loaded.keys()
        assert all(torch.equal(loaded[key], expected[key]) for key in expected)
