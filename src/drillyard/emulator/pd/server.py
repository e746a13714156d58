"""The emulated pd-server: flags and configuration, the start of a member, and its end.

    python -m drillyard.emulator.pd.server --name=pd0 --data-dir=... --client-urls=http://127.0.0.1:2379 ...

Rules: flags and file keys are the real server's; what it cannot act on is refused by name rather than ignored. Who a
member is, `identity` finds out.

The parts that decide are elsewhere: `cluster`, `placement`, `timestamps`.
"""

from __future__ import annotations

import os
import random
import secrets
import sys
import time
from collections.abc import Sequence
from typing import Any

from msgspec import Struct

from drillyard.emulator import flags
from drillyard.emulator.flags import BadFlag, Flag, Key
from drillyard.emulator.logs import Log, open_log
from drillyard.emulator.member import Member, NamedStop, leave, run
from drillyard.emulator.pd.config import Options, Settings
from drillyard.emulator.pd.consensus import Consensus, Seat
from drillyard.emulator.pd.grpc import PdService
from drillyard.emulator.pd.http import PdHttp
from drillyard.emulator.pd.identity import check_url, identity_of, initial_members
from drillyard.emulator.pd.leadership import Clock, Means
from drillyard.emulator.pd.member import Identity, MemberRefused, PdMember, split_url
from drillyard.emulator.pd.metrics import PdMetrics, counted
from drillyard.emulator.pd.settings import SECOND_NS
from drillyard.emulator.peers import Transport
from drillyard.emulator.raft.types import Options as RaftOptions
from drillyard.emulator.raft_codec import MalformedRecord
from drillyard.emulator.storage import Storage, StorageFailed, StorageOptions, StorageRefused
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH
from drillyard.wire.services import MEMBERS

PROGRAM = "pd-server"
LOST_DATA = "keep the directory for the post-mortem, and build the cluster anew from the members that are sound"
HEARTBEATS_TO_ELECTION = 5  # as a region's group has: what may be lost before a leader is missed, unless told otherwise
STORAGE = StorageOptions(memtable_bytes=4 << 20, cache_bytes=2 << 20, reserve_bytes=16 << 20)
FLAGS = (
    Flag("name", "", flags.text, "human-readable name of this member"),
    Flag("data-dir", "", flags.text, "path of the data directory (default ./default.NAME)"),
    Flag("client-urls", "http://127.0.0.1:2379", flags.text, "URL to serve clients on"),
    Flag("advertise-client-urls", "", flags.text, "URL that clients are told (default: client-urls)"),
    Flag("peer-urls", "http://127.0.0.1:2380", flags.text, "URL to serve the other members on"),
    Flag("advertise-peer-urls", "", flags.text, "URL that the other members are told (default: peer-urls)"),
    Flag("initial-cluster", "", flags.text, "all first members: NAME=PEER-URL,... (default: this one alone)"),
    Flag("join", "", flags.text, "client URLs of a running cluster to join, with commas between them"),
    Flag("config", "", flags.text, "path of a TOML configuration file"),
    Flag("log-file", "", flags.text, "path of the log file (default: stderr)"),
    Flag("L", None, flags.one_of("debug", "info", "warn", "error", "fatal"), "log level", short="L"),
    Flag("version", False, None, "print the version and exit", short="V"),
    Flag("help", False, None, "print this and exit", short="h"),
)
KEYS = (
    Key("name", "", flags.text),
    Key("data-dir", "", flags.text),
    Key("client-urls", "", flags.text),
    Key("advertise-client-urls", "", flags.text),
    Key("peer-urls", "", flags.text),
    Key("advertise-peer-urls", "", flags.text),
    Key("initial-cluster", "", flags.text),
    Key("join", "", flags.text),
    Key("LeaderPriorityCheckInterval", 60.0, flags.positive(flags.duration)),
    Key("initial-cluster-token", "pd-cluster", flags.text),
    Key("lease", 3, flags.positive(flags.integer)),
    Key("tick-interval", 0.5, flags.positive(flags.duration)),
    Key("election-interval", 3.0, flags.positive(flags.duration)),
    Key("heartbeat-interval", 0.0, flags.duration),
    Key("log.level", "info", flags.one_of("debug", "info", "warn", "error", "fatal")),
    Key("log.file.filename", "", flags.text),
    Key("schedule.max-store-down-time", 1800.0, flags.positive(flags.duration)),
    Key("replication.max-replicas", 3, flags.positive(flags.integer)),
)


def options_of(arguments: Sequence[str]) -> Options | None:
    """What was asked for; None if the answer was only printed. Raises BadFlag."""
    given = flags.parse_flags(FLAGS, arguments)
    if given["help"]:
        sys.stdout.write(flags.usage(PROGRAM, FLAGS))
        return None
    if given["version"]:
        sys.stdout.write(f"Release Version: v{EMULATED_VERSION}\nEdition: Emulated\nGit Commit Hash: {GIT_HASH}\n")
        return None
    config = flags.load_config(given["config"], KEYS) if given["config"] else {key.name: key.default for key in KEYS}
    told = {flag for argument in arguments if (flag := argument.lstrip("-").partition("=")[0])}

    def choose(name: str) -> Any:
        """A flag that was given counts before the file, and the file before the flag's default."""
        return given[name] if name in told or not config[name] else config[name]

    name = choose("name") or f"pd-{os.uname().nodename}"
    client, peer = choose("client-urls"), choose("peer-urls")
    advertised_peer = choose("advertise-peer-urls") or peer
    options = Options(
        name=name,
        data_dir=choose("data-dir") or f"default.{name}",
        client_urls=client,
        advertise_client_urls=choose("advertise-client-urls") or client,
        peer_urls=peer,
        advertise_peer_urls=advertised_peer,
        initial_cluster=choose("initial-cluster") or f"{name}={advertised_peer}",
        initial_cluster_token=config["initial-cluster-token"],
        log_file=given["log-file"] or config["log.file.filename"],
        log_level=given["L"] or config["log.level"],
        lease_s=config["lease"],
        tick_ns=round(config["tick-interval"] * SECOND_NS),
        election_ns=round(config["election-interval"] * SECOND_NS),
        heartbeat_ns=round(config["heartbeat-interval"] * SECOND_NS),
        max_replicas=config["replication.max-replicas"],
        join=choose("join"),
        priority_check_s=config["LeaderPriorityCheckInterval"],
        max_store_down_ns=round(config["schedule.max-store-down-time"] * SECOND_NS),
    )
    if options.join and choose("initial-cluster"):
        flags.refuse("-initial-cluster and -join can not be provided at the same time", "give one of the two")
    _check(options)
    return options


def _check(options: Options) -> None:
    for flag, url in (
        ("--client-urls", options.client_urls),
        ("--advertise-client-urls", options.advertise_client_urls),
        ("--peer-urls", options.peer_urls),
        ("--advertise-peer-urls", options.advertise_peer_urls),
    ):
        check_url(flag, url)
    for endpoint in options.join.split(",") if options.join else ():
        check_url("--join", endpoint)
    members = initial_members(options.initial_cluster)
    if members.get(options.name) is None:
        flags.refuse(
            f"--initial-cluster {options.initial_cluster} has no member {options.name}", "add it, or mend --name"
        )
    if members[options.name] != options.advertise_peer_urls:
        flags.refuse(
            f"--initial-cluster has {options.name} at {members[options.name]}, and --advertise-peer-urls is "
            f"{options.advertise_peer_urls}",
            "make them the same",
        )
    if options.election_ns < 2 * options.tick_ns:
        flags.refuse("election-interval is shorter than two ticks", "make it five to ten times tick-interval")


def seat_of(options: Options, identity: Identity) -> Seat:
    election_ticks = max(2, options.election_ns // options.tick_ns)
    heartbeat_ticks = max(1, options.heartbeat_ns // options.tick_ns or election_ticks // HEARTBEATS_TO_ELECTION)
    return Seat(
        member_id=identity.record.id,
        group_id=identity.group_id,
        first_members=tuple(identity.first),
        is_first=not identity.joined_to and next(iter(identity.first), 0) == identity.record.id,
        tick_s=options.tick_ns / SECOND_NS,
        options=RaftOptions(election_ticks=election_ticks, heartbeat_ticks=heartbeat_ticks),
    )


class PdServer(Struct, frozen=True):
    """One start of the server, from its options to its end."""

    options: Options
    log: Log

    async def main(self, shell: Member) -> None:
        options, log = self.options, self.log
        log.info("Welcome to Placement Driver (PD)")
        log.info("PD", release_version=f"v{EMULATED_VERSION}", edition="Emulated", git_hash=GIT_HASH)
        log.info("PD config", name=options.name, initial_cluster=options.initial_cluster, data_dir=options.data_dir)
        try:
            storage = Storage.open(options.data_dir, "pd", STORAGE)
        except StorageRefused as refused:
            raise NamedStop(refused.reason, refused.mend) from refused
        storage.on_failure = lambda error: shell.fail(_named(error))
        storage.on_slow_sync = log.slow_sync
        try:
            await self._serve(shell, storage)
        except MalformedRecord as error:
            raise NamedStop(f"{options.data_dir} is corrupted: {error}", LOST_DATA) from error
        finally:
            storage.close()

    async def _serve(self, shell: Member, storage: Storage) -> None:
        options, log = self.options, self.log
        identity = await identity_of(options, storage, log)
        consensus = Consensus(seat_of(options, identity), storage, random.randrange, log)
        consensus.on_broken = lambda error: shell.fail(
            NamedStop(f"the data in {options.data_dir} contradicts the group's: {error}", LOST_DATA)
        )
        settings = Settings(options, lambda: consensus.cluster.settings)
        member = PdMember(identity, consensus, Means(settings, Clock(time.time_ns), log))
        member.on_refused = lambda refused: shell.fail(NamedStop(str(refused)))

        async def resolve(member_id: int) -> str | None:
            return member.address_of(member_id)

        transport = Transport(resolve, consensus.report_unreachable, log)
        member.on_heard = transport.hurry
        peer_handlers = {
            **transport.handlers(consensus.deliver, consensus.deliver_snapshot),
            MEMBERS.Introduce: member.introduce,
        }
        client_handlers = counted({**PdService(member).handlers(), MEMBERS.Join: member.join}, shell.metrics)
        metrics = PdMetrics(member, shell.metrics)
        storage.on_sync, consensus.on_round_trip = metrics.synced, metrics.answered
        consensus.on_tick = shell.lag.note
        http = PdHttp(member, shell.metrics, int(time.time()))
        client_host, client_port = split_url(options.client_urls)
        peer_host, peer_port = split_url(options.peer_urls)
        hosts = (split_url(options.advertise_client_urls)[0],)
        clients = await shell.listen(client_host, client_port, client_handlers, http.router(hosts))
        peers = None
        try:
            if (
                consensus.is_new and not identity.joined_to
            ):  # it has to answer the others while it asks them, but takes no Raft message yet
                peers = await shell.listen(peer_host, peer_port, peer_handlers)
                await _meet(member)
            transport.identify(identity.group_id, identity.record.id)
            member.start(fresh_cluster_id=(int(time.time()) << 32) + secrets.randbits(32))
            consensus.start(transport)
            # Others know what their own log says, and have applied it, before anybody can ask them.
            peers = peers or await shell.listen(peer_host, peer_port, peer_handlers)
            shell.spawn(member.greet(), "greeting")
            log.info("server is started", client_urls=options.client_urls, peer_urls=options.peer_urls)
            await shell.until_stopped()
        finally:
            await consensus.resign()
            member.close()
            await clients.close()
            if peers is not None:
                await peers.close()
            await transport.close()


async def _meet(member: PdMember) -> None:
    try:
        await member.meet()
    except MemberRefused as refused:
        raise NamedStop(str(refused)) from refused


def _named(error: Exception) -> Exception:
    return NamedStop(error.reason, error.mend) if isinstance(error, StorageFailed) else error


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = options_of(sys.argv[1:] if arguments is None else arguments)
    except BadFlag as error:
        sys.stderr.write(f"{PROGRAM}: {error}\n")
        return 2
    if options is None:
        return 0
    log = open_log(options.log_file or None, options.log_level)
    return run(PdServer(options, log).main, log)


if __name__ == "__main__":
    leave(main())
