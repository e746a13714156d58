"""Every cause that processes of this machine can have, brought about for real: this one is named, and no other."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from broken_members import FEW_FILES, HANG, MUTE, PORT_TAKEN, SLOW_CLOCK, SLOW_DISK, SLOW_START, SMALL_DISK, broken
from shell import Ran, Shell
from tikv_members import wait_until

import tikv
from drillyard.faces import exits
from drillyard.topology import Role
from ports import free_port

provokes = pytest.mark.provokes


def up(drillyard: Shell, *words: str) -> Ran:
    return drillyard("up", *words, "--json")


def bring_up(drillyard: Shell, *words: str) -> None:
    """On ports of its own: those that `up` chooses are free for the test beside this one as soon as the keeper is gone,
    and a deployment that comes back wants its own."""
    ran = up(drillyard, "--topology", str(drillyard.topology()), *words)
    assert ran.code == 0, ran


def cause_in(ran: Ran) -> dict[str, Any]:
    """The cause that a command told; every one says what it means for the data, and what to do."""
    cause: dict[str, Any] = ran.document["error"]["cause"]
    assert cause, ran
    assert cause["text"]
    assert cause["data"]
    assert cause["mend"]
    return cause


def check(drillyard: Shell) -> dict[str, Any]:
    return cause_in(drillyard("verify", "--json"))


def members(drillyard: Shell) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in drillyard("status", "--json").document["deployment"]["members"]}


def member(drillyard: Shell, name: str) -> dict[str, Any]:
    return members(drillyard)[name]


def pid_of(drillyard: Shell, name: str) -> int:
    return int(member(drillyard, name)["pid"])


def data_of(drillyard: Shell, name: str) -> Path:
    return drillyard.home / "deployments" / "default" / "data" / name


# --- somebody did it -------------------------------------------------------------------------------------------------


def end(drillyard: Shell, name: str, number: int) -> None:
    os.kill(pid_of(drillyard, name), number)
    wait_until(f"the end of {name}", lambda: member(drillyard, name)["state"] == "exited")


@provokes("killed")
def test_killed(drillyard: Shell) -> None:
    bring_up(drillyard)
    end(drillyard, "tikv1", signal.SIGKILL)
    cause = check(drillyard)
    assert (cause["name"], cause["members"]) == ("killed", ["tikv1"])
    assert cause["mend"] == "`drillyard start tikv1`"


@provokes("crashed")
def test_crashed(drillyard: Shell) -> None:
    bring_up(drillyard)
    end(drillyard, "pd2", signal.SIGSEGV)
    cause = check(drillyard)
    assert (cause["name"], cause["members"]) == ("crashed", ["pd2"])


@provokes("paused", "stopped", "region-quorum-lost", "pd-quorum-lost")
def test_what_is_done_on_request_one_after_another(drillyard: Shell) -> None:
    bring_up(drillyard)
    assert drillyard("pause", "tikv2").code == 0
    assert (check(drillyard)["name"], check(drillyard)["members"]) == ("paused", ["tikv2"])
    assert drillyard("resume", "tikv2").code == 0
    assert drillyard("stop", "tikv1").code == 0
    assert (check(drillyard)["name"], check(drillyard)["members"]) == ("stopped", ["tikv1"])
    assert drillyard("kill", "tikv0").code == 0
    cause = check(drillyard)
    assert (cause["name"], cause["members"]) == ("region-quorum-lost", ["tikv0", "tikv1"])
    assert "tikv0 was killed on request, tikv1 was stopped on request" in cause["text"]
    assert drillyard("kill", "pd0").code == 0
    assert drillyard("pause", "pd1").code == 0
    cause = check(drillyard)
    assert (cause["name"], cause["members"]) == ("pd-quorum-lost", ["pd0", "pd1"])
    assert "pd0 was killed on request, pd1 is paused" in cause["text"]


@provokes("paused")
def test_stopped_by_a_signal_from_outside(drillyard: Shell) -> None:
    bring_up(drillyard)
    os.kill(pid_of(drillyard, "tikv0"), signal.SIGSTOP)
    assert (check(drillyard)["name"], check(drillyard)["members"]) == ("paused", ["tikv0"])


# --- how it was started ----------------------------------------------------------------------------------------------


def topology(drillyard: Shell, tmp_path: Path, name: str, line: str) -> str:
    """A topology in which one member has one line more."""
    path = drillyard.topology()
    path.write_text(path.read_text().replace(f'name = "{name}"\n', f'name = "{name}"\n{line}\n'))
    return str(path)


@provokes("bad-flag")
def test_bad_flag(drillyard: Shell, tmp_path: Path) -> None:
    cause = cause_in(up(drillyard, "--topology", topology(drillyard, tmp_path, "tikv1", 'flags = ["--no-such=1"]')))
    assert (cause["name"], cause["members"]) == ("bad-flag", ["tikv1"])
    assert "--no-such" in cause["text"]


@provokes("bad-config")
def test_bad_config(drillyard: Shell, tmp_path: Path) -> None:
    cause = cause_in(up(drillyard, "--topology", topology(drillyard, tmp_path, "pd1", 'config = {"lease" = "often"}')))
    assert (cause["name"], cause["members"]) == ("bad-config", ["pd1"])


@provokes("cannot-run")
def test_cannot_run(drillyard: Shell, tmp_path: Path) -> None:
    server = tmp_path / "tikv-server"
    server.write_text("#!/no/such/interpreter\n")
    server.chmod(0o755)
    cause = cause_in(up(drillyard, "--tikv-binary", str(server)))
    assert cause["name"] == "cannot-run"


@provokes("wrong-architecture")
def test_wrong_architecture(drillyard: Shell, tmp_path: Path) -> None:
    server = tmp_path / "tikv-server"
    header = bytearray(Path(sys.executable).resolve().read_bytes()[:4096])
    header[18:20] = (0xF7, 0x00)  # e_machine: one that is not this machine's
    server.write_bytes(header)
    server.chmod(0o755)
    assert cause_in(up(drillyard, "--tikv-binary", str(server)))["name"] == "wrong-architecture"


@provokes("open-files")
def test_open_files(drillyard: Shell, tmp_path: Path) -> None:
    server = broken(tmp_path / "bin", Role.TIKV, FEW_FILES, only="tikv2")
    cause = cause_in(up(drillyard, "--tikv-binary", server, "--timeout", "20"))
    assert (cause["name"], cause["members"]) == ("open-files", ["tikv2"])


@provokes("unknown")
def test_an_end_that_nobody_can_explain(drillyard: Shell, tmp_path: Path) -> None:
    how = 'print("the flux capacitor is empty"); sys.exit(7)'
    ran = up(drillyard, "--tikv-binary", broken(tmp_path / "bin", Role.TIKV, how, only="tikv1"))
    cause = cause_in(ran)
    assert (cause["name"], cause["members"]) == ("unknown", ["tikv1"])
    assert "tikv1 ended with exit code 7" in cause["text"]
    assert "the flux capacitor is empty" in ran.document["error"]["log_lines"]
    assert Path(ran.document["error"]["evidence"]).is_dir()


@provokes("port-taken")
def test_port_taken_by_whom(drillyard: Shell) -> None:
    bring_up(drillyard)
    assert drillyard("stop", "tikv1").code == 0
    host, port = member(drillyard, "tikv1")["addresses"]["client"].split(":")
    with socket.create_server((host, int(port))):
        ran = drillyard("start", "tikv1")
    assert ran.code == exits.COULD_NOT_START
    assert f"port {port}, wanted by tikv1, is taken by pid {os.getpid()}" in ran.err


@provokes("port-taken")
def test_port_taken_at_the_last_moment(drillyard: Shell, tmp_path: Path) -> None:
    server = broken(tmp_path / "bin", Role.TIKV, PORT_TAKEN, only="tikv1")
    cause = cause_in(up(drillyard, "--tikv-binary", server))
    assert (cause["name"], cause["members"]) == ("port-taken", ["tikv1"])


# --- what is on the disk ---------------------------------------------------------------------------------------------


def lose_data(drillyard: Shell, name: str) -> None:
    assert drillyard("stop", name).code == 0
    shutil.rmtree(data_of(drillyard, name))


def cause_of_start(drillyard: Shell, name: str) -> dict[str, Any]:
    drillyard("start", name)
    return cause_in(drillyard("verify", "--wait", "--timeout", "10", "--json"))


@provokes("cluster-id-mismatch")
def test_cluster_id_mismatch(drillyard: Shell) -> None:
    bring_up(drillyard)
    assert drillyard("down").code == 0
    for pd in ("pd0", "pd1", "pd2"):
        shutil.rmtree(data_of(drillyard, pd))
    cause = cause_in(up(drillyard))
    assert cause["name"] == "cluster-id-mismatch"


@provokes("foreign-cluster")
def test_foreign_cluster(drillyard: Shell) -> None:
    bring_up(drillyard)
    assert drillyard("down").code == 0
    for name in ("pd0", "pd1", "pd2", "tikv0", "tikv1", "tikv2"):
        shutil.rmtree(data_of(drillyard, name))
    cause = cause_in(up(drillyard, "--timeout", "10"))
    assert cause["name"] == "foreign-cluster"


@provokes("pd-data-lost")
def test_pd_data_lost(drillyard: Shell) -> None:
    bring_up(drillyard)
    lose_data(drillyard, "pd1")
    cause = cause_of_start(drillyard, "pd1")
    assert (cause["name"], cause["members"]) == ("pd-data-lost", ["pd1"])


@provokes("duplicate-store-address")
def test_duplicate_store_address(drillyard: Shell) -> None:
    bring_up(drillyard)
    lose_data(drillyard, "tikv1")
    cause = cause_of_start(drillyard, "tikv1")
    assert (cause["name"], cause["members"]) == ("duplicate-store-address", ["tikv1"])


@provokes("not-its-data")
def test_not_its_data(drillyard: Shell) -> None:
    bring_up(drillyard)
    lose_data(drillyard, "tikv1")
    data_of(drillyard, "tikv1").mkdir()
    (data_of(drillyard, "tikv1") / "holiday.jpg").write_bytes(b"sand")
    cause = cause_of_start(drillyard, "tikv1")
    assert (cause["name"], cause["members"]) == ("not-its-data", ["tikv1"])


@provokes("data-corrupted", "newer-format")
def test_data_that_is_damaged_or_of_a_later_version(drillyard: Shell) -> None:
    bring_up(drillyard)
    assert drillyard("stop", "tikv1").code == 0
    data = data_of(drillyard, "tikv1")
    (manifest,) = (data / "db").glob("MANIFEST-*")
    whole = manifest.read_bytes()
    manifest.write_bytes(whole[:-9] + bytes(byte ^ 0xFF for byte in whole[-9:]))
    cause = cause_of_start(drillyard, "tikv1")
    assert (cause["name"], cause["members"]) == ("data-corrupted", ["tikv1"])
    manifest.write_bytes(whole)
    identity = data / "drillyard.json"
    identity.write_text(re.sub(r'"format": \d+', '"format": 9999', identity.read_text()))
    cause = cause_of_start(drillyard, "tikv1")
    assert (cause["name"], cause["members"]) == ("newer-format", ["tikv1"])


@provokes("data-in-use")
def test_data_in_use(drillyard: Shell) -> None:
    bring_up(drillyard)
    deployed = member(drillyard, "tikv1")
    argv = Path(f"/proc/{deployed['pid']}/cmdline").read_bytes().split(b"\0")[:-1]
    assert drillyard("stop", "tikv1").code == 0
    ports = {b"addr": free_port(), b"status-addr": free_port()}
    elsewhere = [
        re.sub(rb"^--(addr|status-addr)=(.*):\d+$", lambda m: b"--%s=%s:%d" % (m[1], m[2], ports[m[1]]), a)
        for a in argv
    ]
    other = subprocess.Popen(elsewhere)
    try:
        wait_until("the other one", lambda: socket.socket().connect_ex(("127.0.0.1", ports[b"addr"])) == 0)
        cause = cause_of_start(drillyard, "tikv1")
    finally:
        other.kill()
        other.wait()
    assert (cause["name"], cause["members"]) == ("data-in-use", ["tikv1"])


@provokes("disk-full")
def test_a_disk_that_fills_up(drillyard: Shell, tmp_path: Path) -> None:
    bring_up(drillyard, "--tikv-binary", broken(tmp_path / "bin", Role.TIKV, SMALL_DISK, only="tikv1"))
    endpoints = drillyard("connect").out.splitlines()[0].split(",")
    with tikv.RawClient(endpoints) as client:
        for number in range(400):
            client.put(b"key %d" % number, bytes(50_000))
            if member(drillyard, "tikv1")["state"] != "running":
                break
    cause = check(drillyard)
    assert (cause["name"], cause["members"]) == ("disk-full", ["tikv1"])


@provokes("disk-full")
def test_a_disk_that_is_too_full_for_writes(drillyard: Shell, tmp_path: Path) -> None:
    path = drillyard.topology(tikv=1)
    reserve = 'config = {"storage.reserve-space" = "900TB"}'  # more than any disk here has left
    path.write_text(path.read_text().replace('name = "tikv0"', f'name = "tikv0"\n{reserve}'))
    cause = cause_in(up(drillyard, "--topology", str(path), "--timeout", "8"))
    assert (cause["name"], cause["members"]) == ("disk-full", ["tikv0"])


# --- members that run ------------------------------------------------------------------------------------------------


@provokes("slow-start")
def test_slow_start(drillyard: Shell, tmp_path: Path) -> None:
    server = broken(tmp_path / "bin", Role.TIKV, SLOW_START, only="tikv1")
    cause = cause_in(up(drillyard, "--tikv-binary", server, "--timeout", "6"))
    assert (cause["name"], cause["members"]) == ("slow-start", ["tikv1"])
    assert "verify --wait" in cause["mend"]


@provokes("hang")
def test_hang(drillyard: Shell, tmp_path: Path) -> None:
    server = broken(tmp_path / "bin", Role.TIKV, HANG, only="tikv1")
    cause = cause_in(up(drillyard, "--tikv-binary", server, "--timeout", "12"))
    assert (cause["name"], cause["members"]) == ("hang", ["tikv1"])


@provokes("not-serving")
def test_not_serving(drillyard: Shell, tmp_path: Path) -> None:
    server = broken(tmp_path / "bin", Role.TIKV, MUTE)
    cause = cause_in(up(drillyard, "--tikv-binary", server, "--timeout", "12"))
    assert cause["name"] == "not-serving"


@provokes("slow-disk")
def test_slow_disk(drillyard: Shell, tmp_path: Path) -> None:
    server = broken(tmp_path / "bin", Role.TIKV, SLOW_DISK)
    cause = cause_in(up(drillyard, "--tikv-binary", server, "--timeout", "15"))
    assert cause["name"] == "slow-disk"


@provokes("clock-jump")
def test_clock_jump(drillyard: Shell, tmp_path: Path) -> None:
    cause = cause_in(up(drillyard, "--pd-binary", broken(tmp_path / "bin", Role.PD, SLOW_CLOCK), "--timeout", "8"))
    assert cause["name"] == "clock-jump"
    assert re.search(r"36\d\d s behind", cause["text"])


@provokes("machine-slept")
def test_machine_slept(drillyard: Shell, tmp_path: Path) -> None:
    server = broken(tmp_path / "bin", Role.TIKV, HANG, only="tikv1")  # so that there is something to wait for
    waiting = drillyard.begin("up", "--tikv-binary", server, "--timeout", "12", "--json")
    wait_until("the start", lambda: drillyard("list", "--json").document["deployments"] != [])

    def started() -> list[int] | None:  # by one question: `up` does not wait for the command line
        pids = [one["pid"] for name, one in members(drillyard).items() if name != "tikv1"]
        return pids if all(pids) else None

    def looks() -> bool:  # what it slept through before it cannot know
        return any(one.status == psutil.CONN_ESTABLISHED for one in psutil.Process(waiting.pid).net_connections("tcp"))

    pids = [waiting.pid, *wait_until("all members", started)]
    wait_until("its first look", looks)
    assert waiting.poll() is None
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(5)
    for pid in pids:
        os.kill(pid, signal.SIGCONT)
    out, err = waiting.communicate(timeout=60)
    cause = cause_in(Ran(waiting.returncode, out, err))
    assert cause["name"] == "machine-slept"


@provokes("keeper-lost")
def test_keeper_lost(drillyard: Shell) -> None:
    bring_up(drillyard)
    keeper = psutil.Process(pid_of(drillyard, "tikv1")).ppid()
    os.kill(keeper, signal.SIGKILL)
    wait_until("the end of all", lambda: member(drillyard, "tikv1")["state"] == "exited")
    cause = check(drillyard)
    assert cause["name"] == "keeper-lost"
    assert cause["mend"] == "`drillyard up`"
    assert drillyard("up").code == 0


@provokes("killed")
def test_killed_gently(drillyard: Shell) -> None:
    bring_up(drillyard)
    end(drillyard, "tikv1", signal.SIGTERM)
    cause = check(drillyard)
    assert (cause["name"], cause["members"]) == ("killed", ["tikv1"])
