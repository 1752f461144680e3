"""The folder of kept views: within its budget at all times, whatever a kill has left there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tasks.engine.view_cache import View, ViewCache

ROWS, WIDTH = 64, 250
SIZE = 128 + ROWS * WIDTH * 4  # bytes of a view's file


def write(cache: ViewCache, key: str) -> View:
    def batches() -> Iterator[tuple[np.ndarray, Tensor]]:
        for begin in range(0, ROWS, 16):
            yield np.arange(begin, begin + 16), torch.full((16, WIDTH), float(begin))
            sizes.append(sum(path.stat().st_size for path in cache.folder.glob("*.npy*")))

    sizes: list[int] = []
    made = cache.write(key, ROWS, batches(), lambda: {"seconds": 1.0, "cpu_seconds": 2.0})
    assert max(sizes) <= cache.budget
    return made


def there(cache: ViewCache) -> set[str]:
    return {path.stem for path in cache.folder.glob("*.npy")}


@pytest.fixture
def cache(tmp_path: Path) -> ViewCache:
    return ViewCache(tmp_path, 2 * SIZE)


def test_room_is_made_before_a_view_is_written(cache: ViewCache) -> None:
    for key in ("a", "b"):
        write(cache, key)
    assert cache.find("a") is not None
    write(cache, "c")
    assert there(cache) == {"a", "c"}


def test_what_this_process_has_mapped_stays(cache: ViewCache) -> None:
    used = write(cache, "a")
    part = used.values[3:4].view(-1)
    del used
    cache.find("a")  # a second look, which ends at once, does not end the first
    write(cache, "b")
    write(cache, "c")
    assert there(cache) == {"a", "c"}
    assert part[0] == 0
    del part
    write(cache, "d")
    assert there(cache) == {"c", "d"}


def test_what_a_kill_has_left_counts_and_goes(cache: ViewCache) -> None:
    write(cache, "a")
    half = cache.folder / ".b.npy.x1"
    half.write_bytes(b"0" * (SIZE // 2))
    orphan = cache.folder / "orphan.npy"
    orphan.write_bytes(b"0" * 10)
    mark = cache.folder / "lost.json"
    mark.write_text("{}")
    write(cache, "c")
    assert there(cache) == {"c"} and half.exists()  # another process may be writing it
    cache.close()
    assert there(cache) == {"c"} and not half.exists() and not mark.exists()


def test_what_another_is_writing_stays_when_a_cache_is_closed(cache: ViewCache) -> None:
    def batches() -> Iterator[tuple[np.ndarray, Tensor]]:
        yield np.arange(2), torch.zeros(2, 3)
        ViewCache(cache.folder, cache.budget).close()
        yield np.arange(2, 4), torch.ones(2, 3)

    cache.write("a", 4, batches(), lambda: {"seconds": 1.0, "cpu_seconds": 2.0})
    found = cache.find("a")
    assert found is not None and found.values[:].sum() == 6


def test_a_mark_that_says_nothing_is_no_view(cache: ViewCache) -> None:
    write(cache, "a")
    (cache.folder / "a.json").write_text("{")
    assert cache.find("a") is None
    write(cache, "a")
    assert cache.find("a") is not None


def test_it_is_closed_within_its_budget(cache: ViewCache) -> None:
    kept = write(cache, "a")
    ViewCache(cache.folder, SIZE - 1).close()
    assert not list(cache.folder.iterdir())
    assert kept.values[-1, -1] == 48  # what is mapped can still be read
