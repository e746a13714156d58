"""One state under transactions: requests as clients send them, judged as a region judges them."""

from __future__ import annotations

from typing import Any

from drillyard.emulator.store.mvcc import LOGICAL_BITS, Lock, Write, decode_lock, decode_write, split_versioned
from drillyard.emulator.store.percolator import Refused
from drillyard.emulator.store.reads import Reader, Wanted, get, scan_slice
from drillyard.emulator.store.state import Family, MemoryState, Span
from drillyard.emulator.store.transactions import Kind, Transacted, apply_transaction, key_error, transact
from drillyard.wire import keys, kvrpcpb

Op = kvrpcpb.Op


def ts(physical_ms: int, logical: int = 0) -> int:
    return (physical_ms << LOGICAL_BITS) + logical


def put(key: bytes, value: bytes = b"v", **fields: Any) -> kvrpcpb.Mutation:
    return kvrpcpb.Mutation(op=Op.Put, key=key, value=value, **fields)


def delete(key: bytes, **fields: Any) -> kvrpcpb.Mutation:
    return kvrpcpb.Mutation(op=Op.Del, key=key, **fields)


def insert(key: bytes, value: bytes = b"v") -> kvrpcpb.Mutation:
    return kvrpcpb.Mutation(op=Op.Insert, key=key, value=value)


class Bench:
    def __init__(self) -> None:
        self.state = MemoryState()
        self.outcome: Transacted

    def do(self, kind: Kind, request: Any) -> Any:
        command = transact(kind, request)
        self.outcome = apply_transaction(command.record, self.state, lambda key, value: None)
        return self.outcome.answer

    # ---- commands; each gives the kind of its error, or an empty string ----

    def prewrite(self, start: int, *mutations: kvrpcpb.Mutation, **fields: Any) -> str:
        fields.setdefault("primary_lock", mutations[0].key)
        fields.setdefault("lock_ttl", 3000)
        request = kvrpcpb.PrewriteRequest(start_version=start, mutations=mutations, **fields)
        return kind_of(self.do(Kind.PREWRITE, request))

    def commit(self, start: int, commit: int, *at: bytes) -> str:
        return kind_of(self.do(Kind.COMMIT, kvrpcpb.CommitRequest(start_version=start, commit_version=commit, keys=at)))

    def write(self, start: int, commit: int, *mutations: kvrpcpb.Mutation) -> None:
        assert self.prewrite(start, *mutations) == ""
        assert self.commit(start, commit, *(mutation.key for mutation in mutations)) == ""

    def roll_back(self, start: int, *at: bytes) -> str:
        return kind_of(self.do(Kind.BATCH_ROLLBACK, kvrpcpb.BatchRollbackRequest(start_version=start, keys=at)))

    def clean_up(self, start: int, key: bytes, now: int) -> Any:
        return self.do(Kind.CLEANUP, kvrpcpb.CleanupRequest(start_version=start, key=key, current_ts=now))

    def lock(self, start: int, for_update: int, *at: bytes, **fields: Any) -> Any:
        fields.setdefault("primary_lock", at[0])
        fields.setdefault("lock_ttl", 3000)
        mutations = [kvrpcpb.Mutation(op=Op.PessimisticLock, key=key) for key in at]
        if fields.pop("must_be_new", False):
            mutations[0].assertion = kvrpcpb.Assertion.NotExist
        request = kvrpcpb.PessimisticLockRequest(
            start_version=start, for_update_ts=for_update, mutations=mutations, **fields
        )
        return self.do(Kind.PESSIMISTIC_LOCK, request)

    def unlock(self, start: int, for_update: int, *at: bytes) -> str:
        request = kvrpcpb.PessimisticRollbackRequest(start_version=start, for_update_ts=for_update, keys=at)
        return kind_of(self.do(Kind.PESSIMISTIC_ROLLBACK, request))

    def check(self, start: int, key: bytes, caller: int = 0, now: int = 0, **fields: Any) -> Any:
        request = kvrpcpb.CheckTxnStatusRequest(
            primary_key=key, lock_ts=start, caller_start_ts=caller, current_ts=now, **fields
        )
        return self.do(Kind.CHECK_TXN_STATUS, request)

    def check_secondaries(self, start: int, *at: bytes) -> Any:
        request = kvrpcpb.CheckSecondaryLocksRequest(start_version=start, keys=at)
        return self.do(Kind.CHECK_SECONDARY_LOCKS, request)

    def resolve(self, start: int, commit: int, *at: bytes, kind: Kind = Kind.RESOLVE_LOCK) -> str:
        return kind_of(self.do(kind, kvrpcpb.ResolveLockRequest(start_version=start, commit_version=commit, keys=at)))

    def heart_beat(self, start: int, key: bytes, ttl: int) -> Any:
        request = kvrpcpb.TxnHeartBeatRequest(primary_lock=key, start_version=start, advise_lock_ttl=ttl)
        return self.do(Kind.TXN_HEART_BEAT, request)

    # ---- looking ----

    def get(self, key: bytes, at: int, **reader: Any) -> bytes | str | None:
        """The value, or the kind of the error."""
        try:
            found = get(Reader(self.state, at, **reader), keys.encode(key))
        except Refused as refused:
            return kind_of_error(key_error(refused.reason))
        return None if found is None else found.value

    def scan(self, at: int, start: bytes = b"", end: bytes = b"", **wanted: Any) -> list[tuple[bytes, bytes | str]]:
        span: Span | None = Span(keys.encode(start), keys.encode(end) if end else b"")
        limit = wanted.pop("limit", 1 << 30)
        rows: list[tuple[bytes, bytes | str]] = []
        while span is not None and len(rows) < limit:
            taken = scan_slice(Reader(self.state, at), span, Wanted(limit - len(rows), **wanted))
            rows += [(keys.decode(row.key)[0], "locked" if row.blocked else row.value) for row in taken.found]
            span = taken.rest
        return rows

    def lock_of(self, key: bytes) -> Lock | None:
        record = self.state.get(keys.encode(key), Family.LOCK)
        return None if record is None else decode_lock(record)

    def writes_of(self, key: bytes) -> dict[int, Write]:
        encoded = keys.encode(key)
        pairs = self.state.scan(Span(encoded, encoded + b"\xff" * 9, Family.WRITE), 1000)
        return {split_versioned(place)[1]: decode_write(record) for place, record in pairs}


def kind_of(answer: Any) -> str:
    errors = list(answer.errors) if hasattr(answer, "errors") else [answer.error] if answer.HasField("error") else []
    return kind_of_error(errors[0]) if errors else ""


def kind_of_error(error: kvrpcpb.KeyError) -> str:
    """A conflict has a text beside it, for old clients."""
    named = [field.name for field, _ in error.ListFields()]
    return "conflict" if "conflict" in named else named[0]
