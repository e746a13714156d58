"""Three emulated PD and three emulated TiKV as processes, which can all lose their power in the same moment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drillyard.clients.calls import CallFailed
from drillyard.clients.http import HttpClient
from drillyard.clients.tikv import RawClient
from ports import free_ports

RUNNER = Path(__file__).with_name("recorded_member.py")
PD_CONFIG = 'tick-interval = "100ms"\nelection-interval = "1s"\n'
TIKV_CONFIG = """
[raftstore]
raft-base-tick-interval = "100ms"
raft-heartbeat-ticks = 2
raft-election-timeout-ticks = 10
raft-store-max-leader-lease = "900ms"
pd-heartbeat-tick-interval = "1s"
pd-store-heartbeat-tick-interval = "1s"
"""
PATIENCE_S = 60
Disk = Callable[[bytes, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Member:
    name: str
    role: str
    flags: tuple[str, ...]


class SixMembers:
    def __init__(self, home: Path) -> None:
        self.home = home
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = free_ports(12)
        clients, peers, stores, status = ports[:3], ports[3:6], ports[6:9], ports[9:]
        self.pds = [f"127.0.0.1:{port}" for port in clients]
        (home / "pd.toml").write_text(PD_CONFIG)
        (home / "tikv.toml").write_text(TIKV_CONFIG)
        first = ",".join(f"pd{place}=http://127.0.0.1:{port}" for place, port in enumerate(peers))
        self.members = [
            Member(
                f"pd{place}",
                "pd",
                (
                    f"--name=pd{place}",
                    f"--client-urls=http://127.0.0.1:{clients[place]}",
                    f"--peer-urls=http://127.0.0.1:{peers[place]}",
                    f"--initial-cluster={first}",
                    f"--config={home / 'pd.toml'}",
                ),
            )
            for place in range(3)
        ] + [
            Member(
                f"tikv{place}",
                "tikv",
                (
                    f"--addr=127.0.0.1:{stores[place]}",
                    f"--status-addr=127.0.0.1:{status[place]}",
                    f"--pd={','.join(self.pds)}",
                    f"--config={home / 'tikv.toml'}",
                ),
            )
            for place in range(3)
        ]

    def start(self, *, bug: bool = False) -> None:
        for member in self.members:
            plant = ["--acknowledge-early"] if bug and member.role == "tikv" else []
            own = [f"--data-dir={self.home / member.name}", f"--log-file={self.home / member.name}.log"]
            command = [str(RUNNER), str(self._note(member)), *plant, member.role, *member.flags, *own]
            with (self.home / f"{member.name}.err").open("ab") as errors:
                self.processes[member.name] = subprocess.Popen([sys.executable, *command], stdout=errors, stderr=errors)

    async def until_three_voters(self) -> None:
        """Waits until no membership change is under way, nor to come."""
        pd = HttpClient(self.pds[0])
        try:
            async with asyncio.timeout(PATIENCE_S):
                while True:
                    with contextlib.suppress(CallFailed):
                        answer = await pd.get_json("/pd/api/v1/regions", timeout_s=1)
                        regions = answer.get("regions", []) if isinstance(answer, dict) else []
                        roles = [peer.get("role_name") for region in regions for peer in region["peers"]]
                        if roles == ["Voter"] * 3:
                            return
                    await asyncio.sleep(0.05)
        finally:
            pd.close()

    def kill_all(self) -> None:
        """SIGKILL, to all before any is waited for."""
        for process in self.processes.values():
            os.kill(process.pid, signal.SIGKILL)
        for process in self.processes.values():
            process.wait()
        self.processes.clear()

    def all_run(self) -> bool:
        return all(process.poll() is None for process in self.processes.values())

    def lose_what_was_not_synced(self, disk: Disk) -> int:
        """Cuts each log to what was certainly durable; returns how many bytes were lost."""
        cut = 0
        for member in self.members:
            note = self._note(member)
            lengths = json.loads(note.read_text()) if note.exists() else {}
            for log in (self.home / member.name / "db").glob("*.log"):
                content, length = log.read_bytes(), lengths.get(log.name, 0)
                assert len(content) >= length
                log.write_bytes(disk(content[:length], content[length:]))
                cut += len(content) - length
        return cut

    def _note(self, member: Member) -> Path:
        return self.home / f"{member.name}.lengths"


class Writer:
    """Puts new keys as fast as they are acknowledged, and remembers which were."""

    def __init__(self, cluster: SixMembers) -> None:
        self._cluster = cluster
        self._begun = 0
        self.acknowledged: dict[bytes, bytes] = {}

    async def write_until(self, acknowledged: int, writers: int = 16) -> None:
        """Returns, with writes still under way, when so many more are acknowledged; nobody waits for the rest."""
        enough = len(self.acknowledged) + acknowledged
        client = RawClient(self._cluster.pds, timeout_s=2)
        tasks = [asyncio.create_task(self._write(client)) for _ in range(writers)]
        try:
            async with asyncio.timeout(PATIENCE_S):
                while len(self.acknowledged) < enough:
                    assert self._cluster.all_run()
                    await asyncio.sleep(0.01)
            self._cluster.kill_all()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            client.close()

    async def _write(self, client: RawClient) -> None:
        while True:
            number, self._begun = self._begun, self._begun + 1
            key, value = b"key %08d" % number, random.randbytes(random.choice((10, 200, 4000)))
            if (await client.put(key, value)).is_ok:
                self.acknowledged[key] = value
            else:
                await asyncio.sleep(0.02)

    async def lost(self) -> list[bytes]:
        """The acknowledged keys that are not there, or not as they were written; asks until the cluster answers."""
        client = RawClient(self._cluster.pds, timeout_s=2)
        lost = []
        try:
            async with asyncio.timeout(PATIENCE_S):
                for key, value in self.acknowledged.items():
                    while not (outcome := await client.get(key)).is_ok:
                        assert self._cluster.all_run()
                        await asyncio.sleep(0.02)
                    if outcome.value != value:
                        lost.append(key)
        finally:
            client.close()
        return lost
