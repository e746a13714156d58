"""Three members' consensus in one process, on real storages: what was acknowledged outlives a power cut of all three.

The power cut is a copy of each data directory, with every write-ahead log cut to what was durable at its last completed
sync. A storage that acknowledges early is planted, and must be caught.
"""

from __future__ import annotations

import asyncio
import random
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import pytest
from fake_stores import until

from drillyard.emulator.logs import Log
from drillyard.emulator.pd import consensus
from drillyard.emulator.pd.consensus import MAX_COMMAND_BYTES, SNAPSHOT_EVERY, Consensus, Seat, Undetermined
from drillyard.emulator.peers import Transport
from drillyard.emulator.raft.types import NotLeader, Options, ProposalDropped
from drillyard.emulator.storage import Storage, StorageOptions
from drillyard.wire import drillpb

MEMBERS = (1, 2, 3)
SMALL = StorageOptions(memtable_bytes=1 << 20, reserve_bytes=0, low_water_bytes=0)


class Network:
    """Carries everything at once, except to and from members that are cut off."""

    def __init__(self) -> None:
        self.nodes: dict[int, Consensus] = {}
        self.cut_off: set[int] = set()

    def ends_for(self, member: int) -> Transport:
        return cast(Transport, Ends(self, member))

    def reachable(self, sender: int, target: int) -> Consensus | None:
        return None if {sender, target} & self.cut_off else self.nodes.get(target)


class Ends:
    """One member's end of the network, in place of a Transport."""

    def __init__(self, network: Network, member: int) -> None:
        self._network = network
        self._member = member

    def send(self, target: int, envelope: drillpb.Envelope) -> None:
        asyncio.get_running_loop().call_soon(self._arrive, target, envelope)

    def _arrive(self, target: int, envelope: drillpb.Envelope) -> None:
        node = self._network.reachable(self._member, target)
        if node is not None:
            node.deliver(envelope)

    async def send_snapshot(self, target: int, envelope: drillpb.Envelope, chunks: AsyncIterator[bytes]) -> None:
        node = self._network.reachable(self._member, target)
        if node is None:
            raise ConnectionError("cut off")
        await node.deliver_snapshot(envelope, chunks)


class Group:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.network = Network()
        self.durable: dict[int, Mapping[str, int]] = {}
        self.storages: dict[int, Storage] = {}
        self.synced: set[int] = set()

    @property
    def nodes(self) -> dict[int, Consensus]:
        return self.network.nodes

    def start(self) -> None:
        for member in MEMBERS:

            def record(lengths: Mapping[str, int], member: int = member) -> None:
                self.durable[member] = lengths

            options = StorageOptions(SMALL.memtable_bytes, SMALL.cache_bytes, 0, 0, record)
            storage = self.storages[member] = Storage.open(self.home / str(member), "pd", options)
            seat = Seat(member, 9, MEMBERS, member == 1, 0.02, Options(election_ticks=10, heartbeat_ticks=2))
            node = self.nodes[member] = Consensus(seat, storage, random.Random(member).randrange, Log(2, "fatal"))
            node.start(self.network.ends_for(member))

    def stop(self) -> None:
        for node in self.nodes.values():
            node.close()
        for storage in self.storages.values():
            storage.close()

    async def leader(self) -> Consensus:
        def find() -> Consensus | None:
            leading = [node for member, node in self.nodes.items() if node.leads and member not in self.network.cut_off]
            return max(leading, key=lambda node: node.term, default=None)

        found: Consensus = await until(find, "a leader")
        return found

    def lose_power(self, where: Path) -> None:
        """What the disks hold now, without what was not synced."""
        for member in MEMBERS:
            target = where / str(member)
            shutil.copytree(self.home / str(member), target)
            for log in (target / "db").glob("*.log"):
                length = self.durable.get(member, {}).get(log.name, 0)
                with log.open("r+b") as file:
                    file.truncate(length)


def safe_point(value: int) -> drillpb.PdCommand:
    return drillpb.PdCommand(safe_point=value)


async def write_until_power_is_lost(group: Group, where: Path, moment: int) -> int:
    """The highest value that was acknowledged before the power went."""
    leader = await group.leader()
    acknowledged = 0
    pending = {leader.submit(safe_point(value)) for value in range(1, 4)}
    value = 4
    while acknowledged < moment:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        for answer in done:
            acknowledged = max(acknowledged, answer.result().value)
            pending.add(leader.submit(safe_point(value)))
            value += 1
    group.lose_power(where)
    for answer in pending:
        if answer.done() and answer.exception() is None:
            acknowledged = max(acknowledged, answer.result().value)
    return acknowledged


async def what_is_left(home: Path) -> int:
    group = Group(home)
    group.start()
    try:
        leader = await group.leader()
        await leader.confirm()
        return leader.cluster.safe_point
    finally:
        group.stop()


async def lost_by_a_power_cut(tmp_path: Path, moment: int) -> int:
    """How many acknowledged steps are missing afterwards."""
    group = Group(tmp_path / f"before-{moment}")
    group.start()
    try:
        acknowledged = await write_until_power_is_lost(group, tmp_path / f"after-{moment}", moment)
    finally:
        group.stop()
    return max(0, acknowledged - await what_is_left(tmp_path / f"after-{moment}"))


@pytest.mark.parametrize("moment", [1, 37, SNAPSHOT_EVERY + 50])
def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path, moment: int) -> None:
    assert asyncio.run(lost_by_a_power_cut(tmp_path, moment)) == 0


@contextmanager
def acknowledging_early(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def at_once(self: Storage, call: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(call)

    with monkeypatch.context() as patch:
        patch.setattr(Storage, "when_durable", at_once)
        yield


def test_acknowledging_before_the_disk_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with acknowledging_early(monkeypatch):
        assert asyncio.run(lost_by_a_power_cut(tmp_path, 37)) > 0


def run(work: Callable[[Group], object], tmp_path: Path) -> None:
    async def scenario() -> None:
        group = Group(tmp_path)
        group.start()
        try:
            await work(group)  # type: ignore[misc]
        finally:
            group.stop()

    asyncio.run(scenario())


def test_a_command_whose_leader_was_cut_off_is_not_acknowledged(tmp_path: Path) -> None:
    async def work(group: Group) -> None:
        old = await group.leader()
        assert (await old.submit(safe_point(5))).value == 5
        group.network.cut_off = {member for member, node in group.nodes.items() if node is old}
        lost = old.submit(safe_point(50))
        reading = asyncio.create_task(old.confirm())
        with pytest.raises((Undetermined, NotLeader)):
            await asyncio.wait_for(lost, 20)
        with pytest.raises(NotLeader):
            await asyncio.wait_for(reading, 20)
        new = await group.leader()
        assert new is not old
        assert (await new.submit(safe_point(6))).value == 6
        group.network.cut_off.clear()
        await until(lambda: old.cluster.safe_point == 6, "the old leader has come round")

    run(work, tmp_path)


def test_only_the_leader_takes_commands_and_confirms(tmp_path: Path) -> None:
    async def work(group: Group) -> None:
        leader = await group.leader()
        await leader.confirm()
        follower = next(node for node in group.nodes.values() if node is not leader)
        with pytest.raises(ProposalDropped):
            await follower.submit(safe_point(1))
        with pytest.raises(NotLeader):
            await follower.confirm()

    run(work, tmp_path)


def test_a_command_that_could_not_be_carried_to_the_others_is_not_taken(tmp_path: Path) -> None:
    """In the log it would never be agreed on, nor anything after it."""

    async def work(group: Group) -> None:
        leader = await group.leader()
        large = drillpb.PdCommand(setting=drillpb.PdSetting(key="k", value="v" * MAX_COMMAND_BYTES))
        with pytest.raises(ProposalDropped, match="too large"):
            await leader.submit(large)
        assert (await leader.submit(safe_point(7))).value == 7

    run(work, tmp_path)


def test_a_member_that_missed_more_than_the_log_keeps_gets_the_state(tmp_path: Path) -> None:
    async def work(group: Group) -> None:
        leader = await group.leader()
        away = next(member for member, node in group.nodes.items() if node is not leader)
        group.network.cut_off = {away}
        for first in range(1, 2 * SNAPSHOT_EVERY, 100):
            await asyncio.gather(*(leader.submit(safe_point(first + place)) for place in range(100)))
        group.network.cut_off.clear()
        member = group.nodes[away]
        await until(lambda: member.cluster.safe_point >= 2 * SNAPSHOT_EVERY, "the state")
        assert (await leader.submit(safe_point(10_000))).value == 10_000
        await until(lambda: member.cluster.safe_point == 10_000, "the log goes on")

    run(work, tmp_path)


def test_a_leader_that_resigns_is_followed_at_once(tmp_path: Path) -> None:
    async def work(group: Group) -> None:
        leader = await group.leader()
        await leader.submit(safe_point(1))
        await leader.resign()
        assert not leader.leads
        assert await group.leader() is not leader

    run(work, tmp_path)


def test_a_leader_that_resigns_waits_for_no_heir_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "RESIGN_S", 60.0)

    async def work(group: Group) -> None:
        leader = await group.leader()
        await leader.submit(safe_point(1))
        others = [member for member, node in group.nodes.items() if node is not leader]
        await until(lambda: leader.active() >= set(others), "both others are heard")
        heir, third = max(others), min(others)
        group.network.cut_off = {heir}
        asyncio.get_running_loop().call_later(0.01, leader.report_unreachable, heir)
        async with asyncio.timeout(10):
            await leader.resign()
        assert await group.leader() is group.nodes[third]

    run(work, tmp_path)


def test_the_last_of_a_group_resigns_to_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consensus, "RESIGN_S", 60.0)

    async def work(group: Group) -> None:
        leader = await group.leader()
        others = [member for member, node in group.nodes.items() if node is not leader]
        await until(lambda: leader.active() >= set(others), "both others are heard")
        group.network.cut_off = set(others)
        for number, other in enumerate(others):  # one before it is asked to take the lead, one after
            asyncio.get_running_loop().call_later(0.01 * number, leader.report_unreachable, other)
        async with asyncio.timeout(10):
            await leader.resign()
        assert leader.leads

    run(work, tmp_path)
