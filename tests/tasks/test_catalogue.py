"""The catalogue gets data and weights from its sources, checks them, and says how otherwise."""

from __future__ import annotations

import gzip
import hashlib
import io
import threading
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tasks import catalogue, files, problems
from tasks.catalogue import Catalogue, Source
from tasks.errors import DataError, ThawlineError, UnknownName
from tasks.plugins import names
from tests.tasks.embedded import SAMPLE, stored_sample
from tests.tasks.image_classification.drawings import class_folders

PIXELS = b"weights" * 1000
SHA256 = hashlib.sha256(PIXELS).hexdigest()


def only(monkeypatch: pytest.MonkeyPatch, kind: str, name: str, **changes: object) -> None:
    """Make one changed entry the whole catalogue."""
    entry = getattr(catalogue._catalogue(), kind)[name].model_copy(update=changes)
    other = Catalogue(**{"data": {}, "weights": {}, kind: {name: entry}})
    monkeypatch.setattr(catalogue, "_catalogue", lambda: other)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(catalogue.CACHE_FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


def weights(monkeypatch: pytest.MonkeyPatch, *sources: Source) -> None:
    only(monkeypatch, "weights", "mobilenet_v2", file="w.pth", sha256=SHA256, sources=[*sources])


# --- entries -------------------------------------------------------------------------------------


def test_entries_are_complete():
    for entry in catalogue.known_data().values():
        assert entry.problem in names(problems)
        assert entry.licence and entry.notice and entry.citation and entry.sources
        assert (entry.files or entry.sha256) and all(len(x) == 64 for x in entry.files.values())
    for entry in catalogue.known_weights().values():
        assert entry.sha256[:8] in entry.file or entry.sources[0].wheel
    assert {"fashion_mnist_sample", "fashion_mnist", "tuxpaint"} <= set(catalogue.known_data())
    assert {"mobilenet_v2", "tf_efficientnet_lite0"} <= set(catalogue.known_weights())


def test_the_embedded_sample_is_the_one_of_the_catalogue_and_of_dvc():
    entry = catalogue.known_data()["fashion_mnist_sample"]
    stored = stored_sample()
    assert files.sha256_file(stored) == entry.files[SAMPLE.name]
    assert hashlib.md5(stored.read_bytes()).hexdigest() == "".join(stored.parts[-2:])
    table = pq.read_table(stored, columns=["label", "split"]).to_pandas()
    counts = table.groupby(["split", "label"]).size()
    assert len(counts) == 20 and set(counts) == {300}


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(UnknownName, match="did you mean 'tuxpaint'"):
        catalogue.fetch_data("tux_paint", tmp_path)
    with pytest.raises(UnknownName, match="mobilenet_v2"):
        catalogue.fetch_weights("mobilenet")


# --- weights -------------------------------------------------------------------------------------


def test_weights_come_from_the_first_source_that_has_them(tmp_path, cache, monkeypatch):
    (tmp_path / "w").write_bytes(PIXELS)
    (tmp_path / "other").write_bytes(b"something else")
    weights(
        monkeypatch,
        Source(folder=str(tmp_path / "missing")),
        Source(folder=str(tmp_path / "other")),
        Source(folder=str(tmp_path / "w")),
    )
    path = catalogue.fetch_weights("mobilenet_v2")
    assert path == cache / "w.pth" and path.read_bytes() == PIXELS
    (tmp_path / "w").unlink()
    assert catalogue.fetch_weights("mobilenet_v2") == path  # nothing is fetched again
    path.write_bytes(PIXELS[:-1] + b"!")
    with pytest.raises(ThawlineError, match="cannot get the weights of mobilenet_v2"):
        catalogue.fetch_weights("mobilenet_v2")  # checked at every load
    (tmp_path / "w").write_bytes(PIXELS)
    assert catalogue.fetch_weights("mobilenet_v2").read_bytes() == PIXELS
    assert [x.name for x in cache.iterdir()] == ["w.pth"]


def test_a_wheel_is_downloaded_by_pip_and_not_installed(tmp_path, monkeypatch):
    wheel = tmp_path / "shop/some_weights-1.0-py3-none-any.whl"
    wheel.parent.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some_weights/w.pth", PIXELS)
        info = (
            "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\nRequires-Dist: torch==1.6.0\n"
        )
        archive.writestr("some_weights-1.0.dist-info/METADATA", info)
        archive.writestr(
            "some_weights-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n"
        )
        archive.writestr("some_weights-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel.parent))
    weights(monkeypatch, Source(wheel="some-weights==1.0", member="some_weights/w.pth"))
    assert catalogue.fetch_weights("mobilenet_v2").read_bytes() == PIXELS
    with pytest.raises(ImportError):
        __import__("some_weights")
    weights(monkeypatch, Source(wheel="no-weights==1.0", member="some_weights/w.pth"))
    catalogue.fetch_weights("mobilenet_v2").unlink()
    with pytest.raises(ThawlineError, match=r"pip download --no-deps no-weights==1\.0 failed"):
        catalogue.fetch_weights("mobilenet_v2")


def test_many_at_once_end_with_one_whole_file(tmp_path, cache, monkeypatch):
    (tmp_path / "w").write_bytes(PIXELS)
    weights(monkeypatch, Source(folder=str(tmp_path / "w")))
    read: list[bytes] = []
    work = [
        threading.Thread(
            target=lambda: read.append(catalogue.fetch_weights("mobilenet_v2").read_bytes())
        )
        for _ in range(16)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert read == [PIXELS] * 16
    assert [x.name for x in cache.iterdir()] == ["w.pth"]


def test_without_a_network_the_error_says_what_to_do(cache, monkeypatch):
    weights(monkeypatch, Source(url="https://127.0.0.1:9/w.pth"))  # nobody listens there
    with pytest.raises(ThawlineError) as error:
        catalogue.fetch_weights("mobilenet_v2")
    message = str(error.value)
    assert "https://127.0.0.1:9/w.pth" in message and "refused" in message
    assert f"put it at {cache / 'w.pth'}" in message and "\n" not in message


# --- data ----------------------------------------------------------------------------------------


def idx_files(folder: Path, classes: int = 10) -> dict[str, str]:
    """Fashion-MNIST's four files with a few images; returns the sha256 of their contents."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    digests = {}
    for prefix, count in (("train", 30), ("t10k", 20)):
        labels = np.arange(count, dtype=np.uint8) % classes
        images = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        for kind, head, body in (("labels-idx1", 8, labels), ("images-idx3", 16, images)):
            name, content = f"{prefix}-{kind}-ubyte.gz", bytes(head) + body.tobytes()
            (folder / name).write_bytes(gzip.compress(content))
            digests[name] = hashlib.sha256(content).hexdigest()
    return digests


def test_idx_files_become_one_parquet(tmp_path, monkeypatch):
    digests = idx_files(tmp_path / "raw")
    source = Source(folder=str(tmp_path / "raw"))
    only(monkeypatch, "data", "fashion_mnist", files=digests, sources=[source])
    path = catalogue.fetch_data("fashion_mnist", tmp_path)
    assert path == tmp_path / "data/fashion_mnist.parquet"
    table = pq.read_table(path).to_pandas()
    assert table["split"].tolist() == ["train"] * 30 + ["test"] * 20
    assert table["label"][:2].tolist() == ["T-shirt/top", "Trouser"]
    raw = gzip.decompress((tmp_path / "raw/t10k-images-idx3-ubyte.gz").read_bytes())[16:]
    last = np.asarray(Image.open(io.BytesIO(table["image"].iloc[-1])))
    assert last.tobytes() == raw[-28 * 28 :]
    before = path.stat().st_mtime_ns
    assert catalogue.fetch_data("fashion_mnist", tmp_path).stat().st_mtime_ns == before


@pytest.mark.parametrize("harm", ["change", "truncate"])
def test_other_contents_are_refused_and_nothing_is_left(tmp_path, monkeypatch, harm):
    digests = idx_files(tmp_path / "raw")
    file = tmp_path / "raw/train-images-idx3-ubyte.gz"
    if harm == "change":
        content = bytearray(gzip.decompress(file.read_bytes()))
        content[-1] ^= 1
        file.write_bytes(gzip.compress(bytes(content)))
    else:
        file.write_bytes(file.read_bytes()[:5000])
    sources = [Source(folder=str(tmp_path / "raw")), Source(debian="dataset-fashion-mnist")]
    only(monkeypatch, "data", "fashion_mnist", files=digests, sources=sources)
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist"):
        catalogue.fetch_data("fashion_mnist", tmp_path)
    assert list((tmp_path / "data").iterdir()) == []


def test_stamps_become_class_folders(tmp_path, monkeypatch):
    raw = class_folders(tmp_path / "raw", {"animals/fish": 3, "animals/fish/cartoon": 2, "food": 2})
    (raw / "food/000.png").rename(raw / "food/pear_mirror.png")
    (raw / "food/notes.txt").write_text("no picture")
    chosen = {f"fish/{i:03}.png": raw / f"animals/fish/{i:03}.png" for i in range(3)}
    chosen["sweet food/001.png"] = raw / "food/001.png"
    lines = sorted(f"{name} {files.sha256_file(path)}" for name, path in chosen.items())
    only(
        monkeypatch,
        "data",
        "tuxpaint",
        folders={"fish": "animals/fish", "sweet food": "food"},
        sha256=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        sources=[Source(folder=str(raw)), Source(debian="tuxpaint-stamps-default")],
    )
    place = catalogue.fetch_data("tuxpaint", tmp_path)
    found = {x.relative_to(place).as_posix() for x in place.rglob("*.png")}
    assert found == set(chosen)
    assert [x.name for x in (tmp_path / "data").iterdir()] == ["tuxpaint"]
    (raw / "animals/fish/001.png").unlink()
    with pytest.raises(DataError, match="apt-get install tuxpaint-stamps-default"):
        catalogue.fetch_data("tuxpaint", tmp_path / "again")


@pytest.mark.skipif(
    not Path("/usr/share/tuxpaint/stamps/animals").is_dir(), reason="Tux Paint is not installed"
)
def test_the_real_stamps(tmp_path):
    place = catalogue.fetch_data("tuxpaint", tmp_path)
    counts = {folder.name: len(list(folder.iterdir())) for folder in place.iterdir()}
    assert counts == {
        "mammals": 65,
        "birds": 35,
        "fruit": 26,
        "flowers": 24,
        "road signs": 20,
        "vegetables": 18,
        "fish": 11,
        "insects": 9,
    }


def test_the_sample_comes_out_of_a_checkout(tmp_path, monkeypatch):
    (tmp_path / "checkout/data").mkdir(parents=True)
    monkeypatch.setattr(catalogue, "CHECKOUT", tmp_path / "checkout")
    with pytest.raises(DataError, match="run dvc pull there"):
        catalogue.fetch_data("fashion_mnist_sample", tmp_path)
    copy = tmp_path / "checkout/data" / SAMPLE.name
    copy.write_bytes(stored_sample().read_bytes())
    path = catalogue.fetch_data("fashion_mnist_sample", tmp_path)
    assert path.read_bytes() == copy.read_bytes()
