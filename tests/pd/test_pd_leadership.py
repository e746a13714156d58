"""One lead, alone: ids and timestamps only from what was agreed on, and never after the lead is gone."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from drillyard.emulator.logs import Log
from drillyard.emulator.pd.cluster import Cluster
from drillyard.emulator.pd.config import Options, Settings
from drillyard.emulator.pd.consensus import Consensus, Undetermined
from drillyard.emulator.pd.coordinator import Candidate
from drillyard.emulator.pd.leadership import OUTLET_RESPONSES, Clock, Leadership, Means, Outlet, begin
from drillyard.emulator.pd.outcomes import Outcome
from drillyard.emulator.raft.types import NotLeader
from drillyard.wire import drillpb, metapb, pdpb


class Agreement:
    """Stands in for the group: applies at once, or not at all."""

    def __init__(self) -> None:
        self.cluster = Cluster()
        self.term = 1
        self.leader = 1
        self.is_lost = False
        self.commands: list[str] = []

    def submit(self, command: drillpb.PdCommand) -> asyncio.Future[Outcome]:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Outcome] = loop.create_future()
        self.commands.append(command.WhichOneof("kind") or "")
        if self.is_lost:
            answer.set_exception(Undetermined("lost"))
        else:
            loop.call_soon(answer.set_result, self.cluster.apply(command.SerializeToString()))
        return answer

    async def confirm(self) -> None:
        await asyncio.sleep(0)
        if self.is_lost:
            raise NotLeader(2)


def with_lead(work: Callable[[Leadership, Agreement], Awaitable[None]], clock: Clock | None = None) -> None:
    options = Options("pd0", "", "", "", "", "", "")

    async def scenario() -> None:
        agreement = Agreement()
        consensus = cast(Consensus, agreement)
        now = clock or Clock(lambda: 1_000_000 * 10**6)
        start = await begin(consensus, now, Candidate(1, 7))
        lead = Leadership(consensus, Means(Settings(options, dict), now, Log(2, "fatal")), start)
        try:
            await work(lead, agreement)
        finally:
            lead.end()

    asyncio.run(scenario())


def test_ids_start_at_one_and_come_in_windows() -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        assert await lead.ids(3) == [1, 2, 3]
        rest = await lead.ids(2500)
        assert rest == list(range(4, 2504))
        assert agreement.cluster.ids_end > 2504
        assert agreement.commands.count("allot_ids") >= 2

    with_lead(work)


def test_a_window_that_does_not_join_leaves_the_rest_of_the_old_one_out() -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        agreement.cluster.ids_end = 5001  # somebody else had a window in between
        ids = await lead.ids(2000)
        assert len(set(ids)) == 2000
        assert not [each for each in ids if 1001 <= each < 5001]

    with_lead(work)


def test_no_id_without_agreement() -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        agreement.is_lost = True
        with pytest.raises(Undetermined):
            await lead.ids(1001)
        assert lead.coordinator.take_id() == 0

    with_lead(work)


def test_no_timestamp_once_the_lead_is_lost() -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        assert await lead.timestamp(1)
        agreement.is_lost = True
        with pytest.raises(NotLeader):
            await lead.timestamp(1)

    with_lead(work)


def test_a_lead_that_ended_grants_nothing_even_if_its_member_leads_again() -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        lead.end()
        with pytest.raises(NotLeader):
            await lead.timestamp(1)
        with pytest.raises(NotLeader):
            await lead.ids(1)

    with_lead(work)


class Turns:
    """Ends a loop that never lets others run: a test could not be stopped in it."""

    def __init__(self) -> None:
        self._left = 100

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any) -> Any:
            self._left -= 1
            assert self._left, "it turns without a pause"
            return call(*given)

        return counting


@pytest.mark.parametrize("ends", [False, True])
def test_a_window_that_is_there_but_not_taken_in_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch, ends: bool) -> None:
    """Whoever asks in just this moment lets the others run; and if the lead ends in it, hears so."""

    async def work(lead: Leadership, agreement: Agreement) -> None:
        await lead.ids(950)  # the next window is on its way
        while lead.coordinator.take_id():
            pass
        monkeypatch.setattr(lead, "carry_out", Turns().counted(lead.carry_out))
        waiting = asyncio.create_task(lead.ids(1))
        if ends:
            lead.end()
            with pytest.raises(NotLeader):
                await waiting
        else:
            assert await waiting == [1001]

    with_lead(work)


def test_a_lead_that_ends_while_it_waits_for_a_window_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        while lead.coordinator.take_id():
            pass
        monkeypatch.setattr(lead, "carry_out", Turns().counted(lead.carry_out))
        waiting = asyncio.create_task(lead.ids(1))
        await asyncio.sleep(0)  # it has asked, and the answer is on its way
        lead.end()
        with pytest.raises(NotLeader):
            await waiting

    with_lead(work)


def test_a_bound_that_is_there_but_not_taken_in_yet_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    now_ms = 1_000_000

    async def work(lead: Leadership, agreement: Agreement) -> None:
        nonlocal now_ms
        now_ms += 60_000
        raise_bound = lead._raise_bound
        monkeypatch.setattr(lead, "_raise_bound", Turns().counted(raise_bound))
        first, second = asyncio.create_task(lead.timestamp(1)), asyncio.create_task(_later(lead.timestamp(1)))
        stamps = [await first, await second]
        assert len({(each.physical, each.logical) for each in stamps}) == 2

    async def _later(asked: Awaitable[Any]) -> Any:
        await asyncio.sleep(0)  # so that it is granted its confirmation as the bound of the first one is settled
        return await asked

    with_lead(work, Clock(lambda: now_ms * 10**6))


def test_the_bound_rises_before_it_is_passed() -> None:
    now_ms = 1_000_000

    async def work(lead: Leadership, agreement: Agreement) -> None:
        nonlocal now_ms
        for _ in range(200):
            stamp = await lead.timestamp(1)
            assert stamp.physical < agreement.cluster.bound_ms
            now_ms += 97
        assert 5 <= agreement.commands.count("raise_bound_ms") <= 20

    with_lead(work, Clock(lambda: now_ms * 10**6))


def test_a_wait_that_is_given_up_does_not_take_the_others_along() -> None:
    """Two requests wait for the same window; the client of one goes away."""

    async def work(lead: Leadership, agreement: Agreement) -> None:
        settle: list[Any] = []

        def submit(command: drillpb.PdCommand) -> asyncio.Future[Outcome]:
            answer: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
            outcome = agreement.cluster.apply(command.SerializeToString())
            settle.append(lambda: answer.set_result(outcome))
            return answer

        await lead.ids(890)
        agreement.submit = submit  # type: ignore[method-assign]
        first = asyncio.create_task(lead.ids(200))
        second = asyncio.create_task(lead.ids(200))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        for call in settle:
            call()
        assert len(await second) == 200

    with_lead(work)


def heartbeat(term: int, conf_ver: int = 1, leader: int = 5) -> pdpb.RegionHeartbeatRequest:
    region = metapb.Region(
        id=4,
        region_epoch=metapb.RegionEpoch(version=1, conf_ver=conf_ver),
        peers=[metapb.Peer(id=5, store_id=1), metapb.Peer(id=6, store_id=2)],
    )
    peer = next(each for each in region.peers if each.id == leader)
    return pdpb.RegionHeartbeatRequest(region=region, leader=peer, term=term)


def bound(lead: Leadership) -> Outlet:
    """The way to both stores."""
    outlet = Outlet()
    for store_id in (1, 2):
        lead.bind(store_id, outlet)
        assert outlet.queue.get_nowait() == pdpb.RegionHeartbeatResponse(header=pdpb.ResponseHeader(cluster_id=7))
    return outlet


def test_what_waits_for_a_store_that_stands_still_is_bounded() -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        agreement.submit(drillpb.PdCommand(bootstrap=drillpb.PdBootstrap(store=metapb.Store(id=1, address="a"))))
        outlet = bound(lead)
        lead.hear_region(heartbeat(7, leader=6))
        for _ in range(OUTLET_RESPONSES + 1):
            lead.hear_region(heartbeat(6))
            for _ in range(5):  # it may go through the log
                await asyncio.sleep(0)
        assert outlet.queue.qsize() == OUTLET_RESPONSES
        assert lead.events.messages["a", 1, "push", "ok"] == OUTLET_RESPONSES
        assert lead.events.messages["a", 1, "push", "err"] == 1

    with_lead(work)


def test_a_deposed_leader_of_a_region_is_not_believed() -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        outlet = bound(lead)
        for request in (heartbeat(6), heartbeat(7, leader=6), heartbeat(6)):
            lead.hear_region(request)
            await asyncio.sleep(0.01)
        meta = agreement.cluster.regions.get(4)
        assert meta is not None
        leader = lead.reports.leader_of(meta)
        assert leader is not None
        assert leader.id == 6
        assert outlet.queue.get_nowait().header.error.message.startswith("region is stale")

    with_lead(work)


def test_a_meta_goes_through_the_log_only_when_it_changed() -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        outlet = bound(lead)
        for request in (heartbeat(6), heartbeat(6), heartbeat(6, conf_ver=2), heartbeat(6, conf_ver=1)):
            lead.hear_region(request)
            await asyncio.sleep(0.01)
        assert agreement.commands.count("put_region") == 2
        assert outlet.queue.qsize() == 1

    with_lead(work)


def test_a_store_is_written_down_now_and_then() -> None:
    now_ns = 10**18

    async def work(lead: Leadership, agreement: Agreement) -> None:
        nonlocal now_ns
        first = drillpb.PdBootstrap(store=metapb.Store(id=1, address="a"), region=heartbeat(1).region)
        agreement.submit(drillpb.PdCommand(bootstrap=first))
        store = agreement.cluster.stores[1]
        assert lead.state_of(store) == "Down"
        for _ in range(21):
            assert lead.hear_store(pdpb.StoreStats(store_id=1)) is None
            now_ns += 10**9
        assert 3 <= agreement.commands.count("store_beat") <= 5
        assert lead.state_of(store) == "Up"
        now_ns += 20 * 10**9
        assert lead.state_of(store) == "Disconnected"

    with_lead(work, Clock(lambda: now_ns))


def test_a_placement_that_breaks_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(lead: Leadership, agreement: Agreement) -> None:
        alarm = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: alarm.set_result(context["exception"]))
        broken = KeyError("gone")

        def break_down(now_ns: int) -> bool:
            raise broken

        monkeypatch.setattr(lead.coordinator, "tick", break_down)
        lead._tick_soon.set()
        async with asyncio.timeout(10):
            assert await alarm is broken

    with_lead(work)
