"""What somebody waits for: help, status and the other commands, start and stop, a cluster for a test, made afresh or
emptied; and what idle members hold."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import drillyard
from bench import figures
from bench.deployment import COMMAND, Deployment, Ran, cpu_s, memory_mb, pd_addresses, reported_s, standing, temporary
from bench.failover import PD_SERVES
from bench.figures import Results
from bench.plan import BenchFailed
from drillyard.clients.tikv import RawClient
from drillyard.faces.api import Yard
from drillyard.flows.report import Ending

MEMBER, SERVER = "tikv0", "drillyard.emulator.tikv.server"
COMMANDS = ("list", "connect", "logs", "verify", "diagnose", f"restart {MEMBER}", f"kill {MEMBER}", f"start {MEMBER}")
# What a member writes when it has done its part of a gate; the last of these lines is the truth about "ready".
STEPS = {
    "PD's leader serves, and all know it": (PD_SERVES, "pd leader is known"),
    "the last store serves": ("TiKV is ready to serve",),
    "the region has its three replicas": ("operator finish",),
}
IMPORTED, TOLD = "the last member has loaded its modules", "the last gate is seen open"
ALL_STEPS = (IMPORTED, *STEPS, TOLD)
RESET_KEYS = 1000  # to be deleted by a reset
IDLE_S = 5.0  # from ready until memory is read


def commands(results: Results) -> None:
    with standing() as deployment:
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([COMMAND, "--help"], check=True, capture_output=True)
            results.add(figures.HELP, time.perf_counter() - began)
            results.add(figures.STATUS, deployment.run("status").took_s)
            for words in COMMANDS:
                results.add(figures.command(words), deployment.run(*words.split()).took_s)
                if words in (f"restart {MEMBER}", f"start {MEMBER}"):
                    deployment.run("verify", "--wait")


def start(results: Results) -> None:
    with temporary() as deployment:
        up = deployment.up()
        members = deployment.members()
        results.add(figures.UP, up.took_s)
        results.add(figures.UP_COMMAND_CPU, up.cpu_s)
        results.add(figures.UP_MEMBERS_CPU, cpu_s(members))
        _steps(deployment, up, results)
        results.add(figures.STOP, deployment.run("down", "--delete-data").took_s)


def _steps(deployment: Deployment, up: Ran, results: Results) -> None:
    """When the members were how far, by their own logs, and when `up` told so."""
    log = list(deployment.log())
    first = {said.member: said.at for said in reversed(log)}
    reached = {IMPORTED: max(first.values())}
    for step, texts in STEPS.items():
        reached[step] = max(said.at for said in log if said.text in texts)
    for step, at in reached.items():
        results.add(figures.step(step), at - up.began)
    told = reported_s(up)
    results.add(figures.step(TOLD), told - up.began)
    results.add(figures.LAG, told - max(reached.values()))


def fresh(results: Results) -> None:
    began = time.perf_counter()
    with drillyard.cluster_sync():
        made = time.perf_counter()
    results.add(figures.FRESH, made - began)
    results.add(figures.FRESH_GONE, time.perf_counter() - made)
    with standing() as deployment:
        results.add(figures.RESET, asyncio.run(_reset(deployment)))


async def _reset(deployment: Deployment) -> float:
    """A cluster that is untouched but for its data, until it is proven to be as new."""
    client = RawClient(pd_addresses(deployment.members()), timeout_s=10.0)
    try:
        outcomes = await asyncio.gather(*(client.put(b"bench-%d" % number, b"x" * 100) for number in range(RESET_KEYS)))
    finally:
        client.close()
    if not all(outcome.is_ok for outcome in outcomes):
        raise BenchFailed("the keys to delete could not be written")
    began = time.perf_counter()
    done = await Yard(deployment.home).cluster().reset()
    took_s = time.perf_counter() - began
    if done.ending is not Ending.OK or not done.is_data_deleted:
        raise BenchFailed(f"the cluster could not be reset: {done.report.trouble}")
    return took_s


def memory(results: Results) -> None:
    with standing() as deployment:
        time.sleep(IDLE_S)
        rss, pss = largest(deployment)
        results.add(figures.RSS, rss)
        results.add(figures.PSS, pss)
        results.add(figures.PSS_IMPORTS, _imports_mb())


def _imports_mb() -> float:
    """What a process holds that has imported a TiKV and done nothing, beside six members."""
    command = [sys.executable, "-P", "-c", f"import {SERVER}, sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        _, pss = memory_mb(process.pid)
        process.kill()
    return pss


def largest(deployment: Deployment) -> tuple[float, float]:
    """RSS and PSS, in MB, each of the member that has most of it."""
    held = deployment.memory_mb()
    return max(rss for rss, _ in held), max(pss for _, pss in held)
