"""A deployment's life with stand-ins for its members: start, exits, requests, stop and its proof."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
from pathlib import Path

import psutil
import pytest
from standins import STAND_INS, has_served, run, until, up

from drillyard.runtimes import journal
from drillyard.runtimes.abilities import Deployment, EventKind, NoSuchDeployment, NoSuchMember, WrongState
from drillyard.runtimes.local import LocalRuntime
from drillyard.runtimes.processes import identity
from drillyard.topology import Topology


def pid_of(deployment: Deployment, member: str) -> int:
    pid = deployment.member(member).pid
    assert pid is not None
    return pid


def test_start_then_stop_with_proof(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime, pd=3, tikv=3)
        assert deployment.is_up
        assert [m.running for m in deployment.members] == [True] * 6
        pids = {pid_of(deployment, m.name) for m in deployment.members}
        report = await runtime.stop("a")
        assert report.is_clean
        assert (set(report.stopped), report.killed) == ({m.name for m in deployment.members}, ())
        assert set(report.checked_pids) == pids | {deployment.keeper_pid}
        assert len(report.checked_ports) == 12
        assert not any(identity(pid) for pid in report.checked_pids)
        down = await runtime.deployment("a")
        assert not down.is_up
        assert all(m.exit is not None and m.exit.asked and m.exit.code == 0 for m in down.members)

    run(scenario())


def test_stores_stop_before_pd(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime, pd=2, tikv=2)
        await runtime.stop("a")
        records = journal.read(deployment.directory / "journal.jsonl")
        order = [(r["what"], r["member"][:-1]) for r in records if r["what"] in (journal.STOPPING, journal.EXITED)]
        assert order[:4] == sorted(order[:4], key=lambda o: o[0] == journal.EXITED)
        assert [role for _, role in order] == ["tikv"] * 4 + ["pd"] * 4

    run(scenario())


def test_an_exit_is_recorded_with_code_and_not_asked(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await up(runtime, behaviours={"tikv0": "exit:3"})
        events = [event async for event in _until_exit(runtime)]
        how = events[-1].exit
        assert how is not None
        assert (events[-1].member, how.code, how.signal, how.asked) == ("tikv0", 3, None, False)
        now = await runtime.deployment("a")
        assert (now.member("tikv0").running, now.member("pd0").running) == (False, True)
        assert str(now.member("tikv0").exit) == "exit code 3, unexpected"

    run(scenario())


async def _until_exit(runtime: LocalRuntime):  # type: ignore[no-untyped-def]
    async for event in runtime.watch("a"):
        yield event
        if event.kind is EventKind.EXITED:
            return


def test_a_signal_from_outside_is_recorded_and_pushed(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        events = _until_exit(runtime)
        replayed = [await anext(events), await anext(events)]
        assert {(e.member, e.kind, e.is_replay) for e in replayed} == {
            ("pd0", EventKind.STARTED, True),
            ("tikv0", EventKind.STARTED, True),
        }
        os.kill(pid_of(deployment, "pd0"), signal.SIGKILL)
        event = await anext(events)
        assert event.exit is not None
        assert (event.member, event.kind, event.is_replay) == ("pd0", EventKind.EXITED, False)
        assert (event.exit.code, event.exit.signal_name, event.exit.asked) == (None, "SIGKILL", False)
        await events.aclose()

    run(scenario())


def test_kill_stop_start_and_restart_of_one_member(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        killed = await runtime.kill_member("a", "tikv0")
        assert (killed.signal_name, killed.asked, killed.note) == ("SIGKILL", True, "kill")
        with pytest.raises(WrongState, match="tikv0 does not run"):
            await runtime.stop_member("a", "tikv0")
        await runtime.start_member("a", "tikv0")
        with pytest.raises(WrongState, match="tikv0 runs already"):
            await runtime.start_member("a", "tikv0")
        await until(lambda: has_served(deployment.member("tikv0").out_path, 2))
        stopped = await runtime.stop_member("a", "tikv0")
        assert (stopped.code, stopped.asked, stopped.note) == (0, True, "stop")
        await runtime.restart_member("a", "tikv0")  # one that does not run is started
        await until(lambda: has_served(deployment.member("tikv0").out_path, 3))
        await runtime.restart_member("a", "tikv0")
        await until(lambda: has_served(deployment.member("tikv0").out_path, 4))
        now = (await runtime.deployment("a")).member("tikv0")
        assert (now.running, now.starts) == (True, 4)
        assert now.exit is not None
        assert (now.exit.note, now.exit.asked) == ("restart", True)

    run(scenario())


def test_the_request_is_written_before_it_is_carried_out(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        await runtime.kill_member("a", "pd0")
        whats = [r["what"] for r in journal.read(deployment.directory / "journal.jsonl") if r.get("member") == "pd0"]
        assert whats == [journal.STARTED, journal.STOPPING, journal.EXITED]

    run(scenario())


def test_pause_and_resume(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        pid = pid_of(deployment, "pd0")
        await runtime.pause_member("a", "pd0")
        assert psutil.Process(pid).status() == psutil.STATUS_STOPPED
        assert (await runtime.deployment("a")).member("pd0").paused
        with pytest.raises(WrongState, match="paused already"):
            await runtime.pause_member("a", "pd0")
        await runtime.resume_member("a", "pd0")
        assert psutil.Process(pid).status() != psutil.STATUS_STOPPED
        with pytest.raises(WrongState, match="not paused"):
            await runtime.resume_member("a", "pd0")

    run(scenario())


def test_a_pause_by_somebody_else_is_seen(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        events = runtime.watch("a")
        for _ in deployment.members:
            await anext(events)
        os.kill(pid_of(deployment, "tikv0"), signal.SIGSTOP)
        assert (await anext(events)).kind is EventKind.PAUSED
        os.kill(pid_of(deployment, "tikv0"), signal.SIGCONT)
        assert (await anext(events)).kind is EventKind.RESUMED

    run(scenario())


def test_a_paused_member_can_be_stopped_restarted_and_killed(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        await runtime.pause_member("a", "tikv0")
        assert (await runtime.stop_member("a", "tikv0")).code == 0
        await runtime.start_member("a", "tikv0")
        await until(lambda: has_served(deployment.member("tikv0").out_path, 2))
        await runtime.pause_member("a", "tikv0")
        await runtime.restart_member("a", "tikv0")
        await until(lambda: has_served(deployment.member("tikv0").out_path, 3))
        await runtime.pause_member("a", "tikv0")
        assert (await runtime.kill_member("a", "tikv0")).signal_name == "SIGKILL"
        await runtime.pause_member("a", "pd0")
        assert (await runtime.stop("a")).is_clean

    run(scenario())


def test_a_member_that_ignores_the_request_is_killed_after_its_grace(
    runtime: LocalRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    from drillyard.runtimes import plans
    from drillyard.topology import Role

    monkeypatch.setitem(plans.GRACE_S, Role.TIKV, 0.3)

    async def scenario() -> None:
        await up(runtime, behaviours={"tikv0": "ignore-term"})
        one = await runtime.stop_member("a", "tikv0")
        assert (one.signal_name, one.asked, one.note) == ("SIGKILL", True, "stop, killed after 0.3 s of grace")
        await runtime.start_member("a", "tikv0")
        out = (await runtime.deployment("a")).member("tikv0").out_path
        await until(lambda: has_served(out, 2))
        report = await runtime.stop("a")
        assert (report.stopped, report.killed, report.is_clean) == (("tikv0", "pd0"), ("tikv0",), True)

    run(scenario())


def test_a_kill_ends_a_stop_that_waits(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await up(runtime, behaviours={"tikv0": "ignore-term"})
        stopping = asyncio.create_task(runtime.stop_member("a", "tikv0"))
        async for event in runtime.watch("a"):
            if event.kind is EventKind.STOPPING:
                break
        await runtime.kill_member("a", "tikv0")
        assert (await stopping).signal_name == "SIGKILL"

    run(scenario())


def test_an_executable_that_cannot_run_is_an_exit_with_words(runtime: LocalRuntime, tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("#!/nowhere/at/all\n")
    broken.chmod(0o755)

    async def scenario() -> None:
        from drillyard.runtimes.plans import Executable, Executables

        executables = Executables(STAND_INS.pd, Executable.real(broken))
        await runtime.start(await runtime.plan(Topology.of(1, 1), "a", executables))
        async for event in runtime.watch("a"):
            if event.kind is EventKind.EXITED:
                break
        member = (await runtime.deployment("a")).member("tikv0")
        assert member.kind == "real"
        assert member.exit is not None
        assert member.exit.code == 127
        assert f"cannot run {broken}" in member.out_path.read_text()

    run(scenario())


def test_stop_twice_and_delete(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        first = await runtime.stop("a")
        assert deployment.directory / "data" in first.kept
        again = await runtime.stop("a")
        assert (again.is_clean, again.stopped) == (True, ())
        report = await runtime.stop("a", delete_data=True)
        assert (report.data_deleted, report.kept, report.is_clean) == (True, (), True)
        assert not deployment.directory.exists()
        with pytest.raises(NoSuchDeployment, match="there is none yet"):
            await runtime.stop("a")

    run(scenario())


def test_evidence_outlives_the_data(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        (deployment.evidence_dir / "bundle").mkdir()
        report = await runtime.stop("a", delete_data=True)
        assert (report.data_deleted, report.kept) == (True, (deployment.evidence_dir,))
        assert list(deployment.directory.iterdir()) == [deployment.evidence_dir]
        assert runtime.names() == ()

    run(scenario())


def test_a_restart_has_the_same_ports_and_data(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        before = await up(runtime, pd=2, tikv=2)
        await runtime.stop("a")
        plan = await runtime.plan(name="a")
        after = await runtime.start(plan)
        assert [m.addresses for m in after.members] == [m.addresses for m in before.members]
        assert [m.argv for m in after.members] == [m.argv for m in before.members]
        await until(lambda: all(has_served(m.out_path, 2) for m in after.members))
        for member in after.members:
            assert (member.data_dir / "starts").read_text().split()[-1] == str(member.pid)
            assert len((member.data_dir / "starts").read_text().split()) == 2
            assert member.starts == 1  # counted from this start of the deployment

    run(scenario())


def test_start_of_what_runs_changes_nothing(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        first = await up(runtime)
        await runtime.kill_member("a", "tikv0")
        again = await runtime.start(await runtime.plan(name="a"))
        assert again.keeper_pid == first.keeper_pid
        assert not again.member("tikv0").running  # somebody's to look at
        await runtime.kill_member("a", "pd0")
        fresh = await runtime.start(await runtime.plan(name="a"))
        assert [m.running for m in fresh.members] == [True, True]

    run(scenario())


def test_everything_is_for_its_owner_only(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        deployment = await up(runtime)
        for path in (runtime.home.root, *deployment.directory.rglob("*")):
            if "__pycache__" not in path.parts:
                assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path

    run(scenario())


def test_misuse_names_what_there_is(runtime: LocalRuntime) -> None:
    async def scenario() -> None:
        await up(runtime)
        with pytest.raises(NoSuchMember, match="it has: pd0, tikv0"):
            await runtime.kill_member("a", "tikv9")
        with pytest.raises(NoSuchDeployment, match="there are: a"):
            await runtime.deployment("b")
        await runtime.stop("a")
        with pytest.raises(WrongState, match="is down; bring it up first"):
            await runtime.kill_member("a", "tikv0")

    run(scenario())
