"""subjects/tikv/docker-compose.yaml holds what its comments say, to plain `docker compose` and without our code."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from plain_compose import (
    ARM64,
    EMULATED_PD,
    EMULATED_TIKV,
    LOCAL,
    PATIENCE_S,
    PDS,
    REAL_PD,
    SIX,
    TIKVS,
    Answering,
    Project,
    config,
    get,
    image,
    interrupt,
    must,
)
from tikv_members import wait_until

pytestmark = pytest.mark.timeout(600)  # of a machine that does other things too; all of it takes minutes

PD_PATH = "/pd/api/v1/health"
TIKV_PATH = "/status"


@dataclass(frozen=True)
class Images:
    busybox_pd: str
    busybox_tikv: str
    toolless_pd: str


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Images]:
    """Of the images that have curl alone, those with BusyBox's wget alone, and one with neither."""
    home = tmp_path_factory.mktemp("images")
    with (
        image("busybox-pd", REAL_PD, home / "pd", with_wget=True) as pd,
        image("busybox-tikv", EMULATED_TIKV, home / "tikv", with_wget=True) as tikv,
        image("toolless-pd", EMULATED_PD, home / "toolless", with_wget=False) as toolless,
    ):
        yield Images(pd, tikv, toolless)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Project]:
    """By hand, with a real PD and the emulated TiKV."""
    with Project() as project:
        project.up()
        yield project


@pytest.fixture(scope="module")
def second() -> Iterator[Project]:
    """Another one, with the emulated PD, because that starts sooner. Tests leave it with all six healthy."""
    with Project(PD_IMAGE=EMULATED_PD) as project:
        project.up()
        project.wait_until_healthy()
        project.wait_until_three_stores_are_up()
        yield project


@pytest.mark.parametrize(
    ("env_file", "pd", "tikv"),
    [
        (None, "pingcap/pd:v8.5.5", "pingcap/tikv:v8.5.5"),
        (ARM64, "pingcap/pd-arm64:v6.0.0", "pingcap/tikv-arm64:v6.0.0"),
        (LOCAL, REAL_PD, EMULATED_TIKV),
    ],
    ids=["no environment", "arm64.env", "local.env"],
)
def test_the_file_is_valid_and_names_its_images(env_file: Path | None, pd: str, tikv: str) -> None:
    assert config("--quiet", env_file=env_file) == ""
    services = json.loads(config("--format", "json", env_file=env_file))["services"]
    images = {name: service["image"] for name, service in services.items()}
    assert images == dict.fromkeys(PDS, pd) | dict.fromkeys(TIKVS, tikv)


def test_by_hand_the_first_pd_answers_and_three_stores_are_up(cluster: Project) -> None:
    wait_until("the first PD answers", lambda: cluster.get("health"), PATIENCE_S)
    cluster.wait_until_three_stores_are_up()
    status = f"http://localhost:{cluster.tikv_status_port}{TIKV_PATH}"
    wait_until("the first TiKV answers", lambda: get(status) is not None, PATIENCE_S)


def test_all_six_become_healthy(cluster: Project) -> None:
    cluster.wait_until_healthy()


def test_no_tikv_starts_before_every_pd_was_healthy(cluster: Project) -> None:
    healthy = max(cluster.wait_for_event("health_status: healthy", pd).at for pd in PDS)
    for name, container in cluster.containers().items():
        if name in TIKVS:
            assert container.started is not None
            assert container.started > healthy


def test_only_the_first_pd_and_the_first_tikv_are_published_and_only_on_loopback(cluster: Project) -> None:
    published = {name: container.published for name, container in cluster.containers().items()}
    assert published == {name: {} for name in SIX} | {
        "pd0": {"2379/tcp": [f"127.0.0.1:{cluster.pd_port}"]},
        "tikv0": {
            "20160/tcp": [f"127.0.0.1:{cluster.tikv_port}"],
            "20180/tcp": [f"127.0.0.1:{cluster.tikv_status_port}"],
        },
    }


def test_stop_ends_all_in_good_order_and_the_data_outlives_the_containers() -> None:
    with Project() as project:
        project.up()
        project.wait_until_three_stores_are_up()
        before = project.cluster_id()
        project.stop()
        assert set(project.that_ran()) == set(SIX)
        project.assert_ended_in_good_order()

        project.compose("down")
        volumes = sorted(f"{project.name}_{name}-data" for name in SIX)
        left = project.left()
        assert (left["container"], left["network"], sorted(left["volume"])) == ([], [], volumes)

        project.up()
        project.wait_until_three_stores_are_up()
        assert project.cluster_id() == before

        project.compose("kill")  # it has been seen to end by itself
        project.compose("down", "--volumes")
        assert project.left() == {"container": [], "network": [], "volume": []}


def after(seconds: float) -> Callable[[Project, subprocess.Popen[bytes]], None]:
    def moment(_: Project, up: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            up.wait(seconds)

    return moment


def when_the_containers_exist(project: Project, _: subprocess.Popen[bytes]) -> None:
    wait_until("all six containers exist", lambda: set(project.containers()) == set(SIX), PATIENCE_S)


def when_a_pd_has_started(project: Project, _: subprocess.Popen[bytes]) -> None:
    wait_until("a PD has started", project.that_ran, PATIENCE_S)


def when_a_tikv_has_started(project: Project, _: subprocess.Popen[bytes]) -> None:
    wait_until("a TiKV has started", lambda: set(project.that_ran()) & set(TIKVS), PATIENCE_S)


@pytest.mark.parametrize(
    "moment",
    [after(0.2), after(1), after(3), when_the_containers_exist, when_a_pd_has_started, when_a_tikv_has_started],
    ids=["0.2 s", "1 s", "3 s", "containers exist", "a PD started", "a TiKV started"],
)
def test_what_is_stopped_while_it_still_starts_ends_in_good_order(
    moment: Callable[[Project, subprocess.Popen[bytes]], None],
) -> None:
    with Project() as project:
        up = project.begin_up()
        moment(project, up)
        interrupt(up)
        project.stop_what_is_still_starting()
        project.assert_ended_in_good_order()
        project.compose("down", "--volumes")
        assert project.left() == {"container": [], "network": [], "volume": []}


def test_images_that_have_curl_alone_become_healthy(cluster: Project) -> None:
    for service in ("pd0", "tikv0"):
        assert cluster.execute(service, "sh", "-c", "command -v curl && ! command -v wget").returncode == 0
    cluster.wait_until_healthy()


def test_images_that_have_the_wget_of_busybox_alone_become_healthy(images: Images) -> None:
    with Project(PD_IMAGE=images.busybox_pd, TIKV_IMAGE=images.busybox_tikv) as project:
        project.up()
        for service in ("pd0", "tikv0"):
            assert project.execute(service, "sh", "-c", "command -v wget && ! command -v curl").returncode == 0
        project.wait_until_healthy()


def test_an_image_that_has_neither_fails_the_start_and_says_what_is_missing(images: Images, tmp_path: Path) -> None:
    impatient = {"healthcheck": {"start_period": "0s", "retries": 2}}
    overlay = tmp_path / "impatient.yaml"
    overlay.write_text(json.dumps({"services": dict.fromkeys(PDS, impatient)}))
    with Project(overlay=overlay, PD_IMAGE=images.toolless_pd) as project:
        failed = project.try_compose("up", "-d")
        assert failed.returncode != 0
        containers = project.containers()
        unhealthy = [name for name in PDS if f"{project.name}-{name}-1 is unhealthy" in failed.stderr]
        assert unhealthy, failed.stderr
        for name in unhealthy:
            assert containers[name].health == "unhealthy"
            assert "wget: not found" in containers[name].health_says
        assert [containers[name].started for name in TIKVS] == [None] * 3


@pytest.fixture(scope="module", params=["curl", "wget"])
def tool_image(request: pytest.FixtureRequest, images: Images) -> str:
    return EMULATED_TIKV if request.param == "curl" else images.busybox_tikv


@pytest.fixture(scope="module")
def answering(tool_image: str) -> Iterator[Answering]:
    with Answering(tool_image) as container:
        yield container


def line_of(service: str) -> str:
    """The health check as the daemon gets it."""
    shell, line = json.loads(config("--format", "json"))["services"][service]["healthcheck"]["test"]
    assert shell == "CMD-SHELL"
    return str(line).replace("$$", "$")


@pytest.mark.parametrize(("service", "path"), [("pd0", PD_PATH), ("tikv0", TIKV_PATH)], ids=["pd", "tikv"])
def test_a_check_fails_on_an_http_error_and_passes_on_an_empty_answer(
    answering: Answering, service: str, path: str
) -> None:
    line = line_of(service)
    for code in (404, 500, 503):
        for body in ("", "[]"):
            answering.answer(code, path, body)
            failed = answering.shell(line)
            assert failed.returncode != 0, f"{code} {body!r}"
            assert str(code) in failed.stderr  # it failed for that, and not for something else
    for body in ("", "[]"):
        answering.answer(200, path, body)
        passed = answering.shell(line)
        assert passed.returncode == 0, passed.stderr


@pytest.mark.parametrize("has_ipv6", [False, True], ids=["no IPv6", "IPv6"])
def test_a_check_passes_where_localhost_is_ipv6_first_and_the_server_knows_only_ipv4(
    tool_image: str, has_ipv6: bool
) -> None:
    with Answering(tool_image, f"--sysctl=net.ipv6.conf.all.disable_ipv6={0 if has_ipv6 else 1}") as container:
        assert container.shell("printf '::1 localhost\\n127.0.0.1 localhost\\n' >/etc/hosts").returncode == 0
        if has_ipv6 and tool_image != EMULATED_TIKV:
            container.answer(200, TIKV_PATH, "")
            only_localhost = container.shell("wget -q -T 2 -O /dev/null http://localhost:20180/status")
            assert only_localhost.returncode != 0, "this BusyBox tries both addresses, and the test proves nothing"
        for service, path in (("pd0", PD_PATH), ("tikv0", TIKV_PATH)):
            container.answer(200, path, "")
            passed = container.shell(line_of(service))
            assert passed.returncode == 0, passed.stderr
            container.answer(503, path, "")
            assert container.shell(line_of(service)).returncode != 0


def test_two_projects_run_side_by_side_by_the_variables(cluster: Project, second: Project) -> None:
    cluster.wait_until_three_stores_are_up()
    second.wait_until_three_stores_are_up()
    assert cluster.cluster_id() != second.cluster_id()
    assert {container.image for container in second.containers().values()} == {EMULATED_PD, EMULATED_TIKV}
    for project in (cluster, second):
        names = [f"{project.name}-{name}-1" for name in SIX]
        assert sorted(project.left()["container"]) == names
        assert sorted(item["store"]["address"] for item in project.stores()) == [f"{name}:20160" for name in TIKVS]


SIGNAL_THE_SERVER = """
import os, pathlib, sys
for process in pathlib.Path("/proc").glob("[0-9]*"):
    if process.name not in ("1", str(os.getpid())) and b"tikv.server" in (process / "cmdline").read_bytes():
        os.kill(int(process.name), int(sys.argv[1]))
"""


def signal_the_server(project: Project, service: str, number: signal.Signals) -> None:
    """From inside, past Docker. The command goes down with its container, so that its own code tells nothing."""
    project.execute(service, "python3", "-c", SIGNAL_THE_SERVER, str(int(number)))


def test_a_tikv_that_ends_by_an_error_is_started_again_and_its_store_comes_back(second: Project) -> None:
    def born() -> dict[str, int]:
        stores = [item["store"] for item in second.stores()]
        return {store["address"]: store["start_timestamp"] for store in stores if store["state_name"] == "Up"}

    before, birth = second.container("tikv1"), born()
    signal_the_server(second, "tikv1", signal.SIGKILL)
    second.wait_for_event("start", "tikv1", times=2)
    wait_until(
        "the store of another birth is Up", lambda: born().get("tikv1:20160", 0) > birth["tikv1:20160"], PATIENCE_S
    )
    second.wait_until_healthy()
    after = second.container("tikv1")
    assert (after.id, after.restarts) == (before.id, before.restarts + 1)
    second.wait_until_three_stores_are_up()


@pytest.mark.parametrize("code", [137, 0], ids=["docker kill", "a good end of its own"])
def test_what_was_killed_by_docker_or_ended_well_is_not_started_again(second: Project, code: int) -> None:
    before = second.container("tikv2")
    if code:
        must("docker", "kill", before.id)
    else:
        signal_the_server(second, "tikv2", signal.SIGTERM)
    # The daemon decides about a restart when it notes the end: `restarting` would stand where `exited` stands.
    assert must("docker", "wait", before.id).strip() == str(code)
    after = second.container("tikv2")
    assert (after.status, after.exit_code, after.restarts) == ("exited", code, before.restarts)
    second.up()
    second.wait_until_healthy()
    second.wait_until_three_stores_are_up()
