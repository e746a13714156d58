"""Emulated tikv-server processes for tests, and calls to them with grpcio."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import grpc

from drillyard.wire import errorpb, kvrpcpb, metapb
from drillyard.wire.method import Method
from ports import free_port

WAIT_S = 30.0
CONFIG = """
[raftstore]
raft-base-tick-interval = "100ms"
pd-store-heartbeat-tick-interval = "500ms"
pd-heartbeat-tick-interval = "500ms"
"""


def wait_until(what: str, holds: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """Polls until the condition is true and returns what it gave; says what was waited for otherwise."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = holds()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(0.02)


@dataclass
class TikvProcess:
    """One member: started with real flags, stopped by its own pid."""

    home: Path
    pd: str
    port: int = field(default_factory=free_port)
    status_port: int = field(default_factory=free_port)
    extra: tuple[str, ...] = ()
    config: ClassVar[str] = ""  # more of it
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def log_text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    @property
    def log(self) -> Path:
        return self.home / "tikv.log"

    def start(self) -> TikvProcess:
        self.home.mkdir(parents=True, exist_ok=True)
        config = self.home / "tikv.toml"
        config.write_text(CONFIG + self.config)
        arguments = [
            f"--addr={self.address}",
            f"--status-addr=127.0.0.1:{self.status_port}",
            f"--data-dir={self.home / 'data'}",
            f"--pd={self.pd}",
            f"--config={config}",
            f"--log-file={self.log}",
            *self.extra,
        ]
        command = [sys.executable, "-m", "drillyard.emulator.tikv.server", *arguments]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        return self

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        os.kill(self.process.pid, number)

    def kill(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.send(signal.SIGKILL)
            self.process.wait(10)

    def ends(self) -> tuple[int, str]:
        """The exit code, and what it said on stderr."""
        assert self.process is not None
        _, said = self.process.communicate(timeout=WAIT_S)
        return self.process.returncode, said.decode()


def call(address: str, method: Method[Any, Any], request: Any, timeout_s: float = 10.0) -> Any:
    with grpc.insecure_channel(address) as channel:
        stub = channel.unary_unary(
            method.path,
            request_serializer=lambda m: m.SerializeToString(),
            response_deserializer=method.response.FromString,
        )
        return stub(request, timeout=timeout_s)


@dataclass(frozen=True)
class Place:
    """Where the region is led now."""

    address: str
    region: metapb.Region
    leader: metapb.Peer

    def context(self, **changes: Any) -> kvrpcpb.Context:
        context = kvrpcpb.Context(region_id=self.region.id, region_epoch=self.region.region_epoch, peer=self.leader)
        context.MergeFrom(kvrpcpb.Context(**changes))
        return context


def kind_of(error: errorpb.Error) -> str:
    """Which field of a region error is set; empty for none."""
    named = [field.name for field, _ in error.ListFields() if field.name != "message"]
    assert len(named) <= 1, f"more than one kind: {error}"
    return named[0] if named else ""
