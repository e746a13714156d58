"""The recorder itself: what tikv-python repeats in silence is told, and recorded as a write of its own."""

from __future__ import annotations

import threading

from client_histories import Call, History, repeats_told
from tikv._backoff import Backoff, Wait

from drillyard.judge.consistency import Kind, Outcome


def test_a_repeat_that_may_have_been_applied_is_told() -> None:
    call = Call("client", 0.0)
    with repeats_told() as told:
        told.calls[threading.get_ident()] = call
        backoff = Backoff(60)
        backoff.delay(Wait.TIKV_RPC, ConnectionError("the connection broke"))
        backoff.delay(Wait.REGION_SCHEDULING, Exception("region 3: stale_command: "))
        assert call.repeats == 2
        backoff.delay(Wait.REGION_SCHEDULING, Exception("region 3: not_leader: the leader is elsewhere"))
        backoff.delay(Wait.PD_RPC, ConnectionError("no PD answers"))
        assert call.repeats == 2, "a store that does not lead proposes nothing, and PD writes nothing"


def test_each_repeat_is_a_write_of_unknown_outcome() -> None:
    history = History("seed")
    history.add([Call("client", 0.0).operation(Kind.PUT, b"key", b"value")], repeats=2)
    assert [op.outcome for op in history.operations] == [Outcome.OK, Outcome.UNKNOWN, Outcome.UNKNOWN]
    assert history.acknowledged == {"client": 1}
