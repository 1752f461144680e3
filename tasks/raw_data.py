"""The raw forms in which the catalogue's data sets come → what `prepare` reads.

Each function takes the entry, a folder with its raw files and the place to fill; it checks the
sha256 and raises `Mismatch` when the files are not those of the catalogue.
"""

from __future__ import annotations

import email
import email.policy
import gzip
import hashlib
import io
import shutil
from collections.abc import Iterable, Iterator
from email.message import EmailMessage
from html.parser import HTMLParser
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from tasks import files
from tasks.progress import Advance, progress

if TYPE_CHECKING:
    from tasks.catalogue import Data

ROWS = 1000  # images in a row group of a Parquet file, so that it can be read piece by piece
IDX_HEADER = {"images": 16, "labels": 8}  # bytes before the pixels or labels of an .idx file

CLEAR = 1.0  # of a score from -4 to 4: nearer to nought people did not agree

Row = tuple[bytes, str, str]  # image file, label, split
Text = tuple[str, str, str]  # source, text, label


class Mismatch(RuntimeError):
    """The raw files are not those that the catalogue describes."""


def copy(entry: Data, raw: Path, place: Path) -> None:
    """A file as it is."""
    for name, sha256 in entry.files.items():
        _require(files.sha256_file(raw / name), sha256, name)
        with files.atomic(place) as temporary:
            shutil.copyfile(raw / name, temporary)


def idx(entry: Data, raw: Path, place: Path) -> None:
    """Fashion-MNIST's four .idx.gz files → one Parquet of PNG images with labels and splits."""
    with files.atomic(place) as temporary, progress(f"reading {place.stem}", 70_000) as advance:
        write_images(temporary, _counted(_idx_rows(entry, raw), advance))


def stamps(entry: Data, raw: Path, place: Path) -> None:
    """Tux Paint's stamps → a folder of class folders."""
    chosen = [
        (label, path)
        for label, folder in entry.folders.items()
        for path in sorted((raw / folder).rglob("*.png"))
        if not any(part in path.relative_to(raw).as_posix() for part in entry.leave_out)
    ]
    listing = sorted(f"{label}/{path.name} {files.sha256_file(path)}" for label, path in chosen)
    _require(hashlib.sha256("\n".join(listing).encode()).hexdigest(), entry.sha256, str(raw))
    with files.atomic_folder(place) as made:
        for label, path in chosen:
            (made / label).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, made / label / path.name)


def snippets(entry: Data, raw: Path, place: Path) -> None:
    """Lines of number, score and text → one Parquet of the texts whose score is clear."""
    ((name, sha256),) = entry.files.items()
    _require(files.sha256_file(raw / name), sha256, name)
    rows: list[Text] = []
    for line in (raw / name).read_text(encoding="utf-8").splitlines():
        number, score, text = line.split("\t")
        if abs(float(score)) >= CLEAR:
            rows.append((f"snippet {number}", text, "positive" if float(score) > 0 else "negative"))
    with files.atomic(place) as temporary:
        _write_texts(temporary, rows)


def mails(entry: Data, raw: Path, place: Path) -> None:
    """Folders of mails, a file each → one Parquet of what a reader sees of them."""
    chosen = [
        (label, path)
        for label, pattern in entry.folders.items()
        for path in sorted(raw.glob(f"{pattern}/*.txt"))
    ]
    listing = sorted(f"{label}/{path.name} {files.sha256_file(path)}" for label, path in chosen)
    _require(
        hashlib.sha256("\n".join(listing).encode()).hexdigest(),
        entry.sha256,
        f"{len(chosen)} mails",
    )
    rows: list[Text] = []
    with files.atomic(place) as temporary:
        with progress(f"reading {place.stem}", len(chosen)) as advance:
            for label, path in chosen:
                source = path.relative_to(raw).with_suffix("").as_posix()
                rows.append((source, _seen(path.read_bytes()), label))
                advance()
        _write_texts(temporary, rows)


def write_images(path: Path, rows: Iterable[Row]) -> None:
    """Write (image file, label, split) rows to a Parquet file, the same bytes for the same rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema([("image", pa.binary()), ("label", pa.string()), ("split", pa.string())])
    rows = iter(rows)
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=["label"]) as writer:
        while group := list(islice(rows, ROWS)):
            columns = [pa.array(column) for column in zip(*group, strict=True)]
            writer.write_table(pa.table(columns, schema=schema))


def _idx_rows(entry: Data, raw: Path) -> Iterator[Row]:
    from PIL import Image

    for prefix, split in (("train", "train"), ("t10k", "test")):
        labels = b"".join(_idx_items(entry, raw, f"{prefix}-labels-idx1-ubyte.gz", "labels", 1))
        pixels = _idx_items(entry, raw, f"{prefix}-images-idx3-ubyte.gz", "images", 28 * 28)
        for label, image in zip(labels, pixels, strict=True):
            stream = io.BytesIO()
            Image.frombytes("L", (28, 28), image).save(stream, "PNG")
            yield stream.getvalue(), entry.classes[label], split


def _idx_items(entry: Data, raw: Path, name: str, kind: str, size: int) -> Iterator[bytes]:
    """The items of an .idx.gz file, whose contents are checked once all are read."""
    digest = hashlib.sha256()
    try:
        with gzip.open(raw / name) as file:
            digest.update(file.read(IDX_HEADER[kind]))
            while item := file.read(size):
                digest.update(item)
                yield item
    except EOFError:
        raise Mismatch(f"{name} is truncated") from None
    _require(digest.hexdigest(), entry.files[name], name)


def _counted(rows: Iterable[Row], advance: Advance) -> Iterator[Row]:
    for row in rows:
        advance()
        yield row


def _write_texts(path: Path, rows: list[Text]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = zip(*rows, strict=True)
    table = pa.table(dict(zip(("source", "text", "label"), map(list, columns), strict=True)))
    pq.write_table(table, path, compression="zstd")


def _seen(content: bytes) -> str:
    """The subject of a mail and its text.

    All other headers are left out: receivers, routes, dates and a filter's marks tell the label by
    how the mails were gathered, not by what they say. Likewise only the words of HTML are kept, as
    most of its markup is in spam. What mailing lists add to a subject or below a text stays.
    """
    mail = email.message_from_bytes(content, policy=email.policy.default)
    text = next(filter(None, (_part(mail, kind) for kind in ("plain", "html"))), "")
    whole = f"{mail['subject'] or ''}\n\n{text}".strip()
    return whole.encode("utf-8", "replace").decode("utf-8")  # without lone surrogates


def _part(mail: EmailMessage, kind: str) -> str:
    """The text of a mail in one of its forms, `plain` or `html`, or nothing."""
    part = mail.get_body((kind,))
    if part is None:
        return ""
    try:
        text = str(part.get_content())
    except LookupError:  # an invented encoding
        text = cast(bytes, part.get_payload(decode=True)).decode("latin-1")
    if kind == "html":
        page = _Words()
        page.feed(text)
        page.close()
        lines = (" ".join(line.split()) for line in "".join(page.words).splitlines())
        text = "\n".join(filter(None, lines))
    return text.strip()


class _Words(HTMLParser):
    """The words of an HTML page."""

    BREAKS = ("br", "div", "h1", "h2", "h3", "h4", "hr", "li", "p", "td", "th", "title", "tr")
    UNSEEN = ("script", "style")

    def __init__(self) -> None:
        super().__init__()
        self.words: list[str] = []
        self.unseen = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.unseen = tag in self.UNSEEN
        if tag in self.BREAKS:
            self.words.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self.unseen = False

    def handle_data(self, data: str) -> None:
        if not self.unseen:
            self.words.append(data)


def _require(sha256: str, expected: str, what: str) -> None:
    if sha256 != expected:
        raise Mismatch(f"{what} has sha256 {sha256[:12]}…, not the catalogue's {expected[:12]}…")
