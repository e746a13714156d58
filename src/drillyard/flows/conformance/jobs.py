"""What each program of others is made to do on a cluster that is ready, and how it is judged.

A job runs one program in one area and comes back with its checks. Clients say for themselves what they could do, one
line of JSON for each check; pd-ctl is judged by what it prints (`pd_ctl`); of operators it is also looked whether the
stores carried them out.
"""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from drillyard.flows.conformance import pd_ctl, programs
from drillyard.flows.conformance.pd_ctl import Command
from drillyard.flows.conformance.table import Check
from drillyard.flows.report import Report
from drillyard.waiting import Clock, Deadline, until

CALL_S = 5.0
COMMAND_S = 30.0
OBEYED_S = 20.0
KEY = "conformance"


@dataclass(frozen=True, slots=True)
class Subject:
    """A cluster, and what its PD says."""

    clock: Clock
    report: Report

    @property
    def endpoints(self) -> str:
        return ",".join(self.report.pd_endpoints)

    @property
    def url(self) -> str:
        return f"http://{self.report.pd_endpoints[0]}"

    async def ask(self, path: str) -> Any:
        """What PD answers, None while it does not."""
        # Imported late, as everywhere in the flows: it loads the RPC library.
        from drillyard.clients.calls import CallFailed
        from drillyard.clients.http import HttpClient

        client = HttpClient(self.report.pd_endpoints[0])
        try:
            return await client.get_json(f"/pd/api/v1/{path}", timeout_s=CALL_S)
        except CallFailed:
            return None
        finally:
            client.close()

    async def comes_true(self, holds: Callable[[], Awaitable[bool]]) -> bool:
        async def look() -> bool | None:
            return True if await holds() else None

        return bool(await until(look, Deadline.after(self.clock, OBEYED_S)))


@dataclass(frozen=True, slots=True)
class Job:
    program: str
    area: str
    version: Callable[[], Awaitable[str]]
    run: Callable[[Subject], Awaitable[tuple[Check, ...]]]
    executables: tuple[str, ...] = ()


# ---- clients ----


async def _package(name: str) -> str:
    return programs.package_version(name)


async def _client_go() -> str:
    ran = await programs.run([programs.executable("client-go-conformance"), "version"])
    return ran.out.strip()


def _told_by(ran: programs.Ran) -> tuple[Check, ...]:
    """The checks that a program told, and one more if it did not end well."""
    checks = []
    for line in ran.out.splitlines():
        try:
            told = json.loads(line)
            checks.append(Check(str(told["check"]), bool(told["passed"]), str(told.get("why", ""))))
        except (ValueError, TypeError, KeyError):
            continue
    if ran.code != 0 or not checks:
        last = (ran.errors.strip().splitlines() or ["it told nothing"])[-1]
        why = "it was still running when its time was over" if ran.code is None else f"exit code {ran.code}: {last}"
        checks.append(Check("runs to its end", False, why))
    return tuple(checks)


async def _script(name: str, area: str, subject: Subject) -> tuple[Check, ...]:
    return _told_by(await programs.run([*programs.client_script(name), area, subject.endpoints]))


async def _go(area: str, subject: Subject) -> tuple[Check, ...]:
    return _told_by(await programs.run([programs.executable("client-go-conformance"), area, subject.endpoints]))


def _python(package: str, script: str, area: str, told: str) -> Job:
    return Job(package, told, partial(_package, package), partial(_script, script, area))


def _golang(area: str, told: str) -> Job:
    return Job("client-go", told, _client_go, partial(_go, area), ("client-go-conformance",))


RAW = (
    _python("tikv-python", "with_tikv_python.py", "raw", "raw, blocking"),
    _python("tikv-python", "with_tikv_python.py", "raw-asyncio", "raw, asyncio"),
    _python("tikv-client", "with_tikv_client.py", "raw", "raw, synchronous"),
    _python("tikv-client", "with_tikv_client.py", "raw-asyncio", "raw, asyncio"),
    _golang("raw", "raw, over BatchCommands"),
)
TRANSACTIONAL = (
    _python("tikv-client", "with_tikv_client.py", "txn", "transactions, synchronous"),
    _python("tikv-client", "with_tikv_client.py", "txn-asyncio", "transactions, asyncio"),
    _golang("txn", "transactions, over BatchCommands"),
)


# ---- pd-ctl ----


async def _pd_ctl() -> str:
    ran = await programs.run([programs.executable("pd-ctl"), "-V"])
    found = re.search(r"Release Version: (\S+)", ran.out)
    return found[1] if found else "unknown"


async def _control(subject: Subject, words: str) -> programs.Ran:
    command: list[str | Path] = [programs.executable("pd-ctl"), "-u", subject.url, *shlex.split(words)]
    return await programs.run(command, COMMAND_S)


async def _commands(areas: Sequence[str], subject: Subject) -> tuple[Check, ...]:
    return tuple([await _command(subject, one) for area in areas for one in pd_ctl.AREAS[area]])


async def _command(subject: Subject, command: Command) -> Check:
    await subject.comes_true(partial(_is_led_by_a_pd, subject))  # the command before may have taken the lead away
    if command.words.startswith("operator add"):
        await subject.comes_true(partial(_is_calm, subject))  # no operator is in its way
    words = command.words.format_map(await _names(subject))
    ran = await _control(subject, words)
    failure = pd_ctl.failure_of(command, ran.code, ran.out, ran.errors)
    return Check(command.words, not failure, failure)


async def _is_led_by_a_pd(subject: Subject) -> bool:
    return await subject.ask("leader") is not None


async def _is_calm(subject: Subject) -> bool:
    """No operator runs, the first region's leader is known, and no region has too few or too many peers."""
    if await subject.ask("operators") or not (await _first_region(subject)).get("leader", {}).get("store_id"):
        return False
    checks = [await subject.ask(f"regions/check/{kind}") or {} for kind in ("miss-peer", "extra-peer", "learner-peer")]
    return not any(check.get("count") for check in checks)


async def _names(subject: Subject) -> dict[str, str]:
    """What stands for the places in the commands: a region and its leader, another of its stores, one without it."""
    region = await _first_region(subject)
    leader = str((await subject.ask("leader") or {}).get("name", ""))
    stores = await _stores(subject)
    held = [peer["store_id"] for peer in region.get("peers", [])]
    led_by = region.get("leader", {}).get("store_id")
    follower = next((row.name for row in subject.report.members if row.role == "pd" and row.name != leader), "")
    return {
        "region": str(region.get("id", 0)),
        "store": str(led_by or 0),
        "other": str(next((store for store in held if store != led_by), 0)),
        "spare": str(next((store for store in stores if store not in held), 0)),
        "follower": follower,
    }


async def _first_region(subject: Subject) -> dict[str, Any]:
    answer = await subject.ask("regions/key?key=&limit=1") or {}
    return dict((answer.get("regions") or [{}])[0])


async def _stores(subject: Subject) -> list[int]:
    answer = await subject.ask("stores") or {}
    return [store["store"]["id"] for store in answer.get("stores", [])]


def _with_pd_ctl(area: str) -> Job:
    return Job("pd-ctl", area, _pd_ctl, partial(_commands, (area,)), ("pd-ctl",))


# ---- operators that are carried out ----


async def _operators(subject: Subject) -> tuple[Check, ...]:
    """Leadership and a peer are moved by pd-ctl; both PD and stores have to agree on it, and clients are served."""
    checks = [Check("three PD, four stores, six gates", True)]
    for name in ("balance-leader-scheduler", "balance-region-scheduler"):  # nothing is moved back
        await _control(subject, f"scheduler remove {name}")
    await subject.comes_true(partial(_is_calm, subject))  # nor under way, when the stores are chosen
    names = await _names(subject)
    checks.append(await _carried_out(subject, "operator add transfer-leader {region} {other}", names, _is_led))
    checks.append(await _carried_out(subject, "operator add transfer-peer {region} {store} {spare}", names, _has_moved))
    checks.append(await _is_written(subject))
    return tuple(checks)


async def _carried_out(
    subject: Subject,
    words: str,
    names: Mapping[str, str],
    is_done: Callable[[Mapping[str, Any], Mapping[str, str]], bool],
) -> Check:
    async def holds() -> bool:
        return is_done(await subject.ask(f"region/id/{names['region']}") or {}, names)

    ran = await _control(subject, words.format_map(names))
    if "uccess" not in ran.out:
        return Check(words, False, ran.out.strip() or ran.errors.strip())
    done = await subject.comes_true(holds)
    return Check(words, done, "" if done else f"it is not carried out within {OBEYED_S:g} s")


def _is_led(region: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    return str(region.get("leader", {}).get("store_id")) == names["other"]


def _has_moved(region: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    peers: Sequence[Mapping[str, Any]] = region.get("peers", [])
    voters = {str(peer["store_id"]) for peer in peers if peer["role_name"] == "Voter"}
    return len(peers) == 3 and names["spare"] in voters and names["store"] not in voters


async def _is_written(subject: Subject) -> Check:
    """A key through the leaders, by our own client."""
    from drillyard.clients.tikv import RawClient

    client = RawClient(subject.report.pd_endpoints, timeout_s=CALL_S)
    try:
        put = await client.put(KEY.encode(), b"written")
        got = await client.get(KEY.encode())
    finally:
        client.close()
    why = "" if put.is_ok and got.value == b"written" else f"put: {put}, get: {got}"
    return Check("a key is written and read", not why, why)


async def _released(executable: str) -> str:
    ran = await asyncio.wait_for(programs.run([programs.executable(executable), "-V"]), COMMAND_S)
    found = re.search(r"Release Version: (\S+)", ran.out + ran.errors)
    return found[1] if found else "unknown"


def _real_pd(executable: str) -> Job:
    area = "over emulated stores: bootstrap, Up, replicated, operators carried out"
    return Job("PD", area, partial(_released, executable), _operators, (executable, "pd-ctl"))


PD_CTL = (
    *(_with_pd_ctl(area) for area in pd_ctl.AREAS if "leaves" not in area),
    Job("pd-ctl", "operators that the stores carry out", _pd_ctl, _operators, ("pd-ctl",)),
    *(_with_pd_ctl(area) for area in pd_ctl.AREAS if "leaves" in area),
)
_REFERENCE = "all of the above on a real PD 8.1 over emulated stores: the yardstick"
REAL_PD_81 = (
    Job("pd-ctl", _REFERENCE, _pd_ctl, partial(_commands, tuple(pd_ctl.AREAS)), ("pd-ctl", "pd-server-81")),
    _real_pd("pd-server-81"),
)
REAL_PD_66 = (_real_pd("pd-server-66"),)
