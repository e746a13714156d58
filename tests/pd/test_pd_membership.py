"""PD's group while it runs: the lead moves on request, members leave and come in, and deaths in between do no harm."""

from __future__ import annotations

import http.client
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from pd_processes import CONFIG, PdProcesses, until

V1 = "/pd/api/v1"


def said(log: Path, line: str) -> bool:
    return line in log.read_text()


def is_healthy(servers: PdProcesses, *places: int) -> bool:
    names = {servers.names[place] for place in places}
    answer = servers.ask(places[0], f"{V1}/health")
    return bool(answer) and {each["name"] for each in answer if each["health"]} == names


def test_the_lead_moves_on_request(servers: PdProcesses) -> None:
    leader = servers.wait_for_leader()
    other, third = (place for place in range(3) if place != leader)
    assert servers.send(third, "POST", f"{V1}/leader/transfer/nope") == (500, "no valid pd to transfer etcd leader")
    until(servers.are_introduced, "all members know one another")
    path = f"{V1}/leader/transfer/{servers.names[other]}"
    assert servers.send(third, "POST", path) == (200, "The transfer command is submitted.")
    until(lambda: servers.leader() == other, "the named one leads")
    assert servers.send(other, "POST", path) == (200, "The transfer command is submitted.")  # it leads already
    assert servers.send(other, "POST", f"{V1}/leader/resign") == (200, "The resign command is submitted.")
    until(lambda: servers.leader() not in (None, other), "somebody else leads")
    leader = servers.wait_for_leader()
    gone = next(place for place in range(3) if place != leader)
    servers.kill(gone)
    status, text = servers.send(leader, "POST", f"{V1}/leader/transfer/{servers.names[gone]}")
    assert (status, text[:27]) == (500, "[PD:etcd:ErrEtcdMoveLeader]")
    assert servers.wait_for_leader() == leader


def test_a_member_of_higher_priority_comes_to_lead(tmp_path: Path) -> None:
    servers = PdProcesses(tmp_path)
    (tmp_path / "pd.toml").write_text(CONFIG + 'LeaderPriorityCheckInterval = "200ms"\n')
    servers.start()
    try:
        leader = servers.wait_for_leader()
        chosen = next(place for place in range(3) if place != leader)
        path = f"{V1}/members/name/{servers.names[chosen]}"
        assert servers.send(leader, "POST", path, {"leader-priority": "x"}) == (400, "bad format leader priority")
        assert servers.send(leader, "POST", f"{V1}/members/name/x", {}) == (404, "not found, pd: x")
        assert servers.send(leader, "POST", path, {"leader-priority": 5}) == (200, "success")
        until(lambda: servers.leader() == chosen, "the member of higher priority leads")
        shown = servers.told(chosen, f"{V1}/members")["members"]
        assert {each["name"]: each.get("leader_priority") for each in shown}[servers.names[chosen]] == 5
    finally:
        servers.close()


@pytest.mark.parametrize("is_leader", [False, True])
def test_a_member_is_removed_and_stays_up_without_a_part(servers: PdProcesses, is_leader: bool) -> None:
    until(servers.are_introduced, "all members know one another")
    leader = servers.wait_for_leader()
    gone = leader if is_leader else next(place for place in range(3) if place != leader)
    left = [place for place in range(3) if place != gone]
    path = f"{V1}/members/name/{servers.names[gone]}"
    assert servers.send(left[0], "DELETE", path) == (200, f"removed, pd: {servers.names[gone]}")
    until(lambda: servers.leader(*left) is not None, "the others have a leader")
    assert servers.member_names(left[0]) == sorted(servers.names[place] for place in left)
    assert servers.send(left[0], "DELETE", path)[0] == 404
    log = servers.home / f"{servers.names[gone]}.log"
    until(lambda: "has been removed from the cluster" in log.read_text(), "the removed one knows")
    assert servers.processes[gone].poll() is None
    term = servers.ask(left[0], f"{V1}/leader")
    servers.kill(gone)
    servers.start(gone)  # with its data, and the flags of before
    until(lambda: log.read_text().count("has been removed from the cluster") == 2, "it is told again")
    assert servers.processes[gone].poll() is None
    assert servers.ask(left[0], f"{V1}/leader") == term  # nobody was disturbed
    # Two are left: they need each other now.
    assert servers.send(left[0], "DELETE", f"{V1}/members/id/12345")[0] == 500


def test_a_member_joins_is_killed_leaves_and_comes_as_a_new_one(servers: PdProcesses) -> None:
    until(servers.are_introduced, "all members know one another")
    new = servers.add("pd9")
    servers.start(new)
    until(lambda: is_healthy(servers, 0, 1, 2, new), "four members are healthy")
    until(lambda: servers.ask(new, f"{V1}/members") == servers.ask(0, f"{V1}/members") is not None, "all say the same")
    assert servers.send(0, "POST", f"{V1}/leader/transfer/pd9")[0] == 200
    until(lambda: servers.leader() == new, "the newcomer leads")
    servers.kill(new)
    until(lambda: servers.leader(0, 1, 2) is not None, "the first three have a leader")
    servers.start(new)  # the same flags, and its data
    until(lambda: is_healthy(servers, 0, 1, 2, new), "it is back")
    # Another one under its name, and one that lost its data, are not taken.
    code, text = servers.run_to_its_end(new, data_dir=str(servers.home / "other"), client_urls="http://127.0.0.1:1")
    assert (code, "missing data or join a duplicated pd" in text) == (1, True), text
    servers.kill(new)
    assert servers.send(0, "DELETE", f"{V1}/members/name/pd9") == (200, "removed, pd: pd9")
    shutil.rmtree(servers.home / "pd9")
    servers.start(new)
    until(lambda: is_healthy(servers, 0, 1, 2, new), "it came in again, as a new member")
    servers.kill(0, 1, 2, new)
    servers.start()
    until(lambda: servers.leader() is not None, "all four are back from their disks")
    assert len(servers.member_names(new)) == 4


def test_who_cannot_join(servers: PdProcesses) -> None:
    new = servers.add("pd9")
    own = f"http://127.0.0.1:{servers.client_ports[new]}"
    code, text = servers.run_to_its_end(new, join=own)
    assert (code, "join self is forbidden" in text) == (1, True), text
    code, text = servers.run_to_its_end(new, initial_cluster="pd9=http://127.0.0.1:1")
    assert (code, "can not be provided at the same time" in text) == (2, True), text
    gone = next(place for place in range(3) if place != servers.wait_for_leader())
    left = [place for place in range(3) if place != gone]
    servers.kill(gone)
    until(lambda: is_healthy(servers, *left), "the others notice that one is gone")
    code, text = servers.run_to_its_end(new)
    assert (code, "unhealthy cluster" in text) == (1, True), text


def test_a_newcomer_that_dies_on_its_way_in_comes_in_at_last(servers: PdProcesses) -> None:
    until(servers.are_introduced, "all members know one another")
    new = servers.add("pd9")
    log = servers.home / "pd9.log"
    for line in ("joining a cluster", "PD config", "server is started"):
        log.write_text("")
        servers.start(new)
        until(partial(said, log, line), line)
        servers.kill(new)
        until(lambda: servers.leader(0, 1, 2) is not None, "a leader")
    servers.start(new)
    until(lambda: is_healthy(servers, 0, 1, 2, new), "four members are healthy")
    until(lambda: servers.member_names(new) == ["pd0", "pd1", "pd2", "pd9"], "it knows the others")


def test_a_leader_that_dies_while_it_removes_a_member(servers: PdProcesses) -> None:
    until(servers.are_introduced, "all members know one another")
    leader = servers.wait_for_leader()
    gone, other = (place for place in range(3) if place != leader)
    path = f"{V1}/members/name/{servers.names[gone]}"
    asking = threading.Thread(target=lambda: suppressed(servers.send, leader, "DELETE", path))
    asking.start()
    servers.kill(leader)
    asking.join()
    servers.start(leader)
    until(lambda: servers.leader(leader, other) is not None, "a leader")

    def is_removed() -> bool:
        answer = suppressed(servers.send, other, "DELETE", path)
        return answer is not None and answer[0] in (200, 404)

    until(is_removed, "it is removed")
    until(lambda: is_healthy(servers, *sorted((leader, other))), "two healthy members are left")


def suppressed(ask: Callable[..., Any], *arguments: Any) -> Any:
    """The answer, or None if the connection broke."""
    try:
        return ask(*arguments)
    except (OSError, http.client.HTTPException):
        return None
