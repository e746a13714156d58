"""Data directories of former versions: opened, upgraded once, and kept from the versions that wrote them."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from fake_pd import FakePd
from record_format import DELETED, PAIRS
from tikv_cluster import Cluster
from tikv_members import TikvProcess, call, wait_until

from drillyard.emulator.version import ON_DISK_FORMAT
from drillyard.wire import kvrpcpb, metapb
from drillyard.wire.services import TIKV

RECORDED = Path(__file__).with_name("recorded")
UPGRADED = "data directory upgraded"


def started(member: TikvProcess, pd: FakePd) -> Cluster:
    pd.snapshot(lambda mind: setattr(mind, "leader", None))
    member.start()
    wait_until("the region is led", lambda: pd.snapshot(lambda mind: mind.leader))
    return Cluster(pd, [member])


def pairs_of(cluster: Cluster, cf: str = "") -> dict[bytes, bytes]:
    place = cluster.place()
    scan = kvrpcpb.RawScanRequest(context=place.context(), limit=1000, cf=cf)
    return {pair.key: pair.value for pair in call(place.address, TIKV.RawScan, scan).kvs}


def number_in(member: TikvProcess) -> int:
    return int(json.loads((member.home / "data" / "drillyard.json").read_text())["format"])


@pytest.mark.parametrize("former", range(1, ON_DISK_FORMAT))
def test_a_directory_of_a_former_format_is_upgraded_once(tmp_path: Path, former: int) -> None:
    """What it held is there, what is new can be written, and the next start finds nothing to upgrade."""
    with FakePd() as pd:
        member = TikvProcess(tmp_path, pd.endpoints)
        with tarfile.open(RECORDED / f"format-{former}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        assert number_in(member) == former
        # PD knows the cluster of the recording: its first store has id 1 and led region 2, the only one there was.
        known = metapb.Region(id=2, region_epoch=metapb.RegionEpoch(conf_ver=1, version=1))
        known.peers.add(id=3, store_id=1)
        pd.snapshot(lambda mind: setattr(mind, "region", known))
        pd.snapshot(lambda mind: setattr(mind, "ids", 100))
        try:
            cluster = started(member, pd)
            assert pairs_of(cluster) == {key: value for key, value in PAIRS.items() if key != DELETED}
            assert (number_in(member), member.log_text.count(UPGRADED)) == (ON_DISK_FORMAT, 1)
            place = cluster.place()
            put = kvrpcpb.RawPutRequest(context=place.context(), key=b"new", value=b"v", cf="lock")
            assert not call(place.address, TIKV.RawPut, put).HasField("region_error")
            member.kill()
            cluster = started(member, pd)
            assert pairs_of(cluster, "lock") == {b"new": b"v"}
            assert len(pairs_of(cluster)) == len(PAIRS) - 1
            assert (number_in(member), member.log_text.count(UPGRADED)) == (ON_DISK_FORMAT, 1)
        finally:
            member.kill()


def test_a_directory_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    identity = json.dumps({"kind": "tikv", "format": ON_DISK_FORMAT + 1})
    (data / "drillyard.json").write_text(identity)
    with FakePd() as pd:
        code, said = TikvProcess(tmp_path, pd.endpoints).start().ends()
    assert code == 1
    assert f"has on-disk format {ON_DISK_FORMAT + 1}; this version reads up to {ON_DISK_FORMAT}" in said
    assert (data / "drillyard.json").read_text() == identity
    assert not (data / "db").exists()
