"""The emulated pd-server: flags and configuration, the start of a member, and its end.

    python -m drillyard.emulator.pd.server --name=pd0 --data-dir=... --client-urls=http://127.0.0.1:2379 ...

Rules: flags and file keys are the real server's; what it cannot act on is refused by name rather than ignored. Who a
member is (name, id, group) is written into its data directory at the first start; flags that say otherwise later
stop it by name. A member's id is made from its peer address and the token of the cluster, as the real one's, so it is
known before anybody has talked to anybody.

The parts that decide are elsewhere: `cluster`, `placement`, `timestamps`.
"""

from __future__ import annotations

import hashlib
import os
import random
import secrets
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError

from drillyard.emulator import flags
from drillyard.emulator.flags import BadFlag, Flag, Key
from drillyard.emulator.logs import Log, open_log
from drillyard.emulator.member import Member, NamedStop, run
from drillyard.emulator.pd.config import Options, Settings
from drillyard.emulator.pd.consensus import Consensus, Seat
from drillyard.emulator.pd.grpc import PdService
from drillyard.emulator.pd.http import PdHttp
from drillyard.emulator.pd.leadership import Clock, Means
from drillyard.emulator.pd.member import Identity, MemberRefused, PdMember, split_url
from drillyard.emulator.pd.metrics import PdMetrics
from drillyard.emulator.pd.settings import SECOND_NS
from drillyard.emulator.peers import Transport
from drillyard.emulator.raft.types import Options as RaftOptions
from drillyard.emulator.raft_codec import MalformedRecord
from drillyard.emulator.storage import Batch, Storage, StorageFailed, StorageOptions, StorageRefused
from drillyard.emulator.version import EMULATED_VERSION, GIT_HASH
from drillyard.wire import drillpb
from drillyard.wire.services import MEMBERS

IDENTITY_KEY = b"pd/identity"
PROGRAM = "pd-server"
LOST_DATA = "keep the directory for the post-mortem, and build the cluster anew from the members that are sound"
STORAGE = StorageOptions(memtable_bytes=4 << 20, cache_bytes=2 << 20, reserve_bytes=16 << 20)
FLAGS = (
    Flag("name", "", flags.text, "human-readable name of this member"),
    Flag("data-dir", "", flags.text, "path of the data directory (default ./default.NAME)"),
    Flag("client-urls", "http://127.0.0.1:2379", flags.text, "URL to serve clients on"),
    Flag("advertise-client-urls", "", flags.text, "URL that clients are told (default: client-urls)"),
    Flag("peer-urls", "http://127.0.0.1:2380", flags.text, "URL to serve the other members on"),
    Flag("advertise-peer-urls", "", flags.text, "URL that the other members are told (default: peer-urls)"),
    Flag("initial-cluster", "", flags.text, "all first members: NAME=PEER-URL,... (default: this one alone)"),
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
        max_store_down_ns=round(config["schedule.max-store-down-time"] * SECOND_NS),
    )
    _check(options)
    return options


def _check(options: Options) -> None:
    for flag, url in (
        ("--client-urls", options.client_urls),
        ("--advertise-client-urls", options.advertise_client_urls),
        ("--peer-urls", options.peer_urls),
        ("--advertise-peer-urls", options.advertise_peer_urls),
    ):
        _check_url(flag, url)
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


def _check_url(flag: str, url: str) -> None:
    scheme, separator, address = url.partition("://")
    if not separator or scheme != "http" or "," in url:
        flags.refuse(f"{flag} {url!r} is not usable", "give one URL like http://127.0.0.1:2379 (no TLS here)")
    try:
        flags.address(address.rstrip("/"))
    except ValueError as error:
        flags.refuse(f"{flag} {url!r} is not usable", str(error))


def initial_members(text: str) -> dict[str, str]:
    """Name to peer URL, in the order given."""
    members: dict[str, str] = {}
    for part in text.split(","):
        name, equals, url = part.strip().partition("=")
        if not equals or not name:
            flags.refuse(f"--initial-cluster {text!r} is not usable", "write it like pd0=http://127.0.0.1:2380,pd1=...")
        _check_url("--initial-cluster", url)
        if name in members or url in members.values():
            flags.refuse(f"--initial-cluster names {part.strip()} twice", "give each member once, at its own URL")
        members[name] = url
    return members


def member_id_of(peer_url: str, token: str) -> int:
    """The id that the real server would have: eight bytes of a hash of address and token."""
    digest = hashlib.sha1(f"{peer_url}{token}".encode(), usedforsecurity=False).digest()
    return int.from_bytes(digest[:8], "big")


def group_id_of(member_ids: Sequence[int]) -> int:
    text = b"".join(member_id.to_bytes(8, "big") for member_id in sorted(member_ids))
    return int.from_bytes(hashlib.sha1(text, usedforsecurity=False).digest()[:8], "big")


def identity_of(options: Options, storage: Storage) -> Identity:
    """Who this member is: as its data directory says, which the flags have to agree with, or new."""
    first = {
        member_id_of(url, options.initial_cluster_token): drillpb.PdMember(
            id=member_id_of(url, options.initial_cluster_token), name=name, peer_urls=[url]
        )
        for name, url in initial_members(options.initial_cluster).items()
    }
    own_id = next(member_id for member_id, record in first.items() if record.name == options.name)
    kept = storage.get(IDENTITY_KEY)
    if kept is None:
        record = drillpb.PdIdentity(
            member_id=own_id,
            name=options.name,
            incarnation=secrets.randbits(63),
            group_id=group_id_of(tuple(first)),
            first_members={each.name: member_id for member_id, each in first.items()},
        )
        batch = Batch()
        batch.put(IDENTITY_KEY, record.SerializeToString())
        storage.write(batch)
        storage.sync()
    else:
        try:
            record = drillpb.PdIdentity.FromString(kept)
        except DecodeError as error:
            raise MalformedRecord("the record of who this member is cannot be read") from error
        if (record.member_id, record.group_id) != (own_id, group_id_of(tuple(first))):
            members = ", ".join(sorted(record.first_members))
            raise NamedStop(
                f"{options.data_dir} is of member {record.name} ({record.member_id}) of the cluster of {members}, and "
                f"the flags say {options.name} ({own_id}) of {', '.join(each.name for each in first.values())}",
                "give the same --name, --initial-cluster and peer URLs as at its first start, or an empty --data-dir",
            )
    own = drillpb.PdMember(
        id=own_id,
        name=options.name,
        peer_urls=[options.advertise_peer_urls],
        client_urls=[options.advertise_client_urls],
        deploy_path=str(Path(sys.argv[0]).resolve().parent),
        binary_version=f"v{EMULATED_VERSION}",
        git_hash=GIT_HASH,
        incarnation=record.incarnation,
    )
    return Identity(own, record.group_id, first)


def seat_of(options: Options, identity: Identity) -> Seat:
    election_ticks = max(2, options.election_ns // options.tick_ns)
    heartbeat_ticks = max(1, options.heartbeat_ns // options.tick_ns)
    return Seat(
        member_id=identity.record.id,
        group_id=identity.group_id,
        first_members=tuple(identity.first),
        is_first=next(iter(identity.first)) == identity.record.id,
        tick_s=options.tick_ns / SECOND_NS,
        options=RaftOptions(election_ticks=election_ticks, heartbeat_ticks=heartbeat_ticks),
    )


@dataclass(frozen=True, slots=True)
class PdServer:
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
        identity = identity_of(options, storage)
        consensus = Consensus(seat_of(options, identity), storage, random.randrange, log)
        consensus.on_broken = lambda error: shell.fail(
            NamedStop(f"the data in {options.data_dir} contradicts the group's: {error}", LOST_DATA)
        )
        settings = Settings(options, lambda: consensus.cluster.settings)
        member = PdMember(identity, consensus, Means(settings, Clock(time.time_ns), log))
        member.on_refused = lambda refused: shell.fail(NamedStop(str(refused)))
        peer_urls = {member_id: record.peer_urls[0] for member_id, record in identity.first.items()}

        async def resolve(member_id: int) -> str | None:
            return peer_urls[member_id].rpartition("//")[2].rstrip("/")

        transport = Transport(resolve, consensus.report_unreachable, log)
        member.on_heard = transport.hurry
        peer_handlers = {
            **transport.handlers(consensus.deliver, consensus.deliver_snapshot),
            MEMBERS.Introduce: member.introduce,
        }
        PdMetrics(member, shell.metrics)
        http = PdHttp(member, shell.metrics, int(time.time()))
        client_host, client_port = split_url(options.client_urls)
        peer_host, peer_port = split_url(options.peer_urls)
        hosts = (split_url(options.advertise_client_urls)[0],)
        clients = await shell.listen(client_host, client_port, PdService(member).handlers(), http.router(hosts))
        peers = None
        try:
            if consensus.is_new:  # it has to answer the others while it asks them, but takes no Raft message yet
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
    sys.exit(main())
