"""The life of a compose deployment by the command line and the Python API: adopted, side by side, through a relay."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from compose_subject import EMULATED, docker, inspect, objects_of, remove_project
from shell import Shell

import drillyard
from drillyard.faces import exits

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "subjects" / "tikv" / "docker-compose.yaml"
RELAY = {"DRILLYARD_REACH": "relay", "DRILLYARD_RELAY_IMAGE": EMULATED.tikv or ""}
QUICK = ("--runtime", "compose", "--profile", "laptop")


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path / "home")
    shell.env |= {"PD_IMAGE": EMULATED.pd or "", "TIKV_IMAGE": EMULATED.tikv or ""}
    yield shell
    for plan in (shell.home / "deployments").glob("*/compose.json"):
        shell("down", "--name", plan.parent.name, "--delete-data")
        remove_project(f"drillyard-{plan.parent.name}")


@pytest.fixture
def plain_project() -> Iterator[str]:
    """The project of the file, started by plain `docker compose` on ports of its own."""
    project = f"plain-{os.urandom(4).hex()}"
    ports = {"PD_PORT": "14379", "TIKV_PORT": "14160", "TIKV_STATUS_PORT": "14180"}
    images = {"PD_IMAGE": EMULATED.pd or "", "TIKV_IMAGE": EMULATED.tikv or "", "TIKV_OPEN_FILES": "20000"}
    command = ["docker", "compose", "-p", project, "-f", str(FILE), "up", "-d"]
    subprocess.run(command, env={**os.environ, **ports, **images}, check=True, capture_output=True, timeout=120)
    try:
        yield project
    finally:
        remove_project(project)


def test_a_cluster_that_plain_compose_started_is_adopted_operated_and_taken_down(
    yard: Shell, plain_project: str
) -> None:
    adopted = yard("adopt", plain_project, "--name", "mine", "--json")
    assert adopted.code == exits.OK, adopted
    assert [one["name"] for one in adopted.document["deployment"]["members"]] == [
        *(f"pd{at}" for at in range(3)),
        *(f"tikv{at}" for at in range(3)),
    ]
    assert yard("verify", "--wait", "--name", "mine").code == exits.OK
    assert yard("connect", "--name", "mine", "--json").document["network"]["published"] == {
        "pd0:2379": "127.0.0.1:14379",
        "tikv0:20160": "127.0.0.1:14160",
        "tikv0:20180": "127.0.0.1:14180",
    }
    assert yard("kill", "tikv1", "--name", "mine", "--json").document["member"]["state"] == "stopped"
    assert yard("verify", "--name", "mine").code == exits.NOT_READY
    assert yard("restart", "tikv1", "--name", "mine").code == exits.OK
    assert yard("verify", "--wait", "--name", "mine").code == exits.OK
    down = yard("down", "--name", "mine", "--delete-data", "--json").document["down"]
    assert (down["is_clean"], down["checked_containers"], len(down["stopped"])) == (True, 6, 6)
    assert objects_of(plain_project) == []


def test_what_is_no_project_is_refused_with_those_that_there_are(yard: Shell, plain_project: str) -> None:
    ran = yard("adopt", "no-such-project", "--json")
    assert ran.code == exits.BAD_INPUT
    assert plain_project in ran.document["error"]["mend"]


def test_deployments_side_by_side_have_ports_of_their_own(yard: Shell) -> None:
    names = ("left", "right")
    published = []
    for name in names:
        ran = yard("up", *QUICK, "--name", name, "--pd", "1", "--tikv", "1", "--json")
        assert ran.code == exits.OK, ran
        published.append(set(yard("connect", "--name", name, "--json").document["network"]["published"].values()))
    assert not published[0] & published[1]
    assert [yard("verify", "--name", name).code for name in names] == [exits.OK] * 2
    assert yard("down", "--name", "left", "--delete-data").code == exits.OK
    assert yard("verify", "--name", "right").code == exits.OK, "the other one is not touched"


def test_what_is_another_homes_is_not_touched(yard: Shell, tmp_path: Path) -> None:
    small = (*QUICK, "--pd", "1", "--tikv", "1")
    assert yard("up", *small).code == exits.OK
    other = Shell(tmp_path / "other")
    other.env |= {"PD_IMAGE": EMULATED.pd or "", "TIKV_IMAGE": EMULATED.tikv or ""}
    ran = other("up", *small, "--json")
    assert ran.code == exits.BAD_INPUT
    assert "not from this home" in ran.document["error"]["text"]
    assert yard("down").code == exits.OK
    assert other("up", *small).code == exits.BAD_INPUT, "its volumes are its own too"
    plan = other.home / "deployments" / "default" / "compose.json"
    plan.parent.mkdir(parents=True)
    plan.write_text((yard.home / "deployments" / "default" / "compose.json").read_text())
    assert yard("up").code == exits.OK
    for words in (("status",), ("kill", "tikv0"), ("up",), ("down", "--delete-data")):
        assert other(*words).code == exits.BAD_INPUT, words
    assert yard("verify").code == exits.OK
    plan.unlink()


def test_what_compose_run_makes_is_no_member(yard: Shell) -> None:
    assert yard("up", *QUICK, "--pd", "1", "--tikv", "1").code == exits.OK
    directory = yard.home / "deployments" / "default"
    files = ("-p", "drillyard-default", "--project-directory", str(directory))
    run = ("run", "-d", "--no-deps", "--entrypoint", "sleep", "tikv0", "60")
    subprocess.run(["docker", "compose", *files, *run], env=yard.env, check=True, capture_output=True)
    assert yard("verify").code == exits.OK
    assert yard("restart", "tikv0").code == exits.OK
    assert yard("down", "--delete-data", "--json").document["down"]["is_clean"]
    assert objects_of("drillyard-default") == []


def test_the_same_name_on_another_runtime_is_refused(yard: Shell) -> None:
    assert yard("up", *QUICK, "--pd", "1", "--tikv", "1").code == exits.OK
    ran = yard("up", "--runtime", "local", "--json")
    assert ran.code == exits.BAD_INPUT
    assert "exists on the compose runtime" in ran.document["error"]["text"]


def relays() -> str:
    return docker("ps", "-aq", "--filter", "label=drillyard.relay")


def test_where_addresses_cannot_be_reached_a_relay_proves_the_same(yard: Shell) -> None:
    yard.env |= RELAY
    ran = yard("up", *QUICK, "--json")
    assert ran.code == exits.OK, ran
    assert any("through the relay" in entry["text"] for entry in ran.document["report"]["timeline"])
    assert relays() == "", "it lives no longer than the command"
    docker("kill", "drillyard-default-tikv2-1")
    ran = yard("verify", "--json")
    assert (ran.code, ran.document["error"]["culprit"]) == (exits.NOT_READY, "tikv2")


def test_a_relay_ends_with_a_command_that_was_killed(yard: Shell) -> None:
    yard.env |= RELAY
    assert yard("up", *QUICK, "--pd", "1", "--tikv", "1").code == exits.OK
    assert yard("pause", "tikv0").code == exits.OK
    waiting = yard.begin("verify", "--wait")
    assert waiting.stdout is not None
    for line in waiting.stdout:
        if "through the relay" in line:
            break
    assert relays()
    waiting.send_signal(signal.SIGKILL)
    waiting.communicate(timeout=30)
    deadline = time.monotonic() + 30
    while relays():
        assert time.monotonic() < deadline, "the relay outlived its command"
        time.sleep(0.1)


def test_logs_are_followed_through_a_restart(yard: Shell) -> None:
    assert yard("up", *QUICK, "--pd", "1", "--tikv", "1").code == exits.OK
    following = yard.begin("logs", "tikv0", "--follow", "--lines", "1")
    assert following.stdout is not None
    try:
        following.stdout.readline()  # the last that was written before; from here on it follows
        assert yard("restart", "tikv0").code == exits.OK
        told = []
        for line in following.stdout:
            told.append(line)
            if "TiKV is ready to serve" in line:
                break
        assert any("received signal to exit" in line for line in told), told
    finally:
        following.kill()
        following.communicate()


def test_a_compose_file_of_the_deployment_works_by_hand(yard: Shell) -> None:
    assert yard("up", *QUICK, "--pd", "1", "--tikv", "1").code == exits.OK
    directory = yard.home / "deployments" / "default"
    command = ["docker", "compose", "-p", "drillyard-default", "--project-directory", str(directory), "ps", "-q"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert len(done.stdout.split()) == 2


def test_containers_that_were_stopped_by_hand_come_up_again(yard: Shell) -> None:
    assert yard("up", *QUICK).code == exits.OK
    names = docker("ps", "-q", "--filter", "label=com.docker.compose.project=drillyard-default").split()
    docker("stop", *names)
    assert yard("verify").code == exits.NOT_READY
    ran = yard("up", "--json")
    assert ran.code == exits.OK, ran
    assert [member["state"] for member in ran.document["report"]["members"]] == ["running"] * 6


def test_an_adopted_cluster_is_forgotten_when_it_is_down(yard: Shell, plain_project: str) -> None:
    assert yard("adopt", plain_project, "--name", "mine").code == exits.OK
    down = yard("down", "--name", "mine", "--json").document["down"]
    assert (down["is_clean"], down["is_data_deleted"], len(down["kept"])) == (True, False, 6)
    assert yard("list", "--json").document["deployments"] == []


def test_the_python_api(tmp_path: Path) -> None:
    wanted = {"runtime": "compose", "pd_image": EMULATED.pd, "tikv_image": EMULATED.tikv, "profile": "laptop"}
    with drillyard.cluster_sync("api", home=tmp_path / "home", **wanted) as cluster:  # type: ignore[arg-type]
        assert cluster.report is not None
        assert cluster.report.proven == "emulated PD 8.1.0, emulated TiKV 8.1.0"
        assert cluster.kill("tikv0").container == "drillyard-api-tikv0-1"
        cluster.start("tikv0")
        assert cluster.verify(wait_s=60).is_ready
        assert inspect("drillyard-api-tikv0-1")["State"]["Running"]
    assert objects_of("drillyard-api") == []
