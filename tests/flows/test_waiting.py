"""The one wait helper: what it brings, what wakes it, what it leaves behind; and work that is not left half done."""

from __future__ import annotations

import asyncio

import pytest

from drillyard.waiting import Clock, Deadline, Wake, to_its_end, until

FOREVER_S = 3600.0


class HandClock(Clock):
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = 0.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def test_it_looks_until_something_is_there() -> None:
    looks: list[int] = []

    async def look() -> str | None:
        looks.append(len(looks))
        return "found" if len(looks) == 3 else None

    found = asyncio.run(until(look, Deadline.after(Clock(), FOREVER_S), poll_s=0.0))
    assert found == "found"
    assert looks == [0, 1, 2]


def test_an_event_cuts_a_look_short_and_starts_the_next() -> None:
    async def run() -> tuple[str | None, bool]:
        wake, was_cut = Wake(), False
        looks = 0

        async def look() -> str | None:
            nonlocal looks, was_cut
            looks += 1
            if looks == 2:
                return "second"
            asyncio.get_running_loop().call_soon(wake.rouse)
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                was_cut = True
                raise
            return None

        return await until(look, Deadline.after(Clock(), FOREVER_S), wake=wake, poll_s=FOREVER_S), was_cut

    assert asyncio.run(run()) == ("second", True)


def test_an_event_between_two_looks_wakes_the_wait() -> None:
    async def run() -> str | None:
        wake, answers = Wake(), [None, "found"]

        async def look() -> str | None:
            asyncio.get_running_loop().call_later(0.01, wake.rouse)
            return answers.pop(0)

        return await until(look, Deadline.after(Clock(), FOREVER_S), wake=wake, poll_s=FOREVER_S)

    assert asyncio.run(run()) == "found"


def test_a_deadline_ends_a_look_that_hangs() -> None:
    async def look() -> str | None:
        await asyncio.Event().wait()
        return None

    assert asyncio.run(until(look, Deadline.after(Clock(), 0.01))) is None


def test_a_deadline_that_passed_during_the_last_look_is_noticed_after_it() -> None:
    clock = HandClock()

    async def look() -> str | None:
        clock.time += 10.0
        return None

    assert asyncio.run(until(look, Deadline.after(clock, 5.0))) is None
    assert clock.time == 10.0


def test_a_look_that_raises_ends_the_wait() -> None:
    async def look() -> str | None:
        raise ValueError("broken look")

    with pytest.raises(ValueError, match="broken look"):
        asyncio.run(until(look, Deadline.after(Clock(), FOREVER_S)))


def test_a_cancelled_wait_leaves_no_task_behind() -> None:
    async def run() -> int:
        async def look() -> str | None:
            await asyncio.Event().wait()
            return None

        waiting = asyncio.create_task(until(look, Deadline.after(Clock(), FOREVER_S)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return len(asyncio.all_tasks())

    assert asyncio.run(run()) == 1


def test_events_in_quick_succession_do_not_keep_a_wait_from_seeing() -> None:
    async def run() -> str | None:
        wake = Wake()

        async def look() -> str | None:
            for _ in range(5):  # something happens at every moment of every look
                wake.rouse()
                await asyncio.sleep(0)
            return "seen"

        return await until(look, Deadline.after(Clock(), FOREVER_S), wake=wake, poll_s=FOREVER_S)

    assert asyncio.run(run()) == "seen"


# --- to its end ------------------------------------------------------------------------------------------------------


def test_work_to_its_end_brings_what_it_brings() -> None:
    async def work() -> str:
        await asyncio.sleep(0)
        return "done"

    async def fail() -> None:
        raise ValueError("no")

    assert asyncio.run(to_its_end(work())) == "done"
    with pytest.raises(ValueError, match="no"):
        asyncio.run(to_its_end(fail()))


@pytest.mark.parametrize("fails", [False, True], ids=["", "though it fails"])
def test_work_is_done_to_its_end_before_its_caller_is_cancelled(fails: bool) -> None:
    async def run() -> list[str]:
        may_go_on, steps = asyncio.Event(), ["begun"]

        async def work() -> None:
            await may_go_on.wait()
            steps.append("done")
            if fails:
                raise ValueError("no")

        async def call() -> None:
            try:
                await to_its_end(work())
            finally:
                steps.append("left")

        calling = asyncio.create_task(call())
        await asyncio.sleep(0)
        calling.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
        assert steps == ["begun"], "the caller waits"
        may_go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await calling
        return steps

    assert asyncio.run(run()) == ["begun", "done", "left"]
