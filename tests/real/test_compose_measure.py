"""The outage ruler on containers, with a real PD: it asks in their network, and a killed container is not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from compose_subject import REAL_PD, remove_project
from shell import Shell

from drillyard.faces import exits
from ports import free_ports

NAME = f"measured-{os.urandom(4).hex()}"
TIKVS = ("tikv0", "tikv1", "tikv2")


@pytest.fixture
def yard(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path / "home")
    shell.env |= {"PD_IMAGE": REAL_PD.pd or "", "TIKV_IMAGE": REAL_PD.tikv or ""}
    # A member that was killed must find its published port free when it comes back.
    published = ("PD_PORT", "TIKV_PORT", "TIKV_STATUS_PORT")
    shell.env |= {name: str(port) for name, port in zip(published, free_ports(len(published)), strict=True)}
    yield shell
    shell("down", "--name", NAME, "--delete-data")
    remove_project(f"drillyard-{NAME}")


def measured(yard: Shell, operation: str, member: str) -> dict[str, Any]:
    ran = yard(operation, member, "--measure", "--name", NAME, "--json")
    assert ran.code == exits.OK, ran
    outage: dict[str, Any] = ran.document["outage"]
    assert (outage["keys_left"], outage["regions_left_out"]) == ([], 0)
    assert all((region["is_served"], region["lost"]) == (True, 0) for region in outage["regions"]), outage
    return outage


@pytest.mark.timeout(400)
def test_members_are_killed_and_paused_and_what_that_costs_is_told(yard: Shell) -> None:
    up = yard("up", "--runtime", "compose", "--profile", "laptop", "--name", NAME, "--json")
    assert up.code == exits.OK, up
    assert up.document["report"]["proven"].startswith("real PD ")
    left = {}
    for operation, undo, member in zip(("kill", "pause", "restart"), ("start", "resume", "verify"), TIKVS, strict=True):
        outage = measured(yard, operation, member)
        left[member] = [one["leader_moved"] for one in outage["regions"] if one["outage_s"] is not None]
        yard(undo, *([] if undo == "verify" else [member]), "--name", NAME)
        assert yard("verify", "--wait", "--timeout", "100", "--name", NAME).code == exits.OK
    assert any(left.values()), "one of the three led a region"

    leader = yard("verify", "--name", NAME, "--json").document["report"]["pd_leader"]
    outage = measured(yard, "kill", leader)
    timestamps = outage["timestamps"]
    assert timestamps["outage_s"] is not None
    assert (timestamps["lost"], timestamps["pd_noticed"]["before"]) == (0, leader)
