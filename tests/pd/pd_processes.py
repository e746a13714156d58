"""Three emulated pd-servers as processes, for tests: started, killed, stopped for a while, started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ports import free_ports

CONFIG = 'tick-interval = "100ms"\nelection-interval = "1s"\n'


class PdProcesses:
    def __init__(self, home: Path, members: int = 3) -> None:
        self.home = home
        self.names = [f"pd{place}" for place in range(members)]
        ports = free_ports(2 * members)
        self.client_ports, self.peer_ports = ports[:members], ports[members:]
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.newcomers: dict[int, str] = {}  # place -> what it joins
        (home / "pd.toml").write_text(CONFIG)

    def add(self, name: str) -> int:
        """One more member, which joins the cluster of the first ones when it is started."""
        client_port, peer_port = free_ports(2)
        self.names.append(name)
        self.client_ports.append(client_port)
        self.peer_ports.append(peer_port)
        place = len(self.names) - 1
        self.newcomers[place] = ",".join(f"http://127.0.0.1:{port}" for port in self.client_ports[:3])
        return place

    @property
    def initial_cluster(self) -> str:
        founders = [place for place in range(len(self.names)) if place not in self.newcomers]
        return ",".join(f"{self.names[place]}=http://127.0.0.1:{self.peer_ports[place]}" for place in founders)

    def arguments(self, place: int, **changes: str) -> list[str]:
        flags = {
            "name": self.names[place],
            "data-dir": str(self.home / self.names[place]),
            "client-urls": f"http://127.0.0.1:{self.client_ports[place]}",
            "peer-urls": f"http://127.0.0.1:{self.peer_ports[place]}",
            "initial-cluster": self.initial_cluster,
            "config": str(self.home / "pd.toml"),
            "log-file": str(self.home / f"{self.names[place]}.log"),
        }
        if place in self.newcomers:
            del flags["initial-cluster"]
            flags["join"] = self.newcomers[place]
        flags.update({name.replace("_", "-"): value for name, value in changes.items()})
        return [f"--{name}={value}" for name, value in flags.items()]

    def start(self, *places: int, **changes: str) -> None:
        for place in places or range(len(self.names)):
            command = [sys.executable, "-m", "drillyard.emulator.pd.server", *self.arguments(place, **changes)]
            with (self.home / f"{self.names[place]}.err").open("ab") as errors:
                self.processes[place] = subprocess.Popen(command, stdout=errors, stderr=errors)

    def run_to_its_end(self, place: int, **changes: str) -> tuple[int, str]:
        """Exit code and stderr of a member that is expected to stop by itself."""
        command = [sys.executable, "-m", "drillyard.emulator.pd.server", *self.arguments(place, **changes)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
        return done.returncode, done.stderr

    def kill(self, *places: int) -> None:
        """SIGKILL, all at once."""
        for place in places:
            self.processes[place].kill()
        for place in places:
            self.processes.pop(place).wait()

    def signal(self, place: int, number: signal.Signals) -> None:
        os.kill(self.processes[place].pid, number)

    def terminate(self, place: int) -> int:
        process = self.processes.pop(place)
        process.terminate()
        return process.wait(timeout=20)

    def close(self) -> None:
        for place in list(self.processes):
            self.signal(place, signal.SIGCONT)
        self.kill(*self.processes)

    def get(self, place: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, bytes]:
        return fetch(self.client_ports[place], path, headers)

    def are_introduced(self) -> bool:
        """Whether every member has told its addresses to the others."""
        answer = self.ask(0, "/pd/api/v1/members")
        return bool(answer) and all(member.get("client_urls") for member in answer["members"])

    def ask(self, place: int, path: str) -> Any:
        """The JSON of an answer, or None if it is none with status 200."""
        status, _, body = self.get(place, path)
        return json.loads(body) if status == 200 else None

    def told(self, place: int, path: str) -> Any:
        """The JSON of an answer as soon as there is one: a member that knows no leader for a moment has none."""

        def look() -> tuple[Any] | None:
            answer = self.ask(place, path)
            return None if answer is None else (answer,)

        return until(look, f"{self.names[place]} answers {path}")[0]

    def send(self, place: int, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and JSON of the answer to a request that may change something."""
        data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.client_ports[place]}{path}"
        request = urllib.request.Request(url, data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                text = error.read()
            try:
                return error.code, json.loads(text)
            except ValueError:
                return error.code, text.decode()

    def member_names(self, place: int) -> list[str]:
        answer = self.ask(place, "/pd/api/v1/members")
        return sorted(member["name"] for member in answer["members"]) if answer else []

    def leader(self, *places: int) -> int | None:
        """Whom the given members (default: all that run) name as the leader, if they agree."""
        answers = [self.ask(place, "/pd/api/v1/leader") for place in places or list(self.processes)]
        names = {answer["name"] if answer else None for answer in answers}
        name = names.pop() if len(names) == 1 else None
        return None if name is None else self.names.index(name)

    def wait_for_leader(self, within_s: float = 20.0) -> int:
        deadline = time.monotonic() + within_s
        while time.monotonic() < deadline:
            if (leader := self.leader()) is not None:
                return leader
            time.sleep(0.02)
        raise AssertionError(f"no leader within {within_s} s; the logs are in {self.home}")


def until(condition: Callable[[], Any], what: str, within_s: float = 20.0) -> Any:
    """Polls until a condition holds, and returns what it gave."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"not within {within_s} s: {what}")


def fetch(port: int, path: str, headers: dict[str, str] | None = None) -> tuple[int, str, bytes]:
    """Status (0: no answer), content type and body."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.headers.get("Content-Type", ""), answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers.get("Content-Type", ""), error.read()
    except OSError:
        return 0, "", b""
