"""The gRPC service of a store: which method is served by what, and BatchCommands, which carries many of them.

Rules: requests of one BatchCommands stream are served at the same time and answered as they finish, with what else has
finished by then; a slow one holds nobody up. At most `MAX_IN_FLIGHT` of a stream are served or wait for the client to
read their answers; the stream is not read further meanwhile. The arm of the answer is the arm of the question.

What is not emulated (the coprocessor, imports) answers at once, in the field that its clients treat as final (`abort`
of a KeyError, or the error text), so that a client fails with the reason instead of trying for ever.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from drillyard.emulator import health
from drillyard.emulator.metrics import Histogram, Registry
from drillyard.emulator.tikv.raw import RawKv
from drillyard.emulator.tikv.splitting import Splitting
from drillyard.emulator.tikv.transactions import TxnKv
from drillyard.wire import kvrpcpb, tikvpb
from drillyard.wire.method import Method
from drillyard.wire.rpc import Handlers, RpcError, ServerStream, Status
from drillyard.wire.services import TIKV

MAX_IN_FLIGHT = 1024
SEND_BYTES = 16 << 20  # after which answers of a batch wait for the next message
NOT_SERVED = "this is an emulated TiKV: it does not serve {}"

Answer = tuple[tikvpb.BatchCommandsResponse.Response, int]
Handler = Callable[[Any], Awaitable[Any]]
BatchStream = ServerStream[tikvpb.BatchCommandsRequest, tikvpb.BatchCommandsResponse]

# The names of the arms whose handlers serve real requests; those of the methods differ only in their spelling.
ARMS: dict[str, Method[Any, Any]] = {
    "raw_get": TIKV.RawGet,
    "raw_batch_get": TIKV.RawBatchGet,
    "raw_put": TIKV.RawPut,
    "raw_batch_put": TIKV.RawBatchPut,
    "raw_delete": TIKV.RawDelete,
    "raw_batch_delete": TIKV.RawBatchDelete,
    "raw_scan": TIKV.RawScan,
    "raw_delete_range": TIKV.RawDeleteRange,
    "raw_batch_scan": TIKV.RawBatchScan,
    "get": TIKV.KvGet,
    "scan": TIKV.KvScan,
    "prewrite": TIKV.KvPrewrite,
    "commit": TIKV.KvCommit,
    "cleanup": TIKV.KvCleanup,
    "batch_get": TIKV.KvBatchGet,
    "batch_rollback": TIKV.KvBatchRollback,
    "scan_lock": TIKV.KvScanLock,
    "resolve_lock": TIKV.KvResolveLock,
    "gc": TIKV.KvGC,
    "delete_range": TIKV.KvDeleteRange,
    "pessimistic_lock": TIKV.KvPessimisticLock,
    "pessimistic_rollback": TIKV.KVPessimisticRollback,
    "check_txn_status": TIKV.KvCheckTxnStatus,
    "txn_heart_beat": TIKV.KvTxnHeartBeat,
    "check_secondary_locks": TIKV.KvCheckSecondaryLocks,
}

REFUSED: tuple[Method[Any, Any], ...] = (
    TIKV.KvImport,
    TIKV.Coprocessor,
    TIKV.RawCoprocessor,
)


def refuse(answer: Message, name: str) -> None:
    """Fills in the refusal, in whichever field this answer has for an error that ends the client's attempt."""
    text = NOT_SERVED.format(name)
    fields = answer.DESCRIPTOR.fields_by_name
    for candidate in ("error", "errors", "other_error"):
        field = fields.get(candidate)
        if field is None:
            continue
        if field.type == FieldDescriptor.TYPE_STRING:
            setattr(answer, candidate, text)
        elif candidate == "errors":
            getattr(answer, candidate).add(abort=text)
        else:
            getattr(answer, candidate).abort = text
        return
    raise RpcError(Status.UNIMPLEMENTED, text)


class Service:
    def __init__(self, raw: RawKv, txn: TxnKv, splitting: Splitting, metrics: Registry) -> None:
        served: dict[Method[Any, Any], Handler] = {
            TIKV.RawGet: raw.get,
            TIKV.RawBatchGet: raw.batch_get,
            TIKV.RawPut: raw.put,
            TIKV.RawBatchPut: raw.batch_put,
            TIKV.RawDelete: raw.delete,
            TIKV.RawBatchDelete: raw.batch_delete,
            TIKV.RawScan: raw.scan,
            TIKV.RawDeleteRange: raw.delete_range,
            TIKV.RawBatchScan: raw.batch_scan,
            TIKV.RawCompareAndSwap: raw.compare_and_swap,
            TIKV.RawGetKeyTTL: raw.key_ttl,
            TIKV.RawChecksum: raw.checksum,
            TIKV.KvGet: txn.get,
            TIKV.KvBatchGet: txn.batch_get,
            TIKV.KvScan: txn.scan,
            TIKV.KvScanLock: txn.scan_lock,
            TIKV.KvPrewrite: txn.prewrite,
            TIKV.KvCommit: txn.commit,
            TIKV.KvCleanup: txn.cleanup,
            TIKV.KvBatchRollback: txn.batch_rollback,
            TIKV.KvPessimisticLock: txn.pessimistic_lock,
            TIKV.KVPessimisticRollback: txn.pessimistic_rollback,
            TIKV.KvTxnHeartBeat: txn.txn_heart_beat,
            TIKV.KvCheckTxnStatus: txn.check_txn_status,
            TIKV.KvCheckSecondaryLocks: txn.check_secondary_locks,
            TIKV.KvResolveLock: txn.resolve_lock,
            TIKV.KvGC: txn.gc,
            TIKV.KvDeleteRange: txn.delete_range,
            TIKV.SplitRegion: splitting.on_request,
            TIKV.GetStoreSafeTS: _safe_ts,
        }
        durations = metrics.histogram(
            "tikv_grpc_msg_duration_seconds", "How long the messages of clients took.", ("type", "priority")
        )
        self._unary: dict[Method[Any, Any], Handler] = {
            method: self._timed(handler, durations.labels(snake(method.name), "normal"))
            for method, handler in served.items()
        }
        self._unary |= {method: _refusing(method) for method in REFUSED}
        self._arms: Mapping[str, Handler] = {arm: self._unary[method] for arm, method in ARMS.items()}

    def handlers(self) -> Handlers:
        return {**self._unary, TIKV.BatchCommands: self.batch_commands, **health.handlers()}

    @staticmethod
    def _timed(handler: Handler, duration: Histogram) -> Handler:
        loop = asyncio.get_running_loop()

        async def timed(request: Any) -> Any:
            began = loop.time()
            answer = await handler(request)
            duration.observe(loop.time() - began)
            return answer

        return timed

    # ---- BatchCommands ----

    async def batch_commands(self, stream: BatchStream) -> None:
        stream.greet()
        batch = _Batch(stream, self._arms)
        try:
            await batch.run()
        finally:
            batch.cancel()


class _Batch:
    """One BatchCommands stream: what is being served on it, and the answers that wait to be sent together."""

    def __init__(self, stream: BatchStream, arms: Mapping[str, Handler]) -> None:
        self._stream = stream
        self._arms = arms
        self._tasks: set[asyncio.Task[bool]] = set()
        self._room = asyncio.Semaphore(MAX_IN_FLIGHT)  # of requests that are served or whose answers are not sent yet
        self._answers: deque[Answer] = deque()
        self._has_answers = asyncio.Event()
        self._is_ending = False
        self._loop = asyncio.get_running_loop()
        self._broken: asyncio.Future[None] = self._loop.create_future()  # by a request that no answer fits
        self._sender = self._loop.create_task(self._send_answers())
        self._reader = self._loop.create_task(self._read())

    async def run(self) -> None:
        """Returns when everything that was asked has been answered; raises what makes that impossible."""
        parts: set[asyncio.Future[None]] = {self._reader, self._sender, self._broken}
        while not self._sender.done():
            done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
            for part in done:
                part.result()
            parts.discard(self._reader)

    def cancel(self) -> None:
        for task in (*self._tasks, self._reader, self._sender):
            task.cancel()
        self._broken.cancel()

    async def _read(self) -> None:
        async for message in self._stream:
            for request, request_id in zip(message.requests, message.request_ids, strict=False):
                await self._room.acquire()
                task = self._loop.create_task(self._serve(request, request_id))
                self._tasks.add(task)
                task.add_done_callback(self._served)
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._is_ending = True
        self._has_answers.set()

    def _served(self, task: asyncio.Task[bool]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is None and not task.result():
            self._room.release()  # no answer will do it
        elif error is not None and not self._broken.done():
            self._broken.set_exception(error)

    async def _serve(self, request: tikvpb.BatchCommandsRequest.Request, request_id: int) -> bool:
        """Whether there is an answer."""
        arm = request.WhichOneof("cmd")
        response = tikvpb.BatchCommandsResponse.Response()
        if arm == "empty":
            response.empty.test_id = request.empty.test_id
        elif arm in self._arms:
            answer = await self._arms[arm](getattr(request, arm))
            getattr(response, arm).CopyFrom(answer)
        elif arm is not None:
            _refuse_arm(response, arm)
        else:
            return False  # an arm that is newer than this store: nothing could be answered in it
        self._answers.append((response, request_id))
        self._has_answers.set()
        return True

    async def _send_answers(self) -> None:
        while self._answers or not self._is_ending:
            await self._has_answers.wait()
            self._has_answers.clear()
            while self._answers:
                answers = self._take()
                await self._stream.send(answers)
                for _ in answers.request_ids:
                    self._room.release()

    def _take(self) -> tikvpb.BatchCommandsResponse:
        """As many of the answers as go well into one message, but at least one."""
        answers, size = tikvpb.BatchCommandsResponse(), 0
        while self._answers and size < SEND_BYTES:
            response, request_id = self._answers.popleft()
            answers.responses.append(response)
            answers.request_ids.append(request_id)
            size += response.ByteSize()
        return answers


def _refuse_arm(response: tikvpb.BatchCommandsResponse.Response, arm: str) -> None:
    answer = getattr(response, arm)
    answer.SetInParent()
    refuse(answer, arm)


def _refusing(method: Method[Any, Any]) -> Handler:
    async def refusing(request: Message) -> Message:
        answer: Message = method.response()
        refuse(answer, method.name)
        return answer

    return refusing


async def _safe_ts(request: kvrpcpb.StoreSafeTSRequest) -> kvrpcpb.StoreSafeTSResponse:
    """0: nothing may be read stale here. Clients ask every store every other second."""
    return kvrpcpb.StoreSafeTSResponse(safe_ts=0)


def snake(name: str) -> str:
    """RawBatchGet as the metrics spell it: raw_batch_get."""
    words = name.replace("TTL", "Ttl").replace("GC", "Gc").replace("KV", "Kv")
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in words).lstrip("_")
