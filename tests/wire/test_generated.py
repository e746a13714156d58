"""The generated files are those of the .proto files, and the classes live beside anybody else's."""

from __future__ import annotations

import os
import subprocess
import sys

from drillyard.wire import drillpb, generate, kvrpcpb, metapb, pdpb, services, tikvpb
from drillyard.wire.method import Kind, Method

ROUND_TRIP = """
from drillyard.wire import pdpb, services
before = pdpb.GetMembersResponse(header=pdpb.ResponseHeader(cluster_id=7))
before.tso_allocator_leaders["global"].name = "pd0"
after = pdpb.GetMembersResponse.FromString(before.SerializeToString())
assert after == before, after
assert pdpb.ErrorType.Name(4) == "ALREADY_BOOTSTRAPPED"
assert type(after.header) is pdpb.ResponseHeader
"""


def test_generated_files_are_up_to_date() -> None:
    stale = generate.stale(generate.compile_all())
    assert not stale, f"run .venv/bin/python -m drillyard.wire.generate and commit {stale}"


def test_the_pure_python_runtime_serves_as_well() -> None:
    environment = {**os.environ, "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "python"}
    subprocess.run([sys.executable, "-c", ROUND_TRIP], check=True, env=environment, timeout=60)


def test_importing_everything_leaves_the_pure_python_runtime_alone() -> None:
    """It costs every member some 30 ms and 4 MB; protobuf's C runtime does without."""
    code = "import sys, drillyard.wire.services; print('google.protobuf.internal.python_message' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60)
    assert answer.stdout.strip() == "False"


def test_our_messages_live_beside_those_of_tikv_python() -> None:
    from tikv._proto import metapb_pb2

    theirs = metapb_pb2.Region(id=3, start_key=b"a", peers=[metapb_pb2.Peer(id=4, store_id=5)])
    ours = metapb.Region.FromString(theirs.SerializeToString())
    assert (ours.id, ours.start_key, ours.peers[0].store_id) == (3, b"a", 5)
    assert not isinstance(ours, metapb_pb2.Region)


def test_methods_have_the_real_paths_and_kinds() -> None:
    assert services.PD.Tso.path == "/pdpb.PD/Tso"
    assert services.PD.Tso.kind is Kind.STREAM
    assert services.PD.GetPrevRegion == Method(
        "/pdpb.PD/GetPrevRegion", pdpb.GetRegionRequest, pdpb.GetRegionResponse, Kind.UNARY
    )
    assert services.TIKV.KVPessimisticRollback.path == "/tikvpb.Tikv/KVPessimisticRollback"
    assert services.TIKV.RawCompareAndSwap.request is kvrpcpb.RawCASRequest
    assert services.HEALTH.Check.path == "/grpc.health.v1.Health/Check"
    assert services.PEER.Deliver.kind is Kind.CLIENT_STREAM


def test_every_arm_of_batch_commands_can_carry_a_refusal() -> None:
    """Whatever a client asks in a batch, there is a field that says no."""
    for arm in tikvpb.BatchCommandsResponse.Response.DESCRIPTOR.oneofs_by_name["cmd"].fields:
        assert arm.message_type is not None
        names = {field.name for field in arm.message_type.fields}
        assert arm.name == "empty" or names & {"region_error", "error", "errors", "other_error"}, arm.name
        asked = tikvpb.BatchCommandsRequest.Request.DESCRIPTOR.fields_by_number[arm.number]
        assert asked.name == arm.name


def test_an_empty_membership_change_is_not_no_change() -> None:
    leave_joint = drillpb.Entry(index=1, change=drillpb.ConfigurationChange())
    assert drillpb.Entry.FromString(leave_joint.SerializeToString()).HasField("change")
    assert not drillpb.Entry.FromString(drillpb.Entry(index=1).SerializeToString()).HasField("change")
