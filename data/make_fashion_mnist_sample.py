"""Make `fashion_mnist_sample.parquet`, the embedded default, out of the full Fashion-MNIST.

300 training and 300 official test images of each class: those whose rows have the smallest
sha256 with a fixed salt. The same bytes come out with the same versions of Pillow and pyarrow.

    python data/make_fashion_mnist_sample.py
"""

from __future__ import annotations

import hashlib
import tempfile
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq

from tasks import catalogue, files, raw_data

EACH = 300
SALT = "thawline"
PLACE = Path(__file__).with_name("fashion_mnist_sample.parquet")


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        table = pq.read_table(catalogue.fetch_data("fashion_mnist", Path(scratch)))
    rows = list(zip(*(table.column(i).to_pylist() for i in range(3)), strict=True))
    strata = defaultdict(list)
    for number, (_, label, split) in enumerate(rows):
        strata[split, label].append(number)
    chosen = sorted(n for stratum in strata.values() for n in sorted(stratum, key=_rank)[:EACH])
    with files.atomic(PLACE) as temporary:
        raw_data.write_images(temporary, (rows[number] for number in chosen))
    print(f"{PLACE.name}: {len(chosen)} images, sha256 {files.sha256_file(PLACE)}")


def _rank(number: int) -> str:
    return hashlib.sha256(f"{SALT}:{number}".encode()).hexdigest()


if __name__ == "__main__":
    main()
