"""An independent witness of outages: a process of its own that writes to every store of one region, and keeps when each
write was acknowledged by its own clock. The ruler is compared with it.

It shares no code with drillyard: grpcio as transport, the messages of tikv-python, and no idea of leaders. One thread
for each store sends a write every few milliseconds, whatever the store is; only the leader acknowledges. So there is no
retry, no back-off and no search that could hide when the service came back.

    python bench/independent.py 127.0.0.1:2379 ...     writes until its standard input ends, then prints its history
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any

PACE_S = 0.008
ATTEMPT_S = 1.0  # what is slow is waited for: to give up early would make a stall of the machine look like an outage
KEY = b"independent-witness"
OPTIONS = [
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 50),
]
READY, LIMIT_S = "ready", 60.0


class Independent:
    """The process, for the block; `acknowledged` holds its history once the block is over."""

    def __init__(self, pd_endpoints: Sequence[str]) -> None:
        self._command = [sys.executable, __file__, *pd_endpoints]
        self._process: subprocess.Popen[str]
        self.acknowledged: list[float] = []

    def __enter__(self) -> Independent:
        self._process = subprocess.Popen(self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        told = self._process.stdout.readline().strip()
        if told != READY:
            self._process.kill()
            self._process.wait()
            raise RuntimeError(f"the independent client did not come up: {told!r}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            told, _ = self._process.communicate("", timeout=LIMIT_S)
        finally:
            self._process.kill()
        self.acknowledged = json.loads(told)

    def gap_s(self, since: float, until: float) -> float:
        """The longest time without an acknowledgement that began before `until` and was not over at `since`."""
        gaps = [b - a for a, b in pairwise(self.acknowledged) if b > since and a < until]
        return max(gaps, default=float("inf"))


def main(pd_endpoints: Sequence[str]) -> None:
    region, addresses = _region(pd_endpoints)
    acknowledged: list[float] = []
    is_over = threading.Event()
    first = threading.Event()

    def write_to(peer: Any, address: str) -> None:
        put, request = _put(address, region, peer)
        while not is_over.wait(PACE_S):
            try:
                answer = put(request, timeout=ATTEMPT_S)
            except _rpc_error():
                continue
            if not answer.HasField("region_error") and not answer.error:
                acknowledged.append(time.time())
                first.set()

    threads = [threading.Thread(target=write_to, args=(peer, addresses[peer.store_id])) for peer in region.peers]
    for thread in threads:
        thread.start()
    if first.wait(LIMIT_S):
        print(READY, flush=True)
    sys.stdin.read()
    is_over.set()
    for thread in threads:
        thread.join()
    print(json.dumps(sorted(acknowledged)), flush=True)


def _rpc_error() -> type[Exception]:
    import grpc

    error: type[Exception] = grpc.RpcError
    return error


def _put(address: str, region: Any, peer: Any) -> tuple[Any, Any]:
    """The method of one store, and the request to send there again and again."""
    import grpc
    from tikv._proto import kvrpcpb_pb2 as kvrpcpb

    channel = grpc.insecure_channel(address, options=OPTIONS)
    put = channel.unary_unary(
        "/tikvpb.Tikv/RawPut",
        request_serializer=kvrpcpb.RawPutRequest.SerializeToString,
        response_deserializer=kvrpcpb.RawPutResponse.FromString,
    )
    context = kvrpcpb.Context(region_id=region.id, region_epoch=region.region_epoch, peer=peer)
    return put, kvrpcpb.RawPutRequest(context=context, key=KEY, value=b"x")


def _region(pd_endpoints: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """The region of the key, and the addresses of its stores by id, from the first PD that answers as leader."""
    import grpc
    from tikv._proto import pdpb_pb2 as pdpb

    def ask(channel: grpc.Channel, method: str, request: Any, answer: Any) -> Any:
        call = channel.unary_unary(
            f"/pdpb.PD/{method}", request_serializer=type(request).SerializeToString, response_deserializer=answer
        )
        return call(request, timeout=5)

    for endpoint in pd_endpoints:
        try:
            with grpc.insecure_channel(endpoint) as channel:
                members = ask(channel, "GetMembers", pdpb.GetMembersRequest(), pdpb.GetMembersResponse.FromString)
                header = pdpb.RequestHeader(cluster_id=members.header.cluster_id)
                wanted = pdpb.GetRegionRequest(header=header, region_key=KEY)
                region = ask(channel, "GetRegion", wanted, pdpb.GetRegionResponse.FromString).region
                addresses = {}
                for peer in region.peers:
                    store = pdpb.GetStoreRequest(header=header, store_id=peer.store_id)
                    answer = ask(channel, "GetStore", store, pdpb.GetStoreResponse.FromString)
                    addresses[peer.store_id] = answer.store.address
                return region, addresses
        except grpc.RpcError:
            continue
    raise SystemExit("no PD answers")


if __name__ == "__main__":
    main(sys.argv[1:])
