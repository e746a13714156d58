"""What may still fail, told by the command line of a real cluster of emulated members while some of it fails."""

from __future__ import annotations

import time

from shell import PATIENCE_S, Shell

from drillyard.faces import exits

ANY_ONE = ["any 1 PD and any 1 TiKV may fail"]


def until_told(drillyard: Shell, *text: str) -> None:
    """`status` says so before long: just after a change a member may be electing or not yet heard of."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        told = drillyard("status", "--json").document["deployment"]["survivability"]["text"]
        if len(told) == len(text) and all(one.startswith(start) for one, start in zip(told, text, strict=True)):
            return
        assert time.monotonic() < deadline, told


def healed(drillyard: Shell, *members: str) -> None:
    for member in members:
        drillyard("start", member)
    assert drillyard("verify", "--wait", "--timeout", "100").code == exits.OK


def test_what_may_fail_while_members_do(drillyard: Shell) -> None:
    ran = drillyard("up", "--topology", str(drillyard.topology()), "--json")
    assert ran.code == exits.OK, ran
    survivability = ran.document["report"]["survivability"]
    assert survivability["text"] == ANY_ONE
    assert (survivability["pd"]["may_fail"], survivability["tikv"]["may_fail"]) == (1, 1)
    assert (survivability["regions"], survivability["is_complete"]) == (1, True)
    until_told(drillyard, *ANY_ONE)
    assert f"survival    {ANY_ONE[0]}\n" in drillyard("verify").out

    drillyard("kill", "tikv1")
    no_tikv = "no TiKV may fail: tikv1 is down, and losing tikv0 or tikv2 now would leave region "
    until_told(drillyard, "any 1 PD may fail", no_tikv)
    told = drillyard("verify", "--json").document["report"]["survivability"]["tikv"]
    assert told["may_fail"] == 0
    assert [loss["member"] for loss in told["critical"]] == ["tikv0", "tikv2"]

    drillyard("kill", "tikv0")
    until_told(drillyard, "any 1 PD may fail", "region ")
    told = drillyard("status", "--json").document["deployment"]["survivability"]["tikv"]
    assert (told["may_fail"], told["lost"]["count"]) == (0, 1)
    assert told["lost"]["because"] == "tikv0 and tikv1 are down"
    healed(drillyard, "tikv0", "tikv1")
    until_told(drillyard, *ANY_ONE)

    drillyard("kill", "pd0")
    until_told(drillyard, "no PD may fail: pd0 is down", "any 1 TiKV may fail")
    drillyard("kill", "pd2")
    until_told(drillyard, "PD has lost its quorum already (pd0 and pd2 are down)", "not known how many TiKV may fail: ")
    assert "survival    PD has lost its quorum already (pd0 and pd2 are down)\n" in drillyard("verify").out
    healed(drillyard, "pd0", "pd2")
    until_told(drillyard, *ANY_ONE)

    drillyard("down")
    assert drillyard("status", "--json").document["deployment"]["survivability"] is None


def test_members_are_told_while_pd_hangs(drillyard: Shell) -> None:
    ran = drillyard("up", "--topology", str(drillyard.topology(1, 1)), "--json")
    assert ran.code == exits.OK, ran
    told = ran.document["report"]["survivability"]
    assert told["text"][0] == "no PD may fail: there is only 1 voter"
    assert told["text"][1].startswith(
        "no TiKV may fail: there is only 1 voter, and losing tikv0 now would leave region "
    )
    drillyard("pause", "pd0")
    ran = drillyard("status")
    assert ran.code == exits.OK
    assert "pd0         emulated PD          paused" in ran.out
    assert "tikv0       emulated TiKV        running" in ran.out
    assert "survival    PD has lost its quorum already (pd0 is paused)\n" in ran.out
    assert "survival    not known how many TiKV may fail: no PD answers\n" in ran.out
    drillyard("resume", "pd0")
