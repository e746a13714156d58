"""What is left when the keeper, or the command that started it, is killed; and what may never be signalled."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from standins import STAND_INS, has_served, run, until, up

from drillyard.runtimes import journal, keeper_link, plans
from drillyard.runtimes.abilities import Busy, Deployment, EventKind, KeeperFailed, WrongState
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.processes import identity, signal_if_same
from drillyard.topology import Role, Topology


def members_of(deployment: Deployment) -> list[tuple[int, str | None]]:
    return [(m.pid, identity(m.pid)) for m in deployment.members if m.pid is not None]


def kill_keeper(deployment: Deployment) -> None:
    assert deployment.keeper_pid is not None
    known = identity(deployment.keeper_pid)
    os.kill(deployment.keeper_pid, signal.SIGKILL)
    assert keeper_link.wait_gone([(deployment.keeper_pid, known)], 10) == ()


def test_no_member_outlives_a_killed_keeper(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime, pd=3, tikv=3)
        await runtime.pause_member("a", "tikv2")  # a stopped process dies too
        known = members_of(deployment)
        kill_keeper(deployment)
        assert keeper_link.wait_gone(known, 10) == ()  # before any command of ours looked
        after = await runtime.deployment("a")
        assert not after.is_up
        for member in after.members:
            assert member.exit is not None
            assert (member.exit.code, member.exit.signal, member.exit.asked) == (None, None, False)
            assert str(member.exit) == "exit code unknown, unexpected, keeper lost"

    run(scenario())


def test_a_lost_keeper_can_be_followed_by_another_on_the_same_plan(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        before = await up(runtime)
        kill_keeper(before)
        assert keeper_link.socket_path(before.directory).exists()  # stale
        after = await runtime.start(await runtime.plan(name="a"))
        assert after.is_up
        assert [m.addresses for m in after.members] == [m.addresses for m in before.members]
        assert all(m.exit is None for m in after.members)  # a new start has a clean slate
        assert (await runtime.stop("a")).is_clean

    run(scenario())


def test_down_after_a_lost_keeper_proves_that_its_members_are_gone(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        known = members_of(deployment)
        kill_keeper(deployment)
        report = await runtime.stop("a")
        assert report.is_clean
        assert {pid for pid, _ in known} < set(report.checked_pids)
        assert not keeper_link.socket_path(deployment.directory).exists()

    run(scenario())


def test_an_end_that_was_asked_for_stays_asked_when_the_keeper_is_lost(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime, behaviours={"tikv0": "ignore-term"})
        stopping = asyncio.create_task(runtime.stop_member("a", "tikv0"))
        async for event in runtime.watch("a"):
            if event.kind is EventKind.STOPPING:
                break
        kill_keeper(deployment)
        with pytest.raises(KeeperFailed, match="was lost on the way"):
            await stopping
        ends = {m.name: m.exit for m in (await runtime.deployment("a")).members}
        assert {name: end and end.asked for name, end in ends.items()} == {"tikv0": True, "pd0": False}

    run(scenario())


def test_a_watch_tells_the_exits_of_a_lost_keeper(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        events = []
        async for event in runtime.watch("a"):
            events.append(event)
            if len(events) == 2:
                kill_keeper(deployment)
        assert [(e.member, e.kind) for e in events[2:]] == [("pd0", EventKind.EXITED), ("tikv0", EventKind.EXITED)]
        assert all(e.exit is not None and e.exit.note.startswith("keeper lost") for e in events[2:])

    run(scenario())


def test_a_watch_ends_with_the_deployment(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await up(runtime)
        stopping = None
        kinds = []
        async for event in runtime.watch("a"):
            kinds.append((event.member, event.kind))
            if len(kinds) == 2:
                stopping = asyncio.create_task(runtime.stop("a"))
        assert stopping is not None
        assert (await stopping).is_clean
        assert kinds[2:] == [
            ("tikv0", EventKind.STOPPING),
            ("tikv0", EventKind.EXITED),
            ("pd0", EventKind.STOPPING),
            ("pd0", EventKind.EXITED),
        ]

    run(scenario())


COMMAND = """
import asyncio, pathlib, sys
sys.path.insert(0, {tests!r})
from standins import STAND_INS
from drillyard.runtimes.local import LocalRuntime
async def main():
    runtime = LocalRuntime(pathlib.Path({home!r}))
    plan = await runtime.plan(name="a")
    print("starting", flush=True)
    await runtime.start(plan)
    print("started", flush=True)
    await asyncio.sleep(600)
asyncio.run(main())
"""


def test_the_keeper_outlives_a_killed_command(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await runtime.plan(Topology.of(1, 1), "a", STAND_INS)
        code = COMMAND.format(tests=str(Path(__file__).parent), home=str(runtime.home.root))
        command = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        assert command.stdout is not None
        assert [await command.stdout.readline() for _ in range(2)] == [b"starting\n", b"started\n"]
        command.kill()
        await command.wait()
        deployment = await runtime.deployment("a")
        assert [m.running for m in deployment.members] == [True, True]
        assert identity(deployment.keeper_pid or 0) is not None
        assert (await runtime.start(await runtime.plan(name="a"))).keeper_pid == deployment.keeper_pid
        assert (await runtime.stop("a")).is_clean

    run(scenario())


@pytest.mark.parametrize("after_s", [0.0, 0.1, 0.2, 0.3, 0.4, 0.6])
def test_a_command_killed_while_it_starts_leaves_something_to_work_with(runtime: LocalRuntime, after_s: float) -> None:
    async def scenario() -> None:
        plan = await runtime.plan(Topology.of(1, 1), "a", STAND_INS)
        code = COMMAND.format(tests=str(Path(__file__).parent), home=str(runtime.home.root))
        command = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
        assert command.stdout is not None
        assert await command.stdout.readline() == b"starting\n"
        await asyncio.sleep(after_s)  # any moment will do: that is the point
        command.kill()
        await command.wait()
        await until(lambda: is_unlocked(plan.directory))  # a keeper on its way keeps the others waiting
        assert (await runtime.start(await runtime.plan(name="a"))).is_up
        report = await runtime.stop("a")
        assert (report.is_clean, len(report.checked_pids)) == (True, 3)

    run(scenario())


def is_unlocked(directory: Path) -> bool:
    try:
        with keeper_link.command_lock(directory, "look"):
            return True
    except Busy:
        return False


def test_a_keeper_that_nobody_waits_for_any_more_serves(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        plan = await runtime.plan(Topology.of(1, 1), "a", STAND_INS)
        plan.write_files(keeper_link.socket_path(plan.directory), "pdeathsig")
        reader, writer = os.pipe()
        os.close(reader)
        with keeper_link.command_lock(plan.directory, "start") as lock:
            handles = [lock, writer]
            command = [sys.executable, "-P", "-m", "drillyard.runtimes.keeper", str(plan.directory), *map(str, handles)]
            await asyncio.to_thread(subprocess.run, command, pass_fds=handles, check=True, timeout=30)
        os.close(writer)
        await until(lambda: keeper_link.socket_path(plan.directory).exists())
        await until(lambda: has_served(plan.out_path("tikv0"), 1))
        assert (await runtime.deployment("a")).is_up

    run(scenario())


def test_a_keeper_without_its_socket_is_named_and_down_ends_it_gently(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeper_link, "NO_SOCKET_S", 0.1)

    async def scenario() -> None:
        deployment = await up(runtime)
        keeper_link.socket_path(deployment.directory).unlink()
        with pytest.raises(KeeperFailed, match="has no socket; `drillyard down` ends it"):
            await runtime.deployment("a")
        report = await runtime.stop("a")
        assert (report.is_clean, set(report.stopped), report.killed) == (True, {"pd0", "tikv0"}, ())

    run(scenario())


def test_a_terminated_keeper_stops_its_members_in_order(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        assert deployment.keeper_pid is not None
        known = identity(deployment.keeper_pid)
        os.kill(deployment.keeper_pid, signal.SIGTERM)
        assert await asyncio.to_thread(keeper_link.wait_gone, [(deployment.keeper_pid, known)], 10) == ()
        after = await runtime.deployment("a")
        assert [str(m.exit) for m in after.members] == ["exit code 0, asked, down"] * 2

    run(scenario())


def test_a_keeper_that_hangs_is_named_and_down_ends_it(runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        known = members_of(deployment)
        assert deployment.keeper_pid is not None
        monkeypatch.setattr(keeper_link, "ANSWER_S", 0.2)
        monkeypatch.setattr("drillyard.runtimes.local.STOP_MARGIN_S", -29.5)
        os.kill(deployment.keeper_pid, signal.SIGSTOP)
        with pytest.raises(KeeperFailed, match="does not answer"):
            await runtime.deployment("a")
        report = await runtime.stop("a")
        assert report.is_clean
        assert set(report.killed) == {"pd0", "tikv0"}
        assert keeper_link.wait_gone(known, 0) == ()

    run(scenario())


def test_a_pid_that_came_round_again_is_never_signalled(runtime: LocalRuntime) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:

        async def scenario() -> None:
            deployment = await up(runtime)
            kill_keeper(deployment)
            book = journal.Journal(deployment.directory / "journal.jsonl")
            book.write(journal.STARTED, "pd0", pid=stranger.pid, identity="another-start")
            assert (await runtime.stop("a")).is_clean
            assert stranger.poll() is None
            end = (await runtime.deployment("a")).member("pd0").exit
            assert end is not None
            assert end.note == "keeper lost"

        run(scenario())
        assert not signal_if_same(stranger.pid, "another-start", signal.SIGKILL)
        assert stranger.poll() is None
        assert signal_if_same(stranger.pid, identity(stranger.pid) or "", signal.SIGKILL)
        assert stranger.wait(10) == -signal.SIGKILL
        assert identity(stranger.pid) is None
    finally:
        stranger.kill()
        stranger.wait()


def test_members_that_a_lost_keeper_left_running_are_swept(runtime: LocalRuntime) -> None:
    """Where the kernel does not end them (and on Linux, if that ever failed), the next command does."""
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    try:

        async def scenario() -> None:
            deployment = await up(runtime)
            kill_keeper(deployment)
            book = journal.Journal(deployment.directory / "journal.jsonl")
            book.write(journal.STARTED, "tikv0", pid=left.pid, identity=identity(left.pid))
            end = (await runtime.deployment("a")).member("tikv0").exit
            assert end is not None
            assert (end.asked, end.note) == (False, "keeper lost, swept")

        run(scenario())
        assert left.wait(10) == -signal.SIGKILL
    finally:
        left.kill()
        left.wait()


def test_the_guard_ends_the_members_where_the_kernel_does_not(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("drillyard.runtimes.local.GUARD", "pipe")

    async def scenario() -> None:
        deployment = await up(runtime, tikv=2)
        gone = (await runtime.deployment("a")).member("tikv1").pid
        await runtime.kill_member("a", "tikv1")
        known = members_of(await runtime.deployment("a"))
        assert (len(known), gone in dict(known)) == (2, False)
        kill_keeper(deployment)
        assert await asyncio.to_thread(keeper_link.wait_gone, known, 10) == ()
        await until(lambda: not keeper_link.is_alive(deployment.directory))  # the guard holds the lock until it is done
        assert not (await runtime.deployment("a")).is_up
        again = await runtime.start(await runtime.plan(name="a"))
        await until(lambda: all(has_served(m.out_path, 2) for m in again.members))
        report = await runtime.stop("a")  # the guard goes with its keeper
        assert (report.is_clean, report.killed) == (True, ())
        await until(lambda: not keeper_link.is_alive(deployment.directory))

    run(scenario())


def test_a_second_command_is_told_who_is_at_work(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        plan = await runtime.plan(Topology.of(1, 1), "a", STAND_INS)
        with (
            keeper_link.command_lock(plan.directory, "start"),
            pytest.raises(Busy, match=rf"start \(pid {os.getpid()}\)"),
        ):
            await runtime.start(plan)
        assert not (await runtime.deployment("a")).is_up
        await runtime.start(plan)
        with keeper_link.command_lock(plan.directory, "stop"), pytest.raises(Busy, match=r"stop \(pid"):
            await runtime.stop("a")

    run(scenario())


def test_two_starts_at_once_make_one_keeper(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        plan = await runtime.plan(Topology.of(1, 1), "a", STAND_INS)
        outcomes = await asyncio.gather(*(runtime.start(plan) for _ in range(4)), return_exceptions=True)
        started = [o for o in outcomes if isinstance(o, Deployment)]
        assert len(started) == 1
        assert all(isinstance(o, Deployment | Busy) for o in outcomes)
        whats = [r["what"] for r in journal.read(plan.directory / "journal.jsonl")]
        assert whats.count(journal.KEEPER_STARTED) == 1

    run(scenario())


def test_a_start_after_an_abandoned_stop_waits_for_it(runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plans.GRACE_S, Role.TIKV, 2.0)

    async def scenario() -> None:
        first = await up(runtime, behaviours={"tikv0": "ignore-term"})
        _, writer = await asyncio.open_unix_connection(keeper_link.socket_path(first.directory))
        writer.write(json.dumps({"id": 1, "do": "stop-all"}).encode() + b"\n")
        writer.close()
        await until(lambda: "stopping" in (first.directory / "journal.jsonl").read_text())
        now = await runtime.deployment("a")
        assert (now.is_up, now.is_stopping) == (False, True)
        with pytest.raises(WrongState, match="the deployment is stopping"):
            await runtime.restart_member("a", "pd0")
        second = await runtime.start(await runtime.plan(name="a"))
        assert (second.is_up, second.keeper_pid != first.keeper_pid) == (True, True)
        assert [m.running for m in second.members] == [True, True]

    run(scenario())


def test_garbage_on_the_socket_is_answered_and_harms_nobody(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        reader, writer = await asyncio.open_unix_connection(keeper_link.socket_path(deployment.directory))
        writer.write(b'garbage\n[]\n{"id": 1}\n{"id": 2, "do": "fly"}\n{"id": 3, "do": "fly", "member": "pd0"}\n')
        answers = [json.loads(await reader.readline()) for _ in range(5)]
        assert [(a["id"], a["ok"]) for a in answers] == [(None, False)] * 3 + [(2, False), (3, False)]
        writer.write(b"x" * (2 << 20))
        with contextlib.suppress(ConnectionError):  # hung up on
            assert await reader.read() == b""
        assert [m.running for m in (await runtime.deployment("a")).members] == [True, True]

    run(scenario())


def test_a_reader_that_sleeps_does_not_hold_the_keeper_up(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        _, writer = await asyncio.open_unix_connection(keeper_link.socket_path(deployment.directory), limit=1024)
        writer.write(b'{"id": 1, "do": "subscribe"}\n')
        request = b'{"id": 2, "do": "status"}\n'
        for _ in range(3000):  # far more answers than the socket holds
            writer.write(request)
        assert (await runtime.kill_member("a", "pd0")).asked

    run(scenario())


def test_the_keeper_loads_little() -> None:
    code = "import sys, drillyard.runtimes.keeper; print(*sys.modules)"
    loaded = set(subprocess.check_output([sys.executable, "-P", "-c", code], text=True).split())
    assert "drillyard.runtimes.journal" in loaded
    assert not loaded & {"asyncio", "h2", "rocksdict", "psutil", "pydantic", "dataclasses", "subprocess"}


def test_a_full_disk_delays_the_journal_and_ends_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "journal"
    book = journal.Journal(path)
    write, room = os.write, [20]

    def write_little(file: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, "no space")
        written = write(file, data[: room[0]])
        room[0] -= written
        return written

    monkeypatch.setattr(os, "write", write_little)
    assert book.write(journal.STARTED, "pd0", pid=1, identity="x")["pid"] == 1
    book.write(journal.STOPPING, "pd0", by="stop")
    assert journal.read(path) == []
    room[0] = 10_000
    book.write(journal.EXITED, "pd0", code=0)
    assert [r["what"] for r in journal.read(path)] == [journal.STARTED, journal.STOPPING, journal.EXITED]


@pytest.mark.parametrize("torn", [b'{"at": 1, "what": "exi', b"\xff\xfe", b"[]\n", b'{"at": 1}\n'])
def test_a_torn_line_costs_only_itself(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "journal"
    first = journal.Journal(path)
    first.write(journal.STARTED, "pd0", pid=1, identity="x")
    first.close()
    with path.open("ab") as file:
        file.write(torn)
    second = journal.Journal(path)
    second.write(journal.EXITED, "pd0", code=0)
    assert [r["what"] for r in journal.read(path)] == [journal.STARTED, journal.EXITED]
