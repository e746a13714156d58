"""Every method of PD and TiKV under random bytes and under senseless messages: an answer or a status, and no harm."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from fuzz_members import CALL_S, Members
from fuzz_messages import fuzz, messages
from hypothesis import given
from hypothesis import strategies as st

from drillyard.wire import metapb, pdpb, services, tikvpb
from drillyard.wire.method import Kind, Method

SERVICES = (services.PD, services.TIKV, services.PEER, services.MEMBERS, services.HEALTH)
METHODS: list[Method[Any, Any]] = [
    method for service in SERVICES for method in vars(service).values() if isinstance(method, Method)
]
NAMES = [method.path.lstrip("/") for method in METHODS]


def place_of(members: Members, method: Method[Any, Any]) -> str:
    return members.store if method.service in ("tikvpb.Tikv", "drillpb.Peer") else members.pd


def ask(members: Members, method: Method[Any, Any], *requests: Any, timeout_s: float = CALL_S) -> grpc.StatusCode:
    """How the call ended. It ends: within the time for a call, or as a stream that takes what it is sent."""
    with grpc.insecure_channel(place_of(members, method)) as channel:
        make = {
            Kind.UNARY: channel.unary_unary,
            Kind.CLIENT_STREAM: channel.stream_unary,
            Kind.SERVER_STREAM: channel.unary_stream,
            Kind.STREAM: channel.stream_stream,
        }[method.kind]
        stub = make(
            method.path,
            request_serializer=lambda request: request if isinstance(request, bytes) else request.SerializeToString(),
            response_deserializer=method.response.FromString,
        )
        sent = requests[0] if method.kind in (Kind.UNARY, Kind.SERVER_STREAM) else iter(requests)
        try:
            answer = stub(sent, timeout=timeout_s)
            if method.kind in (Kind.SERVER_STREAM, Kind.STREAM):
                for _ in answer:
                    pass
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def aimed(members: Members, message: Any) -> Any:
    """At this cluster and at the region that is here, so that it is not turned away at the door."""
    fields = message.DESCRIPTOR.fields_by_name
    if "header" in fields and "cluster_id" in fields["header"].message_type.fields_by_name:
        message.header.cluster_id = members.cluster_id
    if "context" in fields and message.context.term % 2 == 0:
        message.context.CopyFrom(members.context)
    if "retry_limit" in fields:
        message.retry_limit %= 2  # PD waits between its tries, as the real one does
    if isinstance(message, tikvpb.BatchCommandsRequest):
        for request in message.requests:
            arm = request.WhichOneof("cmd")
            if arm is not None:
                aimed(members, getattr(request, arm))
    return message


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_random_bytes(members: Members, method: Method[Any, Any]) -> None:
    refused = {grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED}
    for garbage in (b"\xff" * 7, b"\x0a\xff\xff\xff\xff\x0f", b"\x00" * 33):
        assert ask(members, method, garbage) in refused


@pytest.mark.parametrize("method", METHODS, ids=NAMES)
def test_senseless_messages(members: Members, method: Method[Any, Any]) -> None:
    # A stream of answers may go on for ever.
    timeout_s = 0.05 if method.kind is Kind.SERVER_STREAM else CALL_S

    @fuzz(25)
    @given(st.lists(messages(method.request), min_size=1, max_size=3))
    def sends(requests: list[Any]) -> None:
        code = ask(members, method, *(aimed(members, request) for request in requests), timeout_s=timeout_s)
        assert code is not grpc.StatusCode.DEADLINE_EXCEEDED or method.kind is Kind.SERVER_STREAM, requests

    sends()
    members.check()


def test_heartbeats_that_end_as_they_are_refused_end_at_once(members: Members) -> None:
    """Found here: the end of the stream and the refusal came at once, and the handler stayed for a minute."""
    head = pdpb.RequestHeader(cluster_id=members.cluster_id)
    beat = pdpb.RegionHeartbeatRequest(header=head, leader=metapb.Peer(id=1, store_id=members.context.peer.store_id))
    for _ in range(20):
        assert ask(members, services.PD.RegionHeartbeat, beat) is grpc.StatusCode.OK


@fuzz(25)
@given(data=st.binary(max_size=200))
def test_random_bytes_behind_the_preface(members: Members, data: bytes) -> None:
    import socket

    with socket.create_connection(("127.0.0.1", members.port), CALL_S) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + data)
        connection.shutdown(socket.SHUT_WR)
        connection.settimeout(CALL_S)
        while connection.recv(4096):
            pass
