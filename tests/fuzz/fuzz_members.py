"""One PD and one store with all that belongs to them, in this process: on a loop in a thread, over real sockets.

They are what `pd-server` and `tikv-server` run, without the signals. What a request breaks is written to their logs, so
`check` looks there, and asks both for service.
"""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import grpc

from drillyard.emulator.logs import open_log
from drillyard.emulator.member import Member
from drillyard.emulator.pd.server import PdServer, options_of
from drillyard.emulator.tikv.server import TikvServer, configure
from drillyard.wire import kvrpcpb, pdpb
from drillyard.wire.services import PD, TIKV
from ports import free_ports

START_S = 30.0
CALL_S = 10.0
KEY = b"serving"
BROKEN = ("a request broke its handler", "a background task broke", "this is a defect", "[FATAL]")


class Members:
    def __init__(self, home: Path) -> None:
        self._home = home
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: list[asyncio.Task[None]] = []
        self._members: list[Member] = []
        self.pd_port, self._peer_port, self.port, self.status_port = free_ports(4)
        self.cluster_id = 0
        self._read: dict[Path, int] = {}  # how far each log was checked
        self.context = kvrpcpb.Context()

    def __enter__(self) -> Members:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(START_S)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(START_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def pd(self) -> str:
        return f"127.0.0.1:{self.pd_port}"

    @property
    def store(self) -> str:
        return f"127.0.0.1:{self.port}"

    def check(self) -> None:
        """Both serve, and nothing broke in them."""
        head = pdpb.RequestHeader(cluster_id=self.cluster_id)
        known = self.call(self.pd, PD.GetMembers.path, pdpb.GetMembersRequest(header=head), pdpb.GetMembersResponse)
        assert known.leader.name == "pd", known
        self._write()
        for task, member in zip(self._tasks, self._members, strict=True):
            assert not task.done(), task
            assert member._failure is None
        for log in self._home.glob("*.log"):
            text = log.read_text()
            fresh, self._read[log] = text[self._read.get(log, 0) :], len(text)
            broken = [line for line in fresh.splitlines() if any(sign in line for sign in BROKEN)]
            assert not broken, broken[0].replace("\\n", "\n")

    def _write(self) -> None:
        """By what the store itself says of its regions: a senseless split is one, and PD was told of many."""
        until = time.monotonic() + CALL_S
        while True:
            put = kvrpcpb.RawPutRequest(context=self.context, key=KEY, value=b"yes")
            answer = self.call(self.store, TIKV.RawPut.path, put, kvrpcpb.RawPutResponse)
            if answer == kvrpcpb.RawPutResponse():
                return
            assert time.monotonic() < until, answer
            for region in answer.region_error.epoch_not_match.current_regions:
                if region.start_key <= KEY and (not region.end_key or region.end_key > KEY):
                    self.context.region_id = region.id
                    self.context.region_epoch.CopyFrom(region.region_epoch)
                    self.context.peer.CopyFrom(region.peers[0])
            time.sleep(0.05)

    def call(self, address: str, path: str, request: Any, response: Any) -> Any:
        """Unary; `request` may be bytes, which are sent as they are."""
        with grpc.insecure_channel(address) as channel:
            stub = channel.unary_unary(path, request_serializer=_packed, response_deserializer=response.FromString)
            return stub(request, timeout=CALL_S)

    async def _start(self) -> None:
        pd = [
            "--name=pd",
            f"--data-dir={self._home / 'pd'}",
            f"--client-urls=http://127.0.0.1:{self.pd_port}",
            f"--peer-urls=http://127.0.0.1:{self._peer_port}",
            f"--initial-cluster=pd=http://127.0.0.1:{self._peer_port}",
        ]
        options = options_of(pd)
        assert options is not None
        log = open_log(self._home / "pd.log")
        self._run(PdServer(options, log).main, log)
        tikv = [
            f"--addr={self.store}",
            f"--status-addr=127.0.0.1:{self.status_port}",
            f"--pd={self.pd}",
            f"--data-dir={self._home / 'tikv'}",
        ]
        log = open_log(self._home / "tikv.log")
        self._run(lambda member: TikvServer(member, configure(tikv)).run(), log)
        await self._find_region()

    def _run(self, main: Any, log: Any) -> None:
        member = Member(log)
        self._members.append(member)
        self._tasks.append(self._loop.create_task(main(member)))

    async def _find_region(self) -> None:
        until = self._loop.time() + START_S
        while not self.context.region_id:
            for task in self._tasks:
                assert not task.done(), task
            assert self._loop.time() < until, "no region within time"
            await asyncio.sleep(0.02)
            await asyncio.to_thread(self._ask_region)

    def _ask_region(self) -> None:
        try:
            known = self.call(self.pd, PD.GetMembers.path, pdpb.GetMembersRequest(), pdpb.GetMembersResponse)
            self.cluster_id = known.header.cluster_id
            head = pdpb.RequestHeader(cluster_id=self.cluster_id)
            found = self.call(self.pd, PD.GetRegion.path, pdpb.GetRegionRequest(header=head), pdpb.GetRegionResponse)
        except grpc.RpcError:
            return
        if found.leader.id:
            region = found.region
            self.context = kvrpcpb.Context(region_id=region.id, region_epoch=region.region_epoch, peer=found.leader)

    async def _stop(self) -> None:
        for task in reversed(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)


def _packed(request: Any) -> bytes:
    return request if isinstance(request, bytes) else bytes(request.SerializeToString())
