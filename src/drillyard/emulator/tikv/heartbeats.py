"""What a store tells PD, and the steps that PD answers with.

Rules: a region is reported by its leader, at once when anything changes that PD decides by, and otherwise each period;
while it sleeps, once a minute.
The stream belongs to PD's leader: when that changes, the stream moves and every region is reported anew. The store is
reported each period on a call of its own. A step that the store declines is logged once, not at each repetition.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Set

from msgspec import Struct

from drillyard.emulator.logs import Log
from drillyard.emulator.store.commands import pack_peer
from drillyard.emulator.store.region import scattered
from drillyard.emulator.store.replica import RegionReport
from drillyard.emulator.store.store import Split, Step
from drillyard.emulator.tikv.engine import Engine
from drillyard.emulator.tikv.pd import RETRY_S, Endpoint, PdClient, error_of
from drillyard.emulator.tikv.records import pack_region
from drillyard.emulator.tikv.splitting import Splitting
from drillyard.emulator.tikv.steps import kind_of, step_of
from drillyard.wire import pdpb, services
from drillyard.wire.rpc import ClientStream, RpcError

RegionStream = ClientStream[pdpb.RegionHeartbeatRequest, pdpb.RegionHeartbeatResponse]


SLEEPERS_S = 60.0  # the period of regions that sleep, unless that of the others is longer
SLEEPERS_STEP_S = 2.0  # few at a time would wake both ends for each of them
SHORTEST_STEP_S = 0.5
REPORTS_AT_ONCE = 10
MOST_STEPS = 60  # of a period


class Periods(Struct, frozen=True):
    store_s: float = 10.0
    region_s: float = 60.0


class Traffic(Struct):
    """What the store read and wrote since it was last reported."""

    bytes_read: int = 0
    keys_read: int = 0
    bytes_written: int = 0
    keys_written: int = 0

    def take(self) -> Traffic:
        taken = Traffic(self.bytes_read, self.keys_read, self.bytes_written, self.keys_written)
        self.bytes_read = self.keys_read = self.bytes_written = self.keys_written = 0
        return taken


class Heartbeats:
    def __init__(self, pd: PdClient, engine: Engine, splitting: Splitting, periods: Periods, log: Log) -> None:
        self.traffic = Traffic()
        self.on_step: Callable[[str], None] = lambda kind: None
        self._pd = pd
        self._engine = engine
        self.periods = periods
        self._log = log
        self._due: set[int] = set()
        self._something_due = asyncio.Event()
        self._reported_at: dict[int, int] = {}
        self._declined: dict[int, tuple[Step, str]] = {}
        self._started_at = int(time.time())
        self._splitting = splitting
        engine.on_reports_due = self.report_soon

    # ---- the store ----

    async def report_store_forever(self) -> None:
        since = int(time.time())
        while True:
            now = int(time.time())
            answer = await self._pd.call(services.PD.StoreHeartbeat, self._store_request(since, now))
            error = error_of(answer)
            if error is not None:
                self._log.warn("store heartbeat failed", err=error.message)
            since = now
            await asyncio.sleep(self.periods.store_s)

    def _store_request(self, since: int, now: int) -> pdpb.StoreHeartbeatRequest:
        storage, traffic = self._engine.storage, self.traffic.take()
        sending, receiving, installing = self._engine.snapshot_counts()
        stats = pdpb.StoreStats(
            store_id=self._engine.identity.store_id,
            capacity=storage.capacity,
            available=storage.available,
            used_size=storage.used_bytes,
            region_count=sum(replica.region.is_initialized for replica in self._engine.store.replicas.values()),
            sending_snap_count=sending,
            receiving_snap_count=receiving,
            applying_snap_count=installing,
            start_time=self._started_at,
            bytes_written=traffic.bytes_written,
            keys_written=traffic.keys_written,
            bytes_read=traffic.bytes_read,
            keys_read=traffic.keys_read,
            interval=pdpb.TimeInterval(start_timestamp=since, end_timestamp=now),
            slow_score=1,
        )
        return pdpb.StoreHeartbeatRequest(header=pdpb.RequestHeader(), stats=stats)

    # ---- regions ----

    def report_soon(self, regions: Set[int]) -> None:
        if regions:
            self._due |= regions
            self._something_due.set()

    async def report_regions_forever(self) -> None:
        while True:
            await self._pd.connect()
            leader = self._pd.leader
            if leader is None:
                continue
            self._pd.leader_changed.clear()
            with contextlib.suppress(RpcError):
                await self._serve_stream(leader)
            await asyncio.sleep(RETRY_S)

    async def _serve_stream(self, leader: Endpoint) -> None:
        """Returns when PD has another leader, or when the stream ends."""
        self.report_soon(self._led())
        async with self._pd.channel(leader).open(services.PD.RegionHeartbeat) as stream:
            parts = [
                asyncio.create_task(self._send_reports(stream)),
                asyncio.create_task(self._report_the_awake()),
                asyncio.create_task(self._report_sleepers()),
                asyncio.create_task(self._take_steps(stream)),
                asyncio.create_task(self._pd.leader_changed.wait()),
            ]
            try:
                await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
                if not parts[-1].done():
                    self._pd.doubt(leader)
            finally:
                for part in parts:
                    part.cancel()
                outcomes = await asyncio.gather(*parts, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, RpcError):
                self._log.warn("region heartbeat stream ended, binding again", pd=leader, err=outcome)
            elif isinstance(outcome, Exception):
                raise outcome

    def _led(self) -> set[int]:
        return {region_id for region_id, replica in self._engine.store.replicas.items() if replica.is_leader}

    async def _report_the_awake(self) -> None:
        """Each region once a period, not all at the same moment."""
        moment = 0
        while True:
            step_s = max(SHORTEST_STEP_S, self.periods.region_s / MOST_STEPS)
            await asyncio.sleep(step_s)
            moment += 1
            steps = max(1, round(self.periods.region_s / step_s))
            led = self._led() if self._engine.store.awake else set()
            self.report_soon(
                {each for each in led & self._engine.store.awake if (scattered(each) - moment) % steps == 0}
            )

    async def _report_sleepers(self) -> None:
        """One that sleeps has nothing new to tell for long. They take turns in the order in which they came here."""
        moment = 0
        while True:
            await asyncio.sleep(SLEEPERS_STEP_S)
            moment += 1
            steps = round(max(SLEEPERS_S, self.periods.region_s) / SLEEPERS_STEP_S)
            turn = list(self._engine.store.replicas)[moment % steps :: steps]
            self.report_soon(set(turn) - self._engine.store.awake)

    async def _send_reports(self, stream: RegionStream) -> None:
        while True:
            await self._something_due.wait()
            self._something_due.clear()
            due, self._due = self._due, set()
            told = 0
            for region_id in due:
                report = self._engine.store.report(region_id)
                if report is not None:
                    await stream.send(self._region_request(report))
                    told += 1
                    if told % REPORTS_AT_ONCE == 0:
                        await asyncio.sleep(0)  # many may be due at once: others want the loop, too

    def _region_request(self, report: RegionReport) -> pdpb.RegionHeartbeatRequest:
        now = int(time.time())
        since = self._reported_at.get(report.region.id, now)
        self._reported_at[report.region.id] = now
        down = [pdpb.PeerStats(peer=pack_peer(peer), down_seconds=seconds) for peer, seconds in report.down]
        return pdpb.RegionHeartbeatRequest(
            header=pdpb.RequestHeader(cluster_id=self._pd.cluster_id),
            region=pack_region(report.region),
            leader=pack_peer(report.leader),
            term=report.term,
            down_peers=down,
            pending_peers=[pack_peer(peer) for peer in report.pending],
            bytes_written=report.written_bytes,
            keys_written=report.written_keys,
            approximate_size=report.size,
            approximate_keys=report.keys,
            interval=pdpb.TimeInterval(start_timestamp=since, end_timestamp=now),
        )

    # ---- steps ----

    async def _take_steps(self, stream: RegionStream) -> None:
        async for answer in stream:
            error = error_of(answer)
            if error is not None:
                self._log.warn("region heartbeat refused", region_id=answer.region_id, err=error.message)
            step = step_of(answer)
            if step is not None:
                self._take(step)

    def _take(self, step: Step) -> None:
        self.on_step(kind_of(step))
        reason = self._engine.obey(step)
        if not reason and isinstance(step.action, Split):
            self._splitting.begin(step)
            return
        if not reason:
            self._declined.pop(step.region_id, None)
            self._log.info("carrying out a step of PD", region_id=step.region_id, step=step.action)
            return
        if self._declined.get(step.region_id) != (step, reason):
            self._declined[step.region_id] = (step, reason)
            self._log.info("declining a step of PD", region_id=step.region_id, step=step.action, reason=reason)
