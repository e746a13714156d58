"""The bank on containers, while links between them are cut: no sum is ever wrong, and transfers go on.

The client is a process of its own, because the members are known to each other by names that only their network knows:
it gets a file of hosts for itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from compose_subject import EMULATED
from links import Cuts, containers
from shell import Shell

NAME = "bank"
PROJECT = f"drillyard-{NAME}"
MEMBERS = ("pd0", "pd1", "pd2", "tikv0", "tikv1", "tikv2")
BANK = Path(__file__).parents[1] / "clients" / "bank.py"
PARTITION_S = 3.0
MORE_TRANSFERS = 10
WAIT_S = 40.0


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Shell]:
    with containers(tmp_path / "home", NAME, EMULATED) as shell:
        yield shell


class Run:
    """The bank while it is open."""

    def __init__(self, hosts: Path, output: Path, pd_endpoints: str) -> None:
        self._output = output
        inside = f"mount --bind {hosts} /etc/hosts && exec {sys.executable} {BANK} {pd_endpoints}"
        with output.open("wb") as out:
            self.process = subprocess.Popen(
                ["unshare", "--mount", "sh", "-c", inside], stdout=out, stderr=subprocess.STDOUT
            )

    def transfers(self) -> int:
        told = [line for line in self._output.read_text().splitlines() if line.startswith("{")]
        return int(json.loads(told[-1])["transfers"]) if told else 0

    def wait_for_transfers(self, more: int) -> None:
        wanted, deadline = self.transfers() + more, time.monotonic() + WAIT_S
        while self.transfers() < wanted:
            assert self.process.poll() is None, self._output.read_text()[-3000:]
            assert time.monotonic() < deadline, f"no {more} transfers: {self._output.read_text()[-1000:]}"
            time.sleep(0.1)


def leader_of_accounts(cuts: Cuts) -> str:
    """The member that leads the one region, by PD's word."""
    pd = f"http://{cuts.address('pd0')}:2379/pd/api/v1"
    leader = httpx.get(f"{pd}/regions", timeout=5).json()["regions"][0]["leader"]["store_id"]
    address: str = httpx.get(f"{pd}/store/{leader}", timeout=5).json()["store"]["address"]
    return address.partition(":")[0]


def test_the_bank_keeps_its_money_through_a_partition(yard: Shell, tmp_path: Path) -> None:
    cuts = Cuts(PROJECT)
    hosts = tmp_path / "hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{cuts.address(name)} {name}\n" for name in MEMBERS))
    run = Run(hosts, tmp_path / "bank.out", ",".join(f"{name}:2379" for name in MEMBERS[:3]))
    try:
        run.wait_for_transfers(MORE_TRANSFERS)
        alone = leader_of_accounts(cuts)
        for other in MEMBERS:
            if other.startswith("tikv") and other != alone:
                cuts.between(alone, other)
        time.sleep(PARTITION_S)  # it lasts long enough for another leader
        run.wait_for_transfers(MORE_TRANSFERS)
        cuts.mend()
        run.wait_for_transfers(MORE_TRANSFERS)
        run.process.terminate()
        assert run.process.wait(30) == 0, (tmp_path / "bank.out").read_text()[-3000:]
    finally:
        cuts.mend()
        run.process.kill()
        run.process.wait(10)
