"""Who is woken when, and which wait would close a circle."""

from __future__ import annotations

import random

import pytest

from drillyard.emulator.store.lock_waiting import FORGET_AFTER_MS, Circle, Wait, Waiter, WaitForGraph, WaitQueue, Woken
from drillyard.emulator.store.percolator import Released


def test_the_oldest_is_woken_first_and_only_those_who_wait_for_this_lock() -> None:
    queue = WaitQueue()
    young, old, other_lock = Waiter(1, b"k", 30, 10), Waiter(2, b"k", 20, 10), Waiter(3, b"k", 15, 11)
    elsewhere = Waiter(4, b"l", 5, 10)
    for waiter in (young, old, other_lock, elsewhere):
        queue.add(waiter)
    assert queue.release(Released(b"k", 10, 40)) == Woken(old, (young,))
    assert queue.release(Released(b"k", 10, 40)) == Woken()
    assert queue.count == 2
    queue.leave(other_lock)
    queue.leave(other_lock)
    queue.leave(old)
    assert queue.count == 1
    assert queue.release(Released(b"k", 11, 0)) == Woken()


@pytest.mark.parametrize(
    ("waits", "last", "circle"),
    [
        ([], (1, 2), None),
        ([(2, 1)], (1, 2), [(2, 1)]),
        ([(2, 3), (3, 1)], (1, 2), [(2, 3), (3, 1)]),
        ([(2, 3), (3, 4)], (1, 2), None),
        ([(1, 2)], (1, 2), None),  # it is only said again
        ([(2, 3), (2, 4), (4, 1), (3, 5), (5, 1)], (1, 2), [(2, 4), (4, 1)]),  # the shortest
    ],
)
def test_circles(waits: list[tuple[int, int]], last: tuple[int, int], circle: list[tuple[int, int]] | None) -> None:
    graph = WaitForGraph()
    for txn, holder in waits:
        assert graph.detect(Wait(txn, holder, b"%d" % holder), 0) is None
    expected = None if circle is None else Circle(tuple(Wait(a, b, b"%d" % b) for a, b in circle))
    assert graph.detect(Wait(*last, b"last"), 0) == expected


def test_waits_end_by_being_told_or_by_not_being_repeated() -> None:
    graph = WaitForGraph()
    graph.detect(Wait(2, 1, b"k"), 0)
    graph.leave(Wait(2, 1, b"k"))
    assert graph.detect(Wait(1, 2, b"l"), 0) is None
    assert graph.detect(Wait(2, 1, b"k"), FORGET_AFTER_MS) is not None
    assert graph.detect(Wait(2, 1, b"k"), FORGET_AFTER_MS + 1) is None
    graph.forget(FORGET_AFTER_MS + 1)
    assert len(graph) == 1
    graph.forget(3 * FORGET_AFTER_MS)
    assert len(graph) == 0


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_let_in_the_graph_has_no_circle(seed: int) -> None:
    chance, graph = random.Random(seed), WaitForGraph()
    edges: set[tuple[int, int]] = set()
    for _ in range(60):
        txn, holder = chance.sample(range(8), 2)
        reach = _reach(edges, holder)
        refused = graph.detect(Wait(txn, holder, b""), 0)
        assert (refused is not None) == (txn in reach)
        if refused is None:
            edges.add((txn, holder))
        elif chance.random() < 0.5 and edges:
            gone = chance.choice(sorted(edges))
            edges.discard(gone)
            graph.leave(Wait(*gone, b""))


def _reach(edges: set[tuple[int, int]], start: int) -> set[int]:
    reached, frontier = {start}, [start]
    while frontier:
        here = frontier.pop()
        for txn, holder in edges:
            if txn == here and holder not in reached:
                reached.add(holder)
                frontier.append(holder)
    return reached
