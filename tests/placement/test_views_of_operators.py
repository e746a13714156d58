"""Operators as PD shows them: one line of text, fields, and what became of them."""

from __future__ import annotations

import json

from placement_bench import Bench

from drillyard.emulator.pd import views
from drillyard.emulator.pd.operators import Reason
from drillyard.emulator.pd.requests import Desk

AT = "2001-09-09 01:46:40 +0000 UTC"


def test_a_running_operator_and_its_end() -> None:
    bench = Bench().stores(1, 2, 3, 4)
    bench.region(7, "1 2 3")
    wanted = {"name": "transfer-peer", "region_id": 7, "from_store_id": 3, "to_store_id": 4}
    Desk.at(bench.placement, bench.now_ns).add(wanted)
    running = bench.placement.controller.running[7]
    change = "promote learner peer 1000 on store 4 to voter, demote voter peer 703 on store 3 to learner"
    text = (
        f"admin-move-peer {{mv peer: store [3] to [4]}} (kind:admin,region, region:7(5, 5), createAt:{AT}, "
        f"startAt:{AT}, currentStep:0, size:10, steps:[0:{{add learner peer 1000 on store 4}}, "
        f"1:{{use joint consensus, {change}}}, 2:{{leave joint state, {change}}}, 3:{{remove peer on store 3}}], "
        "timeout:[17m0s])"
    )
    assert views.operator(running) == text
    assert views.operator_status(running) == f"status: RUNNING, operator: {text}"
    assert views.operator_object(running) == {
        "desc": "admin-move-peer",
        "brief": "mv peer: store [3] to [4]",
        "region_id": 7,
        "region_epoch": {"conf_ver": 5, "version": 5},
        "kind": 65,
        "timeout": "17m0s",
        "status": 1,
    }
    bench.placement.controller.cancel(7, Reason.ADMIN_STOP, bench.now_ns + 5 * 10**9)
    finish = "2001-09-09 01:46:45 +0000 UTC"
    assert views.operator_record(running) == f"{text} (finishAt:{finish}, duration:5s)"
    assert views.operator_status(running).startswith("status: CANCEL, ")
    assert json.dumps(views.operator_object(running)["status"]) == "3"
