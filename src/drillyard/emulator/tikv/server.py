"""The emulated tikv-server: flags, configuration, and the start in the order of the real one.

    python -m drillyard.emulator.tikv.server --addr=127.0.0.1:20160 --pd=127.0.0.1:2379 --data-dir=DIR

The start: open the storage; find PD; take an identity (cluster, store id) or check the one on disk; if the cluster has
no region yet, write one down and offer it to PD; take up all replicas; listen; register with PD; then report to it.
What makes a start impossible stops the member by name: another cluster's data, an address that another store has, a
storage that cannot be opened. PD being away does not: it is asked until it answers.
"""

from __future__ import annotations

import contextlib
import os
import random
import socket
import sys
import time
from collections.abc import Coroutine, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from drillyard.emulator import flags
from drillyard.emulator.flags import Flag, Key
from drillyard.emulator.logs import LEVELS, Log, open_log
from drillyard.emulator.member import Member, NamedStop, leave, run
from drillyard.emulator.peers import Transport
from drillyard.emulator.raft.types import ProtocolBroken
from drillyard.emulator.storage import Batch, Storage, StorageFailed, StorageOptions, StorageRefused
from drillyard.emulator.store.region import Peer, Region
from drillyard.emulator.store.replica import Settings
from drillyard.emulator.store.split_keys import SplitLimits
from drillyard.emulator.store.store import first_region
from drillyard.emulator.tikv.access import Access
from drillyard.emulator.tikv.deadlocks import Deadlocks
from drillyard.emulator.tikv.engine import Engine, Identity
from drillyard.emulator.tikv.garbage import GarbageCollector
from drillyard.emulator.tikv.heartbeats import Heartbeats, Periods
from drillyard.emulator.tikv.lock_waits import LockWaits
from drillyard.emulator.tikv.online_config import OnlineConfig
from drillyard.emulator.tikv.pd import Endpoint, PdClient, PdRefused, endpoint_of, error_of
from drillyard.emulator.tikv.raw import RawKv
from drillyard.emulator.tikv.records import IDENTITY_KEY, pack_region
from drillyard.emulator.tikv.service import Service
from drillyard.emulator.tikv.splitting import Splitting
from drillyard.emulator.tikv.status import StatusServer, config_document
from drillyard.emulator.tikv.sweep import Sweep
from drillyard.emulator.tikv.transactions import TxnKv
from drillyard.emulator.tikv.txn_metrics import TxnMetrics
from drillyard.emulator.tikv.validation import Validation
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH, ON_DISK_FORMAT
from drillyard.wire import drillpb, metapb, pdpb, services
from drillyard.wire.rpc import Handlers

Address = tuple[str, int]

DEFAULT_ADDRESS = "127.0.0.1:20160"


def _addresses(value: Any) -> tuple[Endpoint, ...]:
    return tuple(endpoint_of(part) for part in str(value).split(",") if part)


def _labels(value: Any) -> dict[str, str]:
    if isinstance(value, dict):
        return {str(key): str(label) for key, label in value.items()}
    pairs = [part.partition("=") for part in str(value).split(",") if part]
    if not all(key and equals for key, equals, _ in pairs):
        raise ValueError("labels are written key=value,key=value")
    return {key: label for key, _, label in pairs}


FLAGS = (
    Flag("addr", None, flags.address, "listen on this address", short="A"),
    Flag("advertise-addr", None, flags.address, "the address that others are told"),
    Flag("status-addr", None, flags.address, "listen for HTTP on this address"),
    Flag("advertise-status-addr", None, flags.address, "the HTTP address that others are told"),
    Flag("data-dir", None, flags.text, "where the data is kept", short="s"),
    Flag("pd", None, _addresses, "the addresses of PD, with commas"),
    Flag("pd-endpoints", None, _addresses, "the same as --pd"),
    Flag("labels", None, _labels, "labels of the store, key=value with commas"),
    Flag("config", None, flags.text, "a TOML file", short="C"),
    Flag("log-file", None, flags.text, "log into this file instead of stderr", short="f"),
    Flag("log-level", None, flags.one_of(*LEVELS), "the least important lines to log", short="L"),
    Flag("version", False, None, "print the version", short="V"),
    Flag("help", False, None, "print this", short="h"),
)

_POSITIVE_COUNT = flags.positive(flags.integer)
_POSITIVE_SPAN = flags.positive(flags.duration)

KEYS = (
    Key("server.addr", None, flags.address),
    Key("server.advertise-addr", None, flags.address),
    Key("server.status-addr", None, flags.address),
    Key("server.advertise-status-addr", None, flags.address),
    Key("server.labels", None, _labels),
    Key("pd.endpoints", None, lambda value: _addresses(",".join(value) if isinstance(value, list) else value)),
    Key("log.level", None, flags.one_of(*LEVELS)),
    Key("log.file.filename", None, flags.text),
    Key("storage.data-dir", None, flags.text),
    Key("storage.api-version", 1, flags.only(1)),
    Key("storage.enable-ttl", False, flags.boolean),
    Key("storage.ttl-check-poll-interval", 12 * 3600.0, _POSITIVE_SPAN),
    Key("storage.reserve-space", 64 << 20, flags.size),
    Key("raftstore.raft-base-tick-interval", 1.0, _POSITIVE_SPAN),
    Key("raftstore.raft-heartbeat-ticks", 2, _POSITIVE_COUNT),
    Key("raftstore.raft-election-timeout-ticks", 10, _POSITIVE_COUNT),
    Key("raftstore.raft-store-max-leader-lease", 9.0, flags.duration),
    Key("raftstore.raft-entry-max-size", 8 << 20, flags.positive(flags.size)),
    Key("raftstore.raft-log-gc-tick-interval", 3.0, _POSITIVE_SPAN),
    Key("raftstore.raft-log-gc-threshold", 50, _POSITIVE_COUNT),
    Key("raftstore.raft-log-gc-count-limit", 16384, _POSITIVE_COUNT),
    Key("raftstore.raft-log-gc-size-limit", 16 << 20, flags.positive(flags.size)),
    Key("raftstore.hibernate-regions", True, flags.boolean),
    Key("raftstore.split-region-check-tick-interval", 10.0, _POSITIVE_SPAN),
    Key("raftstore.merge-check-tick-interval", 2.0, _POSITIVE_SPAN),
    Key("raftstore.merge-max-log-gap", 10, _POSITIVE_COUNT),
    Key("raftstore.peer-stale-state-check-interval", 300.0, _POSITIVE_SPAN),
    Key("raftstore.max-leader-missing-duration", 7200.0, _POSITIVE_SPAN),
    Key("coprocessor.region-split-size", 96 << 20, flags.positive(flags.size)),
    Key("coprocessor.region-max-size", None, flags.positive(flags.size)),
    Key("coprocessor.region-split-keys", 960_000, _POSITIVE_COUNT),
    Key("coprocessor.region-max-keys", None, _POSITIVE_COUNT),
    Key("raftstore.max-peer-down-duration", 600.0, _POSITIVE_SPAN),
    Key("raftstore.pd-heartbeat-tick-interval", 60.0, _POSITIVE_SPAN),
    Key("raftstore.pd-store-heartbeat-tick-interval", 10.0, _POSITIVE_SPAN),
)

# A value in the file is what the flag of the same meaning would have said.
FLAG_OF_KEY = {
    "server.addr": "addr",
    "server.advertise-addr": "advertise-addr",
    "server.status-addr": "status-addr",
    "server.advertise-status-addr": "advertise-status-addr",
    "server.labels": "labels",
    "pd.endpoints": "pd",
    "log.level": "log-level",
    "log.file.filename": "log-file",
    "storage.data-dir": "data-dir",
}


class Configuration(Struct, frozen=True):
    address: Address
    advertised: str
    status: Address | None
    status_advertised: str
    data_dir: str
    pd: tuple[Endpoint, ...]
    labels: dict[str, str]
    log_file: str | None
    log_level: str
    keys: dict[str, Any]

    @property
    def settings(self) -> Settings:
        keys = self.keys
        tick_s: float = keys["raftstore.raft-base-tick-interval"]
        defaults = Settings()
        return Settings(
            raft=replace(
                defaults.raft,
                election_ticks=keys["raftstore.raft-election-timeout-ticks"],
                heartbeat_ticks=keys["raftstore.raft-heartbeat-ticks"],
            ),
            tick_ms=max(1, round(tick_s * 1000)),
            max_peer_down_s=max(1, round(keys["raftstore.max-peer-down-duration"])),
            log_gc_ticks=max(1, round(keys["raftstore.raft-log-gc-tick-interval"] / tick_s)),
            log_gc_threshold=keys["raftstore.raft-log-gc-threshold"],
            log_gc_count_limit=keys["raftstore.raft-log-gc-count-limit"],
            log_gc_bytes_limit=keys["raftstore.raft-log-gc-size-limit"],
            max_entry_bytes=keys["raftstore.raft-entry-max-size"],
            hibernate=keys["raftstore.hibernate-regions"],
            merge_log_gap=keys["raftstore.merge-max-log-gap"],
            merge_check_ticks=max(1, round(keys["raftstore.merge-check-tick-interval"] / tick_s)),
            leader_missing_ticks=max(1, round(keys["raftstore.max-leader-missing-duration"] / tick_s)),
            split=split_limits(keys),
        )

    @property
    def has_ttl(self) -> bool:
        return bool(self.keys["storage.enable-ttl"])

    @property
    def periods(self) -> Periods:
        return Periods(
            store_s=self.keys["raftstore.pd-store-heartbeat-tick-interval"],
            region_s=self.keys["raftstore.pd-heartbeat-tick-interval"],
        )


def configure(arguments: list[str]) -> Configuration:
    """What the command line and the file say; raises `flags.BadFlag`."""
    given = flags.parse_flags(FLAGS, arguments)
    path = given["config"]
    keys = flags.load_config(path, KEYS) if path else {key.name: key.default for key in KEYS}
    for key, flag in FLAG_OF_KEY.items():
        if given[flag] is None:
            given[flag] = keys[key]
    endpoints = given["pd"] or given["pd-endpoints"]
    if not endpoints:
        flags.refuse("no PD is named", "give --pd=HOST:PORT, with commas for more")
    try:
        check_ticks(keys)
    except ValueError as error:
        flags.refuse(str(error), "let several heartbeats fit into an election timeout")
    address = given["addr"] or flags.address(DEFAULT_ADDRESS)
    status = given["status-addr"]
    return Configuration(
        address,
        _written(given["advertise-addr"] or address),
        status,
        _written(given["advertise-status-addr"] or status) if given["advertise-status-addr"] or status else "",
        given["data-dir"] or "./",
        endpoints,
        given["labels"] or {},
        given["log-file"] or None,
        given["log-level"] or "info",
        keys,
    )


def split_limits(keys: Mapping[str, Any]) -> SplitLimits:
    """A region may grow half as large again as its parts will be, unless something else is said."""
    size, count = keys["coprocessor.region-split-size"], keys["coprocessor.region-split-keys"]
    return SplitLimits(
        size,
        keys["coprocessor.region-max-size"] or size // 2 * 3,
        count,
        keys["coprocessor.region-max-keys"] or count // 2 * 3,
    )


def check_ticks(keys: Mapping[str, Any]) -> None:
    if keys["raftstore.raft-heartbeat-ticks"] >= keys["raftstore.raft-election-timeout-ticks"]:
        raise ValueError("raftstore.raft-heartbeat-ticks is not below raftstore.raft-election-timeout-ticks")


def unix_s() -> int:
    """The time by which values expire."""
    return int(time.time())


def _written(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class TikvServer:
    """One store while it runs."""

    def __init__(self, member: Member, configuration: Configuration) -> None:
        self._member = member
        self._log = member.log
        self._configuration = configuration
        self._started_at = int(time.time())

    async def run(self) -> None:
        configuration = self._configuration
        ensure_free(configuration.address)
        if configuration.status is not None:
            ensure_free(configuration.status)
        async with contextlib.AsyncExitStack() as stack:
            storage = self._open_storage()
            stack.callback(storage.close)
            pd = PdClient(configuration.pd, self._log)
            stack.callback(pd.close)
            await self._named(self._serve(stack, storage, pd))

    @staticmethod
    async def _named(work: Coroutine[Any, Any, None]) -> None:
        """Gives what the world did to the member its name."""
        try:
            await work
        except PdRefused as refused:
            raise NamedStop(str(refused), "check --pd, or name an empty directory with --data-dir") from refused
        except StorageFailed as failed:
            raise NamedStop(f"storage failed ({failed.cause.value}): {failed.reason}", failed.mend) from failed

    def _open_storage(self) -> Storage:
        options = StorageOptions(low_water_bytes=self._configuration.keys["storage.reserve-space"])
        try:
            storage = Storage.open(self._configuration.data_dir, "tikv", options)
        except StorageRefused as refused:
            raise NamedStop(refused.reason, refused.mend) from refused
        if storage.found_format != ON_DISK_FORMAT:
            self._log.info("data directory upgraded", from_format=storage.found_format, to_format=ON_DISK_FORMAT)
        storage.on_failure = self._broken
        storage.on_slow_sync = self._log.slow_sync
        storage.on_sync = (
            self._member.metrics.histogram(
                "tikv_raftstore_append_log_duration_seconds", "How long the log took to be durable."
            )
            .labels()
            .observe
        )
        return storage

    def _broken(self, error: Exception) -> None:
        if isinstance(error, StorageFailed):
            self._member.fail(NamedStop(f"storage failed ({error.cause.value}): {error.reason}", error.mend))
        elif isinstance(error, ProtocolBroken):
            self._member.fail(
                NamedStop(f"the replicas contradict each other: {error}", "delete this store in PD and start it empty")
            )
        else:
            self._member.fail(error)

    async def _serve(self, stack: contextlib.AsyncExitStack, storage: Storage, pd: PdClient) -> None:
        configuration = self._configuration

        def background(work: Coroutine[Any, Any, None], name: str) -> None:
            stack.callback(self._member.spawn(self._named(work), name).cancel)

        await pd.connect()
        identity = await self._identify(storage, pd)
        failures = self._member.metrics.counter(
            "tikv_server_report_failure_msg_total", "Messages that did not reach another store.", ("type", "store_id")
        )

        def unreachable(store_id: int) -> None:
            failures.labels("unreachable", store_id).inc()
            engine.unreachable(store_id)

        transport = Transport(lambda store_id: self._resolve(pd, store_id), unreachable, self._log)
        stack.push_async_callback(transport.close)
        engine = Engine(identity, storage, transport, configuration.settings, self._log)
        stack.callback(engine.stop)
        engine.on_broken = self._broken
        engine.on_tick = self._member.lag.note
        await self._bootstrap(engine, pd)
        await engine.load(random.Random().randrange)  # noqa: S311  # it spreads election timeouts
        self._member.keep()
        splitting = Splitting(pd, engine, self._log)
        splitting.check_s = lambda: self._configuration.keys["raftstore.split-region-check-tick-interval"]
        validation = Validation(pd, engine, self._member.metrics, self._log)
        validation.check_s = lambda: self._configuration.keys["raftstore.peer-stale-state-check-interval"]
        heartbeats = Heartbeats(pd, engine, splitting, configuration.periods, self._log)
        self._count_steps(heartbeats)
        transport.identify(identity.cluster_id, identity.store_id)
        online = self._online(engine, heartbeats)
        deadlocks = Deadlocks(engine, transport, lambda: self._first_leader(pd))
        stack.callback(deadlocks.close)
        waits, txn_metrics = LockWaits(Access(engine), deadlocks), TxnMetrics(self._member.metrics)
        transactions = TxnKv(waits, heartbeats.traffic, txn_metrics, has_ttl=configuration.has_ttl)
        raw = RawKv(engine, heartbeats.traffic, unix_s if configuration.has_ttl else None)
        service = Service(raw, transactions, splitting, self._member.metrics)
        peers = transport.handlers(engine.deliver, engine.receive_snapshot)
        await self._listen(stack, engine, online, {**service.handlers(), **peers, **deadlocks.handlers()})
        self._log.info("start raft store thread", store_id=identity.store_id)
        background(engine.tick_forever(), "ticks")
        await self._put_store(pd, identity.store_id)
        background(heartbeats.report_store_forever(), "store heartbeats")
        background(heartbeats.report_regions_forever(), "region heartbeats")
        background(splitting.watch_forever(), "measuring")
        background(validation.watch_forever(), "validating peers")
        if not configuration.has_ttl:
            background(GarbageCollector(engine, pd, transactions, self._log).run_forever(), "garbage collection")
        background(pd.watch(), "watching PD")
        if configuration.has_ttl:
            sweep = Sweep(engine, unix_s, lambda: online.values["storage.ttl-check-poll-interval"], self._log)
            background(sweep.run_forever(), "sweeping what expired")
        self._log.info("TiKV is ready to serve")
        await self._member.until_stopped()

    def _online(self, engine: Engine, heartbeats: Heartbeats) -> OnlineConfig:
        """The configuration, and what a change of it does to the parts of this store."""

        def apply(values: Mapping[str, Any]) -> None:
            changed = replace(self._configuration, keys=dict(values), log_level=values["log.level"])
            check_ticks(changed.keys)
            engine.reconfigure(changed.settings)
            heartbeats.periods = changed.periods
            self._log.set_level(changed.log_level)
            self._configuration = changed

        values = {**self._configuration.keys, "log.level": self._configuration.log_level}
        return OnlineConfig(KEYS, values, apply)

    def _count_steps(self, heartbeats: Heartbeats) -> None:
        messages = self._member.metrics.counter(
            "tikv_pd_heartbeat_message_total", "Steps that PD asked for.", ("type",)
        )
        heartbeats.on_step = lambda kind: messages.labels(kind).inc()

    # ---- who this store is ----

    async def _identify(self, storage: Storage, pd: PdClient) -> Identity:
        packed = storage.get(IDENTITY_KEY)
        if packed is not None:
            known = drillpb.StoreIdentity.FromString(packed)
            if known.cluster_id != pd.cluster_id:
                raise NamedStop(
                    f"cluster ID mismatch: the data directory is of cluster {known.cluster_id}, "
                    f"PD serves cluster {pd.cluster_id}",
                    "check --pd, or name an empty directory with --data-dir",
                )
            if known.has_ttl != self._configuration.has_ttl:
                now = "enable ttl on a non-ttl" if self._configuration.has_ttl else "disable ttl on a ttl"
                raise NamedStop(
                    f"critical config check failed: can't {now} instance",
                    "set storage.enable-ttl as it was, or name an empty directory with --data-dir",
                )
            return Identity(known.cluster_id, known.store_id)
        store_id = await self._alloc_id(pd)
        batch = Batch()
        identity = drillpb.StoreIdentity(
            cluster_id=pd.cluster_id, store_id=store_id, has_ttl=self._configuration.has_ttl
        )
        batch.put(IDENTITY_KEY, identity.SerializeToString())
        storage.write(batch)
        await storage.durable()
        self._log.info("alloc store id", store_id=store_id)
        return Identity(pd.cluster_id, store_id)

    async def _alloc_id(self, pd: PdClient) -> int:
        answer = await pd.call(services.PD.AllocID, pdpb.AllocIDRequest(header=pdpb.RequestHeader()))
        error = error_of(answer)
        if error is not None or not answer.id:
            raise NamedStop(f"PD gives no id away: {error.message if error is not None else 'it answered 0'}")
        return answer.id

    async def _bootstrap(self, engine: Engine, pd: PdClient) -> None:
        """The first store to come makes the first region. PD decides which one was first."""
        founded = engine.founded()
        if founded is None:
            question = pdpb.IsBootstrappedRequest(header=pdpb.RequestHeader())
            if (await pd.call(services.PD.IsBootstrapped, question)).bootstrapped:
                return
            region_id, peer_id = await self._alloc_id(pd), await self._alloc_id(pd)
            founded = first_region(region_id, Peer(peer_id, engine.identity.store_id))
            await engine.found(founded)
        offer = pdpb.BootstrapRequest(
            header=pdpb.RequestHeader(), store=self._store(engine.identity.store_id), region=pack_region(founded)
        )
        answer = await pd.call(services.PD.Bootstrap, offer)
        error = error_of(answer)
        if error is None:
            self._log.info("bootstrap cluster ok", cluster_id=pd.cluster_id, region_id=founded.id)
            await engine.settle(founded, taken=True)
            return
        if error.type != pdpb.ErrorType.ALREADY_BOOTSTRAPPED:
            raise NamedStop(f"PD does not bootstrap the cluster: {error.message}")
        taken = await self._is_known(pd, founded)
        self._log.info("cluster is already bootstrapped", cluster_id=pd.cluster_id, by_this_store=taken)
        await engine.settle(founded, taken=taken)

    async def _is_known(self, pd: PdClient, region: Region) -> bool:
        """Whether the cluster's first region is this one: an answer to an earlier offer may have been lost."""
        question = pdpb.GetRegionRequest(header=pdpb.RequestHeader(), region_key=b"")
        answer = await pd.call(services.PD.GetRegion, question)
        return bool(answer.region.id == region.id)

    def _store(self, store_id: int) -> metapb.Store:
        configuration = self._configuration
        return metapb.Store(
            id=store_id,
            address=configuration.advertised,
            peer_address=configuration.advertised,
            status_address=configuration.status_advertised,
            version=EMULATED_VERSION,
            git_hash=GIT_HASH,
            start_timestamp=self._started_at,
            deploy_path=str(Path(sys.argv[0]).resolve().parent),
            labels=[metapb.StoreLabel(key=key, value=value) for key, value in configuration.labels.items()],
        )

    async def _put_store(self, pd: PdClient, store_id: int) -> None:
        request = pdpb.PutStoreRequest(header=pdpb.RequestHeader(), store=self._store(store_id))
        answer = await pd.call(services.PD.PutStore, request)
        error = error_of(answer)
        if error is not None and error.type == pdpb.STORE_TOMBSTONE:
            raise NamedStop(
                f"PD does not take this store: store {store_id} is a tombstone, it was removed from the cluster",
                "start it with an empty --data-dir, as a new store",
            )
        if error is not None:
            raise NamedStop(
                f"PD does not take this store: {error.message}",
                "give it an address of its own, or delete the store that had this one in PD first",
            )
        self._log.info("put store to PD", store_id=store_id, address=self._configuration.advertised)

    async def _resolve(self, pd: PdClient, store_id: int) -> str | None:
        request = pdpb.GetStoreRequest(header=pdpb.RequestHeader(), store_id=store_id)
        try:
            answer = await pd.call(services.PD.GetStore, request)
        except PdRefused:  # the heartbeats meet it too, and stop the member by name
            return None
        if error_of(answer) is not None or answer.store.state == metapb.StoreState.Tombstone:
            return None
        return answer.store.peer_address or answer.store.address or None

    @staticmethod
    async def _first_leader(pd: PdClient) -> int:
        """The store that leads the region at the start of the key space; 0 if PD does not know."""
        request = pdpb.GetRegionRequest(header=pdpb.RequestHeader(), region_key=b"")
        with contextlib.suppress(PdRefused):  # the heartbeats meet it too
            return (await pd.call(services.PD.GetRegion, request)).leader.store_id
        return 0

    # ---- listening ----

    async def _listen(
        self, stack: contextlib.AsyncExitStack, engine: Engine, online: OnlineConfig, handlers: Handlers
    ) -> None:
        member, configuration = self._member, self._configuration
        listener = await member.listen(*configuration.address, handlers)
        stack.push_async_callback(listener.close)
        self._log.info("listening on addr", addr=_written(configuration.address))
        status = StatusServer(engine, member, online, lambda: config_document(_shown(self._configuration)))
        if configuration.status is not None:
            http = await member.listen(*configuration.status, {}, status.router())
            stack.push_async_callback(http.close)


def _shown(configuration: Configuration) -> dict[str, Any]:
    """The keys that have a value, as the file could have said them."""
    shown: dict[str, Any] = {
        "log.level": configuration.log_level,
        "server.addr": _written(configuration.address),
        "server.advertise-addr": configuration.advertised,
        "server.status-addr": _written(configuration.status) if configuration.status is not None else "",
        "server.advertise-status-addr": configuration.status_advertised,
        "server.labels": configuration.labels,
        "pd.endpoints": [str(endpoint) for endpoint in configuration.pd],
        "storage.data-dir": configuration.data_dir,
    }
    for name, value in configuration.keys.items():
        if name not in FLAG_OF_KEY:
            shown[name] = f"{round(value * 1000)}ms" if isinstance(value, float) else value
    limits = split_limits(configuration.keys)  # PD reads these, and takes no plain numbers for sizes
    shown["coprocessor.region-split-size"] = _size_text(limits.split_bytes)
    shown["coprocessor.region-max-size"] = _size_text(limits.max_bytes)
    shown["coprocessor.region-max-keys"] = limits.max_keys
    return shown


def _size_text(size: int) -> str:
    for shift, unit in ((20, "MiB"), (10, "KiB")):
        if size % (1 << shift) == 0:
            return f"{size >> shift}{unit}"
    return f"{size}B"


def ensure_free(address: Address) -> None:
    """Raises if somebody listens there: before PD is asked for anything in this store's name."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise NamedStop(
                f"cannot listen on {_written(address)}: {error.strerror}",
                "stop whoever has the address, or choose another with --addr or --status-addr",
            ) from error


def welcome(log: Log, configuration: Configuration) -> None:
    log.info("Welcome to TiKV")
    log.info("Release Version", version=EMULATED_VERSION)
    log.info("Edition", edition="emulated by drillyard, not for production")
    log.info("Git Commit Hash", hash=GIT_HASH)
    log.info("using config", data_dir=configuration.data_dir, pd=",".join(map(str, configuration.pd)), pid=os.getpid())


def version_text() -> str:
    return f"TiKV\nRelease Version:   {EMULATED_VERSION}\nEdition:           Emulated\nGit Commit Hash:   {GIT_HASH}\n"


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        given = flags.parse_flags(FLAGS, arguments)
        if given["version"] or given["help"]:
            sys.stdout.write(version_text() if given["version"] else flags.usage("tikv-server", FLAGS))
            return 0
        configuration = configure(arguments)
    except flags.BadFlag as error:
        sys.stderr.write(f"{error}\n")
        return 2
    log = open_log(configuration.log_file, configuration.log_level)
    welcome(log, configuration)

    async def serve(member: Member) -> None:
        await TikvServer(member, configuration).run()

    return run(serve, log)


if __name__ == "__main__":
    leave(main())
