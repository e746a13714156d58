"""What travels between members and clients: message classes, method tables, key codecs, and the one gRPC adapter.

- `metapb`, `errorpb`, `kvrpcpb`, `tikvpb`, `coprocessor`, `pdpb`, `eraftpb`, `health`: the real cluster's messages, cut
  down to what we use. `drillpb`: our own, between our members and on their disks. All are built into a private pool.
- `services`: one class of methods for each service, such as `services.PD.GetMembers`.
- `rpc`: gRPC, client and server; `http2`: the connections under it. `keys`: how PD and transactions write keys.

The files in `proto/` are the source. After a change run `.venv/bin/python -m drillyard.wire.generate` and commit what
it wrote; a test fails when that was forgotten. This package knows nothing of any other part of Drillyard.
"""
