"""Records the data directory of one store as the version writes it that runs this: what later versions must open.

    python tests/tikv/record_format.py FILE.tar.xz        with this directory and the version's `src` on PYTHONPATH

It is made when the number of the on-disk format is raised, of the version before, and kept under recorded/.
"""

from __future__ import annotations

import sys
import tarfile
import tempfile
from pathlib import Path

from fake_pd import FakePd
from tikv_cluster import Cluster
from tikv_members import TikvProcess, wait_until

from drillyard.wire import kvrpcpb
from drillyard.wire.services import TIKV

PAIRS = {b"k%03d" % number: b"value %d" % number for number in range(200)}
DELETED = b"k100"
LEFT_OUT = ("drillyard.reserve", "drillyard.lock", "LOG")  # space, a pid, and talk


def record(file: Path) -> None:
    from tikv_members import call

    with tempfile.TemporaryDirectory() as home, FakePd() as pd:
        member = TikvProcess(Path(home), pd.endpoints).start()
        try:
            wait_until("the region is led", lambda: pd.snapshot(lambda mind: mind.leader))
            place = Cluster(pd, [member]).place()
            pairs = [kvrpcpb.KvPair(key=key, value=value) for key, value in PAIRS.items()]
            put = kvrpcpb.RawBatchPutRequest(context=place.context(), pairs=pairs)
            assert not call(place.address, TIKV.RawBatchPut, put).HasField("region_error")
            delete = kvrpcpb.RawDeleteRequest(context=place.context(), key=DELETED)
            assert not call(place.address, TIKV.RawDelete, delete).HasField("region_error")
        finally:
            member.kill()
        with tarfile.open(file, "w:xz") as archive:
            archive.add(
                Path(home) / "data", "data", filter=lambda info: None if Path(info.name).name in LEFT_OUT else info
            )


if __name__ == "__main__":
    record(Path(sys.argv[1]))
