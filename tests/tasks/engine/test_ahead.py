"""One thing is made while the one before is used."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from tasks.engine.ahead import ahead


def test_all_come_in_order() -> None:
    assert list(ahead(lambda x: x * x, range(5))) == [0, 1, 4, 9, 16]
    assert list(ahead(lambda x: x, [])) == []


def test_the_next_is_made_while_one_is_used_but_no_more() -> None:
    begun: list[Future[int]] = [Future() for _ in range(5)]

    def make(item: int) -> int:
        begun[item].set_result(threading.get_ident())
        return item

    things = ahead(make, range(4))
    assert next(things) == 0
    assert begun[1].result(timeout=10) != threading.get_ident()  # though nobody asked for it
    assert not begun[2].done()
    assert list(things) == [1, 2, 3]


def test_what_fails_there_fails_here() -> None:
    things = ahead(lambda x: 1 // x, [2, 1, 0])
    assert [next(things), next(things)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(things)
