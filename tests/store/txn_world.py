"""A bank of transactions in one seed: clients that stop anywhere, requests that come late or twice, and a judge.

The clients are generators that hand out one request at a time; chance decides whose turn it is, who dies, how time
passes and which old request comes again. Every transfer moves money between two accounts, so at each instant the sum
is what it was. The judge holds the store to snapshot isolation: every reader sees the whole sum, the same timestamp
always shows the same, nobody's update is lost (each committed transfer had read what its commit replaced), and what a
client was told is so at the end.
"""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import dataclass, field
from typing import Any

from txn_bench import Bench, kind_of, kind_of_error, ts

from drillyard.emulator.store.mvcc import Damaged, fate_of
from drillyard.emulator.store.reads import locks_slice
from drillyard.emulator.store.state import Family, Span
from drillyard.emulator.store.transactions import Kind, apply_transaction, garbage_of
from drillyard.wire import keys, kvrpcpb

Op = kvrpcpb.Op
ACCOUNTS = [b"a%d" % number for number in range(5)]
OPENING = 100
TTL_MS = 30
ATTEMPTS = 6
Work = Generator[Any, Any, None]


class Violation(AssertionError):
    """What no reader of this store may ever see."""


@dataclass
class Transfer:
    start_ts: int
    primary: bytes = b""
    read: dict[bytes, int] = field(default_factory=dict)
    wrote: dict[bytes, int] = field(default_factory=dict)
    told: str = ""  # what the client knows: committed, rolled back, or nothing


@dataclass(frozen=True)
class Ask:
    """One request; what comes back is its answer."""

    kind: Kind
    request: Any

    @property
    def start_ts(self) -> int:
        is_check = self.kind == Kind.CHECK_TXN_STATUS
        return int(self.request.lock_ts if is_check else self.request.start_version)


@dataclass(frozen=True)
class Look:
    """A read of one account as of a timestamp."""

    key: bytes
    at: int
    resolved: frozenset[int] = frozenset()


class World:
    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.bench = Bench()
        self.now_ms = 1000
        self.logical = 0
        self.transfers: list[Transfer] = []
        self.asked: list[Ask] = []
        self.seen: dict[int, dict[bytes, int]] = {}
        self.running: dict[int, Work] = {}
        self.starts: dict[int, int] = {}
        self.answers: dict[int, Any] = {}
        self.safe_point = 0
        self.reads = self.collections = 0
        self.count = 0
        self.bench.write(self.tick(), self.tick(), *(self._put(account, OPENING) for account in ACCOUNTS))

    def tick(self) -> int:
        self.logical += 1
        return ts(self.now_ms, self.logical)

    def _put(self, account: bytes, amount: int) -> kvrpcpb.Mutation:
        padding = 300 if self.chance.random() < 0.2 else 6
        return kvrpcpb.Mutation(op=Op.Put, key=account, value=(b"%d" % amount).zfill(padding))

    # ---- the course of things ----

    def run(self, steps: int) -> None:
        for _ in range(steps):
            if len(self.running) < 6:
                self._begin()
            number = self.chance.choice(sorted(self.running))
            self._step(number)
            what = self.chance.random()
            if what < 0.02:
                self._forget(self.chance.choice(sorted(self.running) or [0]))  # the client dies where it is
            elif what < 0.08:
                self.now_ms += self.chance.choice((1, 5, 40))
            elif what < 0.16 and self.asked:
                again = self.chance.choice(self.asked[-60:])
                if again.start_ts > self.safe_point:  # no request is as late as that: the rollbacks are collected too
                    self.bench.do(again.kind, again.request)
            elif what < 0.17:
                self._collect()
        self._finish()

    def _begin(self) -> None:
        self.count += 1
        start = self.tick()
        kind = self.chance.choice(
            (self.optimist, self.optimist, self.pessimist, self.pessimist, self.reader, self.reader)
        )
        if kind == self.reader and self.seen and self.chance.random() < 0.5:
            start = self.chance.choice(sorted(self.seen))  # to see the same again
        self.running[self.count] = kind(start)
        self.starts[self.count] = start
        self.answers[self.count] = None

    def _forget(self, number: int) -> None:
        self.running.pop(number, None)
        self.starts.pop(number, None)

    def _step(self, number: int) -> None:
        try:
            asked = self.running[number].send(self.answers[number])
        except StopIteration:
            self._forget(number)
            return
        self.answers[number] = self._carry_out(asked)

    def _carry_out(self, asked: Any) -> Any:
        if isinstance(asked, Look):
            try:
                found = self.bench.get(asked.key, asked.at, resolved=asked.resolved)
            except Damaged as damaged:
                raise Violation(str(damaged)) from damaged
            return found if isinstance(found, str) or found is None else int(found)
        if isinstance(asked, Ask):
            self.asked.append(asked)
            answer = self.bench.do(asked.kind, asked.request)
            return None if self.chance.random() < 0.03 else answer  # the answer is lost
        return None

    def _collect(self) -> None:
        """Up to where nobody reads any more; only where no lock is left."""
        safe_point = min([*self.starts.values(), *sorted(self.seen)[-3:], self.tick()]) - 1
        locks = locks_slice(self.bench.state, Span(b"", b""), safe_point).locks
        if not locks and safe_point > self.safe_point:
            self.safe_point = safe_point
            self.collections += 1
            encoded = [keys.encode(account) for account in ACCOUNTS]
            apply_transaction(garbage_of(encoded, safe_point).record, self.bench.state, lambda key, value: None)
            self.seen = {at: seen for at, seen in self.seen.items() if at > safe_point}

    # ---- clients ----

    def optimist(self, start: int) -> Work:
        transfer = yield from self._choose(start)
        for key in transfer.read:
            balance = yield from self._read(key, start)
            if balance is None:
                return
            transfer.read[key] = balance
        self._decide(transfer)
        yield from self._end(transfer, 0)

    def pessimist(self, start: int) -> Work:
        transfer = yield from self._choose(start)
        for_update = start
        for key in transfer.read:
            for _ in range(ATTEMPTS):
                answer = yield Ask(Kind.PESSIMISTIC_LOCK, self._lock_request(transfer, key, for_update))
                if answer is None:
                    continue
                refusal = kind_of(answer)
                if refusal == "":
                    transfer.read[key] = int(answer.values[0])
                    break
                if refusal == "locked":
                    yield from self._resolve(answer.errors[0].locked, 0)
                for_update = self.tick()
            else:
                yield Ask(Kind.PESSIMISTIC_ROLLBACK, self._unlock_request(transfer, for_update))
                return
        self._decide(transfer)
        if self.chance.random() < 0.3:
            yield Ask(
                Kind.TXN_HEART_BEAT,
                kvrpcpb.TxnHeartBeatRequest(
                    primary_lock=transfer.primary, start_version=start, advise_lock_ttl=3 * TTL_MS
                ),
            )
        yield from self._end(transfer, for_update)

    def reader(self, at: int) -> Work:
        seen: dict[bytes, int] = {}
        for account in self.chance.sample(ACCOUNTS, len(ACCOUNTS)):
            balance = yield from self._read(account, at)
            if balance is None:
                return
            seen[account] = balance
        self.reads += 1
        if sum(seen.values()) != OPENING * len(ACCOUNTS):
            raise Violation(f"as of {at} the sum is {sum(seen.values())}")
        if self.seen.setdefault(at, seen) != seen:
            raise Violation(f"as of {at} the same reader saw {self.seen[at]} and {seen}")

    # ---- parts of clients ----

    def _choose(self, start: int) -> Generator[Any, Any, Transfer]:
        accounts = self.chance.sample(ACCOUNTS, 2)
        transfer = Transfer(start, accounts[0], dict.fromkeys(accounts, 0))
        self.transfers.append(transfer)
        yield None
        return transfer

    def _decide(self, transfer: Transfer) -> None:
        giver, taker = transfer.read
        amount = self.chance.randint(0, 40)
        transfer.wrote = {giver: transfer.read[giver] - amount, taker: transfer.read[taker] + amount}

    def _lock_request(self, transfer: Transfer, key: bytes, for_update: int) -> kvrpcpb.PessimisticLockRequest:
        return kvrpcpb.PessimisticLockRequest(
            mutations=[kvrpcpb.Mutation(op=Op.PessimisticLock, key=key)],
            primary_lock=transfer.primary,
            start_version=transfer.start_ts,
            for_update_ts=for_update,
            lock_ttl=TTL_MS,
            return_values=True,
            min_commit_ts=transfer.start_ts + 1,
        )

    @staticmethod
    def _unlock_request(transfer: Transfer, for_update: int) -> kvrpcpb.PessimisticRollbackRequest:
        return kvrpcpb.PessimisticRollbackRequest(
            start_version=transfer.start_ts, for_update_ts=for_update, keys=list(transfer.read)
        )

    def _read(self, key: bytes, at: int) -> Generator[Any, Any, int | None]:
        resolved: set[int] = set()
        for _ in range(ATTEMPTS):
            balance = yield Look(key, at, frozenset(resolved))
            if isinstance(balance, int):
                return balance
            assert balance == "locked", balance
            lock = self.bench.lock_of(key)
            if lock is not None:
                info = kvrpcpb.LockInfo(primary_lock=lock.primary, lock_version=lock.start_ts, key=key)
                resolved |= yield from self._resolve(info, at)
        return None

    def _resolve(self, lock: kvrpcpb.LockInfo, reader: int) -> Generator[Any, Any, set[int]]:
        """Finds out about the primary and ends the lock accordingly; the transactions that need not be waited for."""
        check = kvrpcpb.CheckTxnStatusRequest(
            primary_key=lock.primary_lock,
            lock_ts=lock.lock_version,
            caller_start_ts=reader,
            current_ts=self.tick(),
            rollback_if_not_exist=True,
        )
        status = yield Ask(Kind.CHECK_TXN_STATUS, check)
        if status is None or status.HasField("error"):
            return set()
        if status.lock_ttl:
            return {lock.lock_version} if status.action == kvrpcpb.Action.MinCommitTSPushed else set()
        if reader and status.commit_version > reader:
            return {lock.lock_version}
        yield Ask(
            Kind.RESOLVE_LOCK,
            kvrpcpb.ResolveLockRequest(
                start_version=lock.lock_version, commit_version=status.commit_version, keys=[lock.key]
            ),
        )
        return set()

    def _end(self, transfer: Transfer, for_update: int) -> Work:
        """Two phases. Prewrites may go key by key, in any order."""
        mutations = [self._put(key, amount) for key, amount in transfer.wrote.items()]
        parts = [mutations] if self.chance.random() < 0.4 else [[each] for each in mutations]
        self.chance.shuffle(parts)
        for part in parts:
            if not (yield from self._prewrite(transfer, part, for_update)):
                yield Ask(
                    Kind.BATCH_ROLLBACK,
                    kvrpcpb.BatchRollbackRequest(start_version=transfer.start_ts, keys=list(transfer.wrote)),
                )
                transfer.told = "rolled back"
                return
        yield from self._commit(transfer)

    def _prewrite(self, transfer: Transfer, part: list[kvrpcpb.Mutation], for_update: int) -> Generator[Any, Any, bool]:
        request = kvrpcpb.PrewriteRequest(
            mutations=part,
            primary_lock=transfer.primary,
            start_version=transfer.start_ts,
            lock_ttl=TTL_MS,
            for_update_ts=for_update,
            min_commit_ts=transfer.start_ts + 1,
        )
        if for_update:
            request.pessimistic_actions.extend([1] * len(part))  # type: ignore[list-item]
        for _ in range(ATTEMPTS):
            answer = yield Ask(Kind.PREWRITE, request)
            if answer is None:
                continue
            kinds = {kind_of_error(error) for error in answer.errors}
            if not kinds:
                return True
            if kinds != {"locked"}:
                return False
            for error in answer.errors:
                yield from self._resolve(error.locked, 0)
        return False

    def _commit(self, transfer: Transfer) -> Work:
        others = [key for key in transfer.wrote if key != transfer.primary]
        for _ in range(ATTEMPTS):
            commit = self.tick()
            yield None  # the timestamp is older than what happens meanwhile
            answer = yield Ask(Kind.COMMIT, self._commit_request(transfer, commit, [transfer.primary]))
            if answer is None:
                return  # it is not known
            refusal = kind_of(answer)
            if refusal == "":
                transfer.told = "committed"
                yield Ask(Kind.COMMIT, self._commit_request(transfer, commit, others))
                return
            if refusal != "commit_ts_expired":
                transfer.told = "rolled back"
                return

    @staticmethod
    def _commit_request(transfer: Transfer, commit: int, wanted: list[bytes]) -> kvrpcpb.CommitRequest:
        return kvrpcpb.CommitRequest(start_version=transfer.start_ts, commit_version=commit, keys=wanted)

    # ---- the judgement ----

    def _finish(self) -> None:
        self.running.clear()
        self.starts.clear()
        self.now_ms += 1000
        for account in ACCOUNTS:
            while (lock := self.bench.lock_of(account)) is not None:
                self._drive(
                    self._resolve(
                        kvrpcpb.LockInfo(primary_lock=lock.primary, lock_version=lock.start_ts, key=account), 0
                    )
                )
        self._drive(self.reader(self.tick()))
        self._judge_transfers()

    def _drive(self, work: Generator[Any, Any, Any]) -> None:
        answer = None
        while True:
            try:
                answer = self._carry_out(work.send(answer))
            except StopIteration:
                return

    def _judge_transfers(self) -> None:
        committed: list[tuple[int, Transfer]] = []
        for transfer in self.transfers:
            fates = [self._commit_ts_of(key, transfer) for key in transfer.wrote]
            known = {fate for fate in fates if fate is not None}
            if transfer.told == "rolled back" and known - {0}:
                raise Violation(f"{transfer} was told to be rolled back")
            if transfer.told == "committed" and 0 in known:
                raise Violation(f"{transfer} was told to be committed, and is not on every key: {fates}")
            if len(known) > 1:
                raise Violation(f"{transfer} is committed in part: {fates}")
            if known - {0}:
                committed.append((max(known), transfer))
        self._judge_updates(committed)

    def _commit_ts_of(self, key: bytes, transfer: Transfer) -> int | None:
        """0: rolled back, or never there. None: nothing is known any more, because its record was collected.

        A check that comes again after that finds nothing, and writes a rollback which means nothing: every lock of the
        transaction was resolved before.
        """
        fate = fate_of(self.bench.state, keys.encode(key), transfer.start_ts)
        if fate.version is not None and fate.is_committed:
            return fate.version.commit_ts
        return 0 if transfer.start_ts > self.safe_point else None

    def _judge_updates(self, committed: list[tuple[int, Transfer]]) -> None:
        """Between the versions that are left: each transfer had read the version before its own."""
        before: dict[bytes, int] = {}
        for commit_ts, transfer in sorted(committed, key=lambda pair: pair[0]):
            for key, balance in transfer.wrote.items():
                if self._commit_ts_of(key, transfer) is None:
                    continue
                if key in before and before[key] != transfer.read[key]:
                    raise Violation(f"{transfer}, committed at {commit_ts}, had not read {before[key]} of {key!r}")
                before[key] = balance
        writes = self.bench.state.scan(Span(b"", b"", Family.LOCK), 1)
        assert not writes
