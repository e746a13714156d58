"""Three members of a real PD on loopback, of either era, and what tests ask of them.

The executables come from `scripts/build-real-pd`, or from the directory that DRILLYARD_REAL_PD_DIR names. A missing one
is an error: who runs these tests wants them run.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tikv_members import wait_until

from ports import free_port

BUILT = Path(os.environ.get("DRILLYARD_REAL_PD_DIR") or Path(__file__).parents[2] / ".cache" / "real-pd")


def executable(name: str) -> Path:
    path = BUILT / name
    if not path.exists():
        raise AssertionError(
            f"{path} is missing; run scripts/build-real-pd, or name its directory in DRILLYARD_REAL_PD_DIR"
        )
    return path


class RealPd:
    def __init__(self, era: str, home: Path) -> None:
        self.era = era
        self.home = home
        self._client_ports = [free_port() for _ in range(3)]
        self._peer_ports = [free_port() for _ in range(3)]
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> RealPd:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for index in range(len(self._processes)):
            self.kill(index)

    def _start(self) -> None:
        cluster = ",".join(f"pd{number}=http://127.0.0.1:{port}" for number, port in enumerate(self._peer_ports))
        for number, (client, peer) in enumerate(zip(self._client_ports, self._peer_ports, strict=True)):
            command = [
                str(executable(f"pd-server-{self.era}")),
                f"--name=pd{number}",
                f"--data-dir={self.home / f'pd{number}'}",
                f"--log-file={self.home / f'pd{number}.log'}",
                f"--client-urls=http://127.0.0.1:{client}",
                f"--peer-urls=http://127.0.0.1:{peer}",
                f"--initial-cluster={cluster}",
            ]
            with (self.home / f"pd{number}.out").open("wb") as output:
                self._processes.append(subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT))
        wait_until("three healthy PD members", self.is_healthy)

    def is_healthy(self) -> bool:
        health = self.get("health", index=0)
        return isinstance(health, list) and [member.get("health") for member in health] == [True] * 3

    @property
    def client_ports(self) -> list[int]:
        return list(self._client_ports)

    @property
    def peer_ports(self) -> list[int]:
        return list(self._peer_ports)

    @property
    def endpoints(self) -> str:
        return ",".join(f"127.0.0.1:{port}" for port in self._client_ports)

    def ask(self, method: str, path: str, body: Any = None, *, index: int | None = None) -> Any:
        """The answer of the member asked, or of the first that answers with 200; None if none does."""
        living = [number for number, process in enumerate(self._processes) if process.poll() is None]
        for number in living if index is None else [index]:
            url = f"http://127.0.0.1:{self._client_ports[number]}/pd/api/v1/{path}"
            data = None if body is None else json.dumps(body).encode()
            try:
                with urllib.request.urlopen(urllib.request.Request(url, data, method=method), timeout=5) as answer:
                    return json.loads(answer.read())
            except (OSError, ValueError, urllib.error.HTTPError):
                continue
        return None

    def get(self, path: str, *, index: int | None = None) -> Any:
        return self.ask("GET", path, index=index)

    def control(self, *arguments: str) -> str:
        """What pd-ctl prints."""
        living = next(number for number, process in enumerate(self._processes) if process.poll() is None)
        url = f"http://127.0.0.1:{self._client_ports[living]}"
        command = [str(executable("pd-ctl")), "-u", url, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout

    def leader(self) -> int | None:
        answer = self.get("leader")
        return None if not answer else int(answer["name"].removeprefix("pd"))

    def kill(self, index: int) -> None:
        """SIGTERM takes a real PD 13 s."""
        process = self._processes[index]
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(10)

    def store_states(self) -> dict[str, str]:
        """The state of each store, by its address."""
        answer = self.get("stores") or {"stores": []}
        return {item["store"]["address"]: item["store"]["state_name"] for item in answer["stores"]}

    def store_ids(self) -> dict[str, int]:
        answer = self.get("stores") or {"stores": []}
        return {item["store"]["address"]: item["store"]["id"] for item in answer["stores"]}

    def regions(self) -> list[Any]:
        """In the order of their keys."""
        answer = self.get("regions") or {"regions": []}
        return sorted(answer["regions"] or [], key=lambda region: region["start_key"])

    def region(self) -> Any:
        """The first one."""
        return next(iter(self.regions()), None)

    def voters(self) -> set[int]:
        """The stores whose peer of the first region votes; none while it is in a joint state or has a peer pending."""
        region = self.region()
        return set() if region is None else voters_of(region)


def voters_of(region: Any) -> set[int]:
    if region.get("pending_peers") or any(peer["role_name"] != "Voter" for peer in region["peers"]):
        return set()
    return {peer["store_id"] for peer in region["peers"]}
