"""The command line on a real Docker daemon when things go wrong: each time the cause is named, and the evidence is
saved before anything is removed."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import struct
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from compose_subject import EMULATED, REAL_PD, docker, inspect, objects_of, remove_project
from shell import Ran, Shell

from drillyard.faces import exits
from drillyard.runtimes.docker import refusal_of

NAME = "broken"
PROJECT = f"drillyard-{NAME}"
QUICK = ("--runtime", "compose", "--name", NAME, "--profile", "laptop")


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path / "home")
    shell.env |= {"PD_IMAGE": EMULATED.pd or "", "TIKV_IMAGE": EMULATED.tikv or ""}
    yield shell
    for plan in (shell.home / "deployments").glob("*/compose.json"):
        shell("down", "--name", plan.parent.name, "--delete-data")
    remove_project(PROJECT)


def up(yard: Shell, *words: str) -> Ran:
    return yard("up", *QUICK, *words, "--json")


def bring_up(yard: Shell, *words: str) -> None:
    ran = up(yard, *words)
    assert ran.code == exits.OK, ran


def container(member: str) -> str:
    return f"{PROJECT}-{member}-1"


def server_pid(member: str) -> str:
    """The server's pid inside its container, where process 1 is run-server."""
    code = "import os; print(*[p for p in os.listdir('/proc') if p.isdigit() and int(p) > 1 and "
    code += "b'drillyard.emulator' in open(f'/proc/{p}/cmdline','rb').read() and "
    code += "b'run-server' not in open(f'/proc/{p}/cmdline','rb').read()])"
    return docker("exec", container(member), "python3", "-c", code).split()[0]


def crash(member: str) -> None:
    """SIGKILL to the server, from inside; who does it may be gone with the container before it can say so."""
    code = f"import os, signal; os.kill({server_pid(member)}, signal.SIGKILL)"
    docker("exec", container(member), "python3", "-c", code, check=False)


def wait_until(what: str, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come about"
        time.sleep(0.05)


def member_of(document: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in document["deployment"]["members"] if one["name"] == name)
    return found


def check_evidence(directory: str, culprit: str) -> None:
    bundle = Path(directory)
    for member in ("pd0", "pd1", "pd2", "tikv0", "tikv1", "tikv2"):
        assert (bundle / "logs" / f"{member}.log").stat().st_size, f"the log of {member}"
        assert json.loads((bundle / "docker" / f"{member}.json").read_text())["State"]
    state = json.loads((bundle / "docker" / f"{culprit}.json").read_text())["State"]
    assert {"ExitCode", "OOMKilled", "Health"} <= state.keys()
    assert (bundle / "deployment" / "docker-compose.yaml").exists()
    assert f" {culprit} die code " in (bundle / "docker" / "events.txt").read_text()


def test_docker_kill_is_no_accident_of_the_member(yard: Shell) -> None:
    bring_up(yard)
    docker("kill", container("tikv1"))
    ran = yard("verify", "--name", NAME, "--json")
    assert ran.code == exits.NOT_READY
    error = ran.document["error"]
    assert (error["gate"], error["culprit"], error["cause"]["name"]) == ("processes", "tikv1", "killed")
    tikv1 = member_of(yard("status", "--name", NAME, "--json").document, "tikv1")
    assert tikv1["exit"] == {"code": None, "signal": "SIGKILL", "asked": False, "oom": False}
    assert tikv1["restarts"] == 0, "who ends a container through Docker is not contradicted by the policy"
    down = yard("down", "--name", NAME, "--json").document["down"]
    check_evidence(down["evidence"], "tikv1")


def test_a_crash_that_the_policy_makes_good_is_counted_and_told(yard: Shell) -> None:
    bring_up(yard)
    crash("pd2")
    wait_until("the restart", lambda: inspect(container("pd2"))["RestartCount"] == 1)
    pd2 = member_of(yard("status", "--name", NAME, "--json").document, "pd2")
    assert (pd2["state"], pd2["restarts"]) == ("running", 1)
    ran = yard("verify", "--name", NAME, "--wait", "--json")
    assert ran.code == exits.OK, ran
    assert "pd2 was restarted once by its policy" in ran.document["report"]["gates"][0]["found"]
    assert "restarted 1x" in yard("status", "--name", NAME).out


def test_a_crash_during_the_wait_ends_it_though_the_policy_makes_it_good(yard: Shell) -> None:
    bring_up(yard)
    assert yard("pause", "tikv0", "--name", NAME).code == 0  # so that there is something to wait for
    waiting = yard.begin("verify", "--wait", "--name", NAME)
    assert waiting.stdout is not None
    for line in waiting.stdout:
        if "the members are reached" in line:
            break
    crash("tikv2")
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == exits.MEMBER_EXITED, out + err
    assert "lost tikv2 (SIGKILL, unexpected" in err
    check_evidence(err.partition("evidence: ")[2].splitlines()[0], "tikv2")


def test_a_restart_by_hand_during_the_wait_ends_it_too(yard: Shell) -> None:
    bring_up(yard)
    assert yard("pause", "tikv0", "--name", NAME).code == 0
    waiting = yard.begin("verify", "--wait", "--name", NAME)
    assert waiting.stdout is not None
    for line in waiting.stdout:
        if "the members are reached" in line:
            break
    docker("restart", container("pd2"))
    out, err = waiting.communicate(timeout=60)
    assert waiting.returncode == exits.MEMBER_EXITED, out + err
    seen = ("signal 15 through Docker", "started again by somebody else")  # between the two runs, or after
    assert any(f"lost pd2 (exit code 0, unexpected, {how})" in err for how in seen), err


@pytest.mark.provokes("removed")
def test_a_container_that_was_removed_is_named(yard: Shell) -> None:
    bring_up(yard)
    docker("rm", "-f", container("tikv1"))
    error = yard("verify", "--name", NAME, "--json").document["error"]
    assert (error["culprit"], error["cause"]["name"]) == ("tikv1", "removed")
    tikv1 = member_of(yard("status", "--name", NAME, "--json").document, "tikv1")
    assert (tikv1["kind"], tikv1["state"]) == ("emulated", "exited")
    assert yard("down", "--name", NAME).code == exits.OK
    assert up(yard).code == exits.OK


def test_a_flag_that_a_server_refuses(yard: Shell, tmp_path: Path) -> None:
    topology = tmp_path / "topology.toml"
    topology.write_text('pd = 3\n[[tikv]]\n[[tikv]]\nflags = ["--no-such-flag=1"]\n[[tikv]]\n')
    ran = yard("up", "--runtime", "compose", "--name", NAME, "--topology", str(topology), "--json")
    assert ran.code == exits.MEMBER_EXITED
    error = ran.document["error"]
    assert (error["culprit"], error["cause"]["name"]) == ("tikv1", "bad-flag")
    assert "--no-such-flag" in error["cause"]["text"]
    check_evidence(error["evidence"], "tikv1")


@pytest.mark.provokes("out-of-memory")
def test_too_little_memory(yard: Shell) -> None:
    yard.env["TIKV_MEMORY"] = "12m"
    ran = up(yard)
    assert ran.code == exits.MEMBER_EXITED
    error = ran.document["error"]
    assert error["cause"]["name"] == "out-of-memory"
    assert "TIKV_MEMORY" in error["cause"]["mend"]
    assert error["culprit"].startswith("tikv")
    check_evidence(error["evidence"], error["culprit"])


def test_volumes_of_another_cluster(yard: Shell) -> None:
    bring_up(yard)
    assert yard("down", "--name", NAME).code == exits.OK
    docker("volume", "rm", *(f"{PROJECT}_pd{at}-data" for at in range(3)))
    ran = up(yard)
    assert ran.code == exits.MEMBER_EXITED
    error = ran.document["error"]
    assert error["cause"]["name"] == "cluster-id-mismatch"
    assert error["culprit"].startswith("tikv")
    check_evidence(error["evidence"], error["culprit"])


def test_a_port_that_somebody_has(yard: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yard.env["PD_PORT"] = str(taken.getsockname()[1])
        ran = up(yard)
        assert ran.code == exits.COULD_NOT_START
        assert (
            f"port {yard.env['PD_PORT']}, wanted by pd0, is taken by pid {os.getpid()}" in ran.document["error"]["text"]
        )
    assert objects_of(PROJECT) == [], "nothing was made"


def test_a_port_that_a_container_has(yard: Shell) -> None:
    holder = docker("run", "-d", "--rm", "-p", "127.0.0.1::9", "drillyard/base:local", "sleep", "60")
    try:
        yard.env["TIKV_PORT"] = docker("port", holder, "9").rpartition(":")[2]
        ran = up(yard)
        name = inspect(holder)["Name"].lstrip("/")
        assert ran.code == exits.COULD_NOT_START
        assert f"wanted by tikv0, is taken by container {name}" in ran.document["error"]["text"]
    finally:
        docker("rm", "-f", holder)


@pytest.fixture
def racing_image(tmp_path: Path) -> Iterator[Callable[[int], str]]:
    """Makes an image whose TiKV loses the race for its first timestamp so many times, as a real one dies of it. (A test
    asks for it before its yard, so that no container uses it when it is removed.)"""
    words = '[FATAL] [lib.rs:480] ["failed to get timestamp from PD: Other(\\"Timestamp channel is dropped\\")"]'
    made = []

    def make(times: int) -> str:
        script = "#!/bin/sh\nlost=$(cat /lost 2>/dev/null || echo 0)\n"
        script += f"if [ $lost -lt {times} ]; then echo $((lost + 1)) >/lost; echo '{words}'; exit 1; fi\n"
        script += 'exec /run-server python3 -P -m drillyard.emulator.tikv.server "$@"\n'
        (tmp_path / "race").write_text(script)
        (tmp_path / "race").chmod(0o755)
        text = f'FROM {EMULATED.tikv}\nCOPY race /race\nENTRYPOINT ["/race"]\n'
        (tmp_path / "Dockerfile").write_text(text)
        tag = f"drillyard/test-race:{times}"
        build = ["docker", "build", "-q", "-t", tag, str(tmp_path)]
        subprocess.run(build, check=True, capture_output=True, env={**os.environ, "DOCKER_BUILDKIT": "0"})
        made.append(tag)
        return tag

    yield make
    for tag in made:
        docker("rmi", "-f", tag)


def test_a_tikv_that_lost_the_race_for_a_timestamp_is_started_once_more(
    racing_image: Callable[[int], str], yard: Shell
) -> None:
    yard.env["TIKV_IMAGE"] = racing_image(1)
    ran = up(yard)
    assert ran.code == exits.OK, ran
    told = [entry["text"] for entry in ran.document["report"]["timeline"]]
    for member in ("tikv0", "tikv1", "tikv2"):
        assert any(text.startswith(member) and "started once more" in text for text in told), told


@pytest.mark.provokes("timestamp-race")
def test_a_tikv_that_loses_it_again_is_not(racing_image: Callable[[int], str], yard: Shell) -> None:
    yard.env["TIKV_IMAGE"] = racing_image(9)
    ran = up(yard)
    assert ran.code == exits.MEMBER_EXITED
    assert ran.document["error"]["cause"]["name"] == "timestamp-race"


def test_tikv_is_not_started_before_pd_grants_timestamps(yard: Shell) -> None:
    ran = up(yard)
    timeline = ran.document["report"]["timeline"]
    granted = next(entry["at"] for entry in timeline if entry["gate"] == "timestamps")
    starts = [entry["at"] for entry in timeline if entry["member"].startswith("tikv") and "started" in entry["text"]]
    assert len(starts) == 3
    assert min(starts) > granted


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 GiB of which less than a fifth is free."""
    path = tmp_path / "small"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", str(path)], check=True)
    try:
        with (path / "fill").open("wb") as fill:
            fill.write(bytes(900 << 20))
        yield path
    finally:
        subprocess.run(["umount", str(path)], check=True)


@pytest.mark.provokes("low-space")
def test_a_disk_that_is_nearly_full_is_up_but_not_replicated(yard: Shell, small_disk: Path) -> None:
    yard.env["PD_IMAGE"] = REAL_PD.pd or ""
    for member in ("tikv1", "tikv2"):  # two, because the store that begins has its replica already
        data = small_disk / member
        data.mkdir()
        options = ("--opt", "type=none", "--opt", f"device={data}", "--opt", "o=bind")
        docker("volume", "create", *options, f"{PROJECT}_{member}-data")
    try:
        ran = yard("up", "--runtime", "compose", "--name", NAME, "--timeout", "20", "--json")
        assert ran.code == exits.NOT_READY, ran
        error = ran.document["error"]
        assert error["gate"] == "replicated"
        assert (error["cause"]["name"], error["cause"]["members"]) == ("low-space", ["tikv1", "tikv2"])
        for member in ("tikv1", "tikv2"):
            assert any(f"{member} is low on space" in lack for lack in error["lacks"]), error["lacks"]
    finally:
        assert yard("down", "--name", NAME, "--delete-data").code == exits.OK


def test_an_image_that_is_nowhere(yard: Shell) -> None:
    yard.env["TIKV_IMAGE"] = "drillyard/no-such-image:1"
    ran = up(yard)
    assert ran.code == exits.COULD_NOT_START
    error = ran.document["error"]
    assert "image drillyard/no-such-image:1 is not here and cannot be pulled" in error["text"]
    assert error["mend"]
    assert objects_of(PROJECT) == []


def foreign_program() -> bytes:
    """The head of an executable for another architecture (ELF, machine 183 AArch64 or 62 x86-64)."""
    machine = 62 if os.uname().machine == "aarch64" else 183
    head = b"\x7fELF" + bytes([2, 1, 1, 0]) + bytes(8)
    head += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return head + struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 0x200, 0x200, 0x1000) + bytes(256)


@pytest.fixture
def foreign_image(tmp_path: Path) -> Iterator[str]:
    """An image for another architecture, made by changing what a saved one says of itself."""
    tag, plain = "drillyard/test-foreign:local", tmp_path / "root.tar"
    with tarfile.open(plain, "w") as root:
        for name in ("bin/sh", "tikv-server"):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(foreign_program()), 0o755
            root.addfile(entry, io.BytesIO(foreign_program()))
    docker("import", "--change", 'ENTRYPOINT ["/tikv-server"]', str(plain), tag)
    saved, changed = tmp_path / "saved.tar", tmp_path / "changed.tar"
    docker("save", "-o", str(saved), tag)
    docker("rmi", tag)
    mine, other = ("arm64", "amd64") if os.uname().machine == "aarch64" else ("amd64", "arm64")
    with tarfile.open(saved) as old, tarfile.open(changed, "w") as new:
        for entry in old.getmembers():
            file = old.extractfile(entry)
            content = file.read() if file else b""
            if entry.isfile() and content.startswith(b"{") and b'"architecture"' in content:
                content = content.replace(f'"{mine}"'.encode(), f'"{other}"'.encode())
            entry.size = len(content)
            new.addfile(entry, io.BytesIO(content) if file else None)
    docker("load", "-i", str(changed))
    yield tag
    docker("rmi", "-f", tag)


def test_an_image_for_another_architecture(foreign_image: str, yard: Shell) -> None:
    yard.env["TIKV_IMAGE"] = foreign_image
    ran = up(yard)
    assert ran.code == exits.COULD_NOT_START, ran
    error = ran.document["error"]
    assert f"{foreign_image} is made for " in error["text"]
    assert "multi-architecture" in error["mend"]
    assert objects_of(PROJECT) == []


def test_no_docker(yard: Shell, tmp_path: Path) -> None:
    yard.env["PATH"] = str(tmp_path)
    ran = up(yard)
    assert (ran.code, ran.document["error"]["text"]) == (exits.COULD_NOT_START, "there is no `docker` command here")


def test_no_daemon(yard: Shell, tmp_path: Path) -> None:
    bring_up(yard)
    yard.env["DOCKER_HOST"] = f"unix://{tmp_path / 'nobody.sock'}"
    for words in (("up", *QUICK), ("status", "--name", NAME), ("verify", "--name", NAME), ("down", "--name", NAME)):
        ran = yard(*words, "--json")
        told = f"no Docker daemon answers at {yard.env['DOCKER_HOST']}"
        assert (ran.code, ran.document["error"]["text"]) == (exits.COULD_NOT_START, told), words
    listed = yard("list", "--json").document
    assert listed["unreachable"][0]["deployment"] == NAME
    del yard.env["DOCKER_HOST"]


def test_no_compose_plugin(yard: Shell, tmp_path: Path) -> None:
    yard.env["DOCKER_CONFIG"] = str(tmp_path)
    ran = up(yard)
    assert ran.code == exits.COULD_NOT_START
    assert ran.document["error"]["text"] == "`docker compose` is missing or older than v2"


def test_no_permission_on_the_socket() -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "docker", "version"]
    environment = {**os.environ, "HOME": "/nonexistent"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode
    assert refusal_of(["version"], done.stderr).wrong == "this user may not talk to the Docker daemon"


def test_ctrl_c_saves_evidence_and_leaves_a_cluster_that_can_be_taken_down(yard: Shell) -> None:
    waiting = yard.begin("up", *QUICK, "--json")
    wait_until("a first container", lambda: docker("ps", "-q", "--filter", f"name={PROJECT}-pd0") != "")
    waiting.send_signal(signal.SIGINT)
    out, _ = waiting.communicate(timeout=60)
    told = json.loads(out)
    assert told["exit_code"] == exits.INTERRUPTED
    assert "evidence" in told["error"], told
    assert (Path(told["error"]["evidence"]) / "docker" / "pd0.json").exists()
    down = yard("down", "--name", NAME, "--delete-data", "--json").document["down"]
    assert down["is_clean"]
    assert down["killed"] == []
    assert objects_of(PROJECT) == []


def test_a_command_that_was_killed_leaves_nothing_that_the_next_cannot_take_up(yard: Shell) -> None:
    waiting = yard.begin("up", *QUICK, "--json")
    wait_until("a first container", lambda: docker("ps", "-q", "--filter", f"name={PROJECT}-pd0") != "")
    waiting.kill()
    waiting.communicate(timeout=60)
    bring_up(yard)
    docker("kill", container("tikv0"))
    down = yard("down", "--name", NAME, "--json").document["down"]
    check_evidence(down["evidence"], "tikv0")
