"""The catalogue of causes, each entry by the servers' own words; and what no cause is."""

from __future__ import annotations

import pytest

from drillyard.judge import ends
from drillyard.judge.ends import Ended, cause_of
from drillyard.topology import Role


def tikv(*lines: str, code: int | None = 1, signal: int | None = None, note: str = "", **more: bool) -> Ended:
    return Ended(
        "tikv1",
        Role.TIKV,
        None if signal else code,
        signal,
        more.pop("is_asked", False),
        note=note,
        is_oom=more.get("is_oom", False),
        in_container=more.get("in_container", False),
        lines=lines,
    )


def pd(*lines: str, code: int = 1, note: str = "") -> Ended:
    return Ended("pd1", Role.PD, code, None, False, note=note, lines=lines)


STAMP = "[2026/09/20 08:15:30.123 +00:00]"
# (what ended, the cause's name, what its text holds)
WORDS: list[tuple[Ended, str, str]] = [
    (
        tikv(note="keeper lost", code=None),
        "keeper-lost",
        "tikv1 ended because the keeper of the deployment's processes was lost",
    ),
    (
        tikv("exec /tikv-server: exec format error", code=255),
        "wrong-architecture",
        "tikv1 cannot run: its program is made for another architecture",
    ),
    (
        pd(note="could not be started: exec /pd-server: exec format error"),
        "wrong-architecture",
        "pd1 cannot run",
    ),
    (
        tikv(note="its container was removed", code=None),
        "removed",
        "tikv1 has no container any more: somebody removed it",
    ),
    (
        pd(
            note="could not be started: driver failed programming external connectivity on endpoint pd1 (4f8c3e2a): "
            "Bind for 127.0.0.1:2379 failed: port is already allocated"
        ),
        "port-taken",
        "pd1 cannot listen: port is already allocated",
    ),
    (
        pd(
            note="could not be started: failed to bind host port for 127.0.0.1:2379:172.18.0.2:2379/tcp: "
            "address already in use"
        ),
        "port-taken",
        "pd1 cannot listen: address already in use",
    ),
    (
        pd(note="could not be started: driver failed programming external connectivity"),
        "cannot-run",
        "pd1 could not be started: driver failed programming external connectivity",
    ),
    (
        tikv(note='could not be started: exec: "/tikv-server": stat /tikv-server: no such file or directory', code=127),
        "cannot-run",
        'exec: "/tikv-server": stat /tikv-server: no such file or directory',
    ),
    (
        tikv("cannot run /opt/tikv-server: [Errno 13] Permission denied", code=127),
        "cannot-run",
        "cannot run /opt/tikv-server: [Errno 13] Permission denied",
    ),
    (
        tikv("error: Found argument '--no-such' which wasn't expected, or isn't valid in this context"),
        "bad-flag",
        "tikv1 refuses a flag: Found argument '--no-such' which wasn't expected",
    ),
    (
        pd(f'{STAMP} [FATAL] [main.go:97] ["parse cmd flags error"] [error="unknown flag: --no-such"]', code=1),
        "bad-flag",
        "--no-such",
    ),
    (pd("unknown flag: --no-such"), "bad-flag", "pd1 refuses a flag: unknown flag: --no-such"),
    (pd("unknown shorthand flag: 'x' in -x"), "bad-flag", "unknown shorthand flag: 'x' in -x"),
    (pd("flag provided but not defined: -no-such", code=2), "bad-flag", "flag provided but not defined: -no-such"),
    (
        tikv(
            "failed to validate config: invalid configuration: "
            "raftstore.raft-election-timeout-ticks can't less than raft-heartbeat-ticks"
        ),
        "bad-config",
        "tikv1 refuses its configuration: invalid configuration: raftstore.raft-election-timeout-ticks can't less",
    ),
    (
        tikv("invalid auto generated configuration file /data/last_tikv.toml, err expected an equals"),
        "bad-config",
        "last_tikv.toml",
    ),
    (tikv("unknown configuration options: raftstore.no-such"), "bad-config", "raftstore.no-such"),
    (
        tikv(
            f'{STAMP} [FATAL] [server.rs:895] ["failed to bootstrap raft_server id: \\"[src/server/node.rs:229]: '
            "cluster ID mismatch, local 7 != remote 9, you are trying to connect to another cluster, please reconnect "
            'to the correct PD\\""]'
        ),
        "cluster-id-mismatch",
        "tikv1 holds the data of another cluster: cluster ID mismatch, local 7 != remote 9, you are trying",
    ),
    (
        tikv(
            f'{STAMP} [ERROR] [tikv_server.py:1] ["cluster ID mismatch: '
            'the data directory is of cluster 7, PD serves cluster 9"]'
        ),
        "cluster-id-mismatch",
        "cluster ID mismatch: the data directory is of cluster 7, PD serves cluster 9",
    ),
    (
        pd(
            f'{STAMP} [FATAL] [main.go:232] ["run server failed"] [error="member 8e9e05c52164694d has already been '
            'bootstrapped"]'
        ),
        "pd-data-lost",
        "pd1 does not fit the PD cluster that is there: has already been bootstrapped",
    ),
    (
        pd(
            '[FATAL] ["run server failed"] [error="error validating peerURLs {ClusterID:7 Members:[]}: '
            'member count is unequal"]'
        ),
        "pd-data-lost",
        "error validating peerURLs",
    ),
    (
        pd("the member has been permanently removed from the cluster"),
        "pd-data-lost",
        "has been permanently removed from the cluster",
    ),
    (
        tikv(
            f'{STAMP} [FATAL] [server.rs:895] ["failed to start node: Grpc(RpcFailure(RpcStatus {{ code: 2-UNKNOWN, '
            'message: "duplicated store address: id:5 address:"tikv1:20160" version:"8.5.5" , already registered by '
            'id:1 address:"tikv1:20160" "'
        ),
        "duplicate-store-address",
        'tikv1 has the address of another store: duplicated store address: id:5 address:"tikv1:20160"',
    ),
    (
        tikv('[FATAL] ["failed to start node: store is tombstone id:1 address:\\"tikv1:20160\\" state:Tombstone"]'),
        "store-tombstone",
        "tikv1 was removed from the cluster for good: store is tombstone id:1",
    ),
    (
        tikv(
            f'{STAMP} [FATAL] [server.rs:1] ["the maximum number of open file descriptors is too small, got 20000, '
            'expect greater or equal to 82920"]'
        ),
        "open-files",
        "got 20000, expect greater or equal to 82920",
    ),
    (
        tikv(
            f'{STAMP} [FATAL] [server.rs:412] ["lock /data/LOCK failed, maybe another instance is using this '
            'directory."]'
        ),
        "data-in-use",
        "tikv1 finds its data directory in use by another process",
    ),
    (
        tikv("/data/tikv1 is in use by pid 4711; stop that process, or name another directory"),
        "data-in-use",
        "tikv1 finds its data directory in use by another process",
    ),
    (
        tikv("IO error: While open directory: /data/tikv1/db: Too many open files; look at the disk's health"),
        "open-files",
        "tikv1 may open too few files: Too many open files",
    ),
    (
        pd("member pd1 (7) has already been part of this cluster with another data directory than /data/pd1; give"),
        "pd-data-lost",
        "has already been part of this cluster with another data directory",
    ),
    (
        pd("pd-server: /etc/pd1.toml: lease: 'often' is not usable; a whole number is wanted", code=2),
        "bad-config",
        "pd1 refuses its configuration: lease: 'often' is not usable; a whole number is wanted",
    ),
    (pd("panic: file already locked (timeout)"), "data-in-use", "pd1 finds its data directory in use"),
    (
        tikv(f'{STAMP} [FATAL] ["/data is no data directory of an emulated member (its format is unknown)"]'),
        "not-its-data",
        "tikv1 does not take what is in its data directory for its own: is no data directory of an emulated member",
    ),
    (
        tikv(f'{STAMP} [FATAL] ["/data/tikv1 has on-disk format 3; this version reads up to 2"]'),
        "newer-format",
        "tikv1 does not know the format of its data: has on-disk format 3; this version reads up to 2",
    ),
    (
        tikv(f'{STAMP} [FATAL] ["/data/tikv1 cannot be opened (corrupted): MANIFEST-000005 is damaged"]'),
        "data-corrupted",
        "tikv1 finds its data damaged, and serves none of it: cannot be opened (corrupted): MANIFEST-000005 is damaged",
    ),
    (
        pd(f'{STAMP} [FATAL] ["the storage in /data/pd1 failed (corrupted): Corruption: block checksum mismatch"]'),
        "data-corrupted",
        "pd1 finds its data damaged",
    ),
    (
        tikv("critical config check failed: can't enable ttl on a non-ttl instance"),
        "bad-config",
        "tikv1 refuses its configuration: critical config check failed: can't enable ttl on a non-ttl instance",
    ),
    (
        pd('[FATAL] ["run server failed"] [error="listen tcp 0.0.0.0:2379: bind: address already in use"]'),
        "port-taken",
        "pd1 cannot listen: address already in use",
    ),
    (
        tikv("lock 0.0.0.0:20160 failed, maybe another instance is binding with this address."),
        "port-taken",
        "maybe another instance is binding with this address",
    ),
    (
        tikv(
            "IO error: No space left on device: While appending to file: /data/db/000012.log: No space left on device"
        ),
        "disk-full",
        "tikv1 has no disk space left",
    ),
    (tikv("storage failed (disk full): ENOSPC"), "disk-full", "tikv1 has no disk space left"),
    (pd('[error="etcdserver: mvcc: database space exceeded"]'), "disk-full", "pd1 has no disk space left"),
    (
        tikv(
            f'{STAMP} [FATAL] [lib.rs:465] ["failed to get timestamp from PD: '
            'Other(\\"[components/pd_client/src/tso.rs:100]: Timestamp channel is dropped\\")"]'
        ),
        "timestamp-race",
        "tikv1 asked for a timestamp before PD could grant one, and gave up",
    ),
]


@pytest.mark.parametrize(("ended", "name", "text"), WORDS, ids=[f"{case[1]}-{at}" for at, case in enumerate(WORDS)])
def test_the_servers_own_words_name_their_cause(ended: Ended, name: str, text: str) -> None:
    cause = cause_of(ended)
    assert cause is not None
    assert cause.name == name
    assert text in cause.text
    assert cause.mend


def test_every_entry_of_the_catalogue_has_its_words_here() -> None:
    assert {name for _, name, _ in WORDS} == {known.name for known in ends.KINDS}


@pytest.mark.parametrize(("ended", "name", "text"), WORDS, ids=[f"{case[1]}-{at}" for at, case in enumerate(WORDS)])
def test_what_is_quoted_has_no_end_of_another_quote(ended: Ended, name: str, text: str) -> None:
    cause = cause_of(ended)
    assert cause is not None
    assert cause.text[-1] not in '\\"][ ', "the servers' log lines end in their own quotes and brackets"


SIGNALS: list[tuple[str, Ended, str, str]] = [
    (
        "kill -9 by somebody",
        tikv(signal=9),
        "killed",
        "tikv1 was ended by somebody outside of drillyard",
    ),
    ("kill by somebody", tikv(signal=15), "killed", "tikv1 was ended by somebody outside of drillyard"),
    (
        "docker kill",
        tikv(signal=9, note="signal 9 through Docker"),
        "killed",
        "tikv1 was ended by `docker kill` or `docker stop`",
    ),
    (
        "docker stop of a server that ends well",
        tikv(code=0, note="signal 15 through Docker"),
        "killed",
        "tikv1 was ended by `docker kill` or `docker stop`",
    ),
    (
        "docker stop of a server that dies of it",
        tikv(signal=15, note="signal 15 through Docker"),
        "killed",
        "tikv1 was ended by `docker kill` or `docker stop`",
    ),
    (
        "kill by somebody, of a server that ends well",
        tikv(f'{STAMP} [INFO] [member.rs:1] ["received signal to exit"] [signal=SIGTERM]', code=0),
        "killed",
        "tikv1 was ended by somebody outside of drillyard",
    ),
    (
        "kill by somebody, of a real TiKV",
        tikv(f'{STAMP} [INFO] [signal_handler.rs:21] ["receive signal 15, stopping server..."]', code=0),
        "killed",
        "tikv1 was ended by somebody outside of drillyard",
    ),
    (
        "kill -9 of one that had complained before",
        tikv("Too many open files", signal=9),
        "killed",
        "tikv1 was ended by somebody outside of drillyard",
    ),
    ("a crash", tikv(signal=11), "crashed", "tikv1 crashed with signal 11"),
    ("an abort", tikv(signal=6), "crashed", "tikv1 crashed with signal 6"),
    *(
        (f"signal {number}, by itself", tikv(signal=number), "crashed", f"tikv1 crashed with signal {number}")
        for number in (4, 5, 7, 8, 31)
    ),
    *(
        (f"signal {number}", tikv(signal=number), "killed", "tikv1 was ended by somebody outside of drillyard")
        for number in (1, 2, 3, 10, 12, 13, 14)
    ),
]


@pytest.mark.parametrize(("ended", "name", "text"), [case[1:] for case in SIGNALS], ids=[case[0] for case in SIGNALS])
def test_a_signal_is_told_as_what_it_was(ended: Ended, name: str, text: str) -> None:
    cause = cause_of(ended)
    assert cause is not None
    assert (cause.name, cause.text) == (name, text)
    assert "tikv1" in cause.mend


@pytest.mark.parametrize(("in_container", "mend"), [(True, "TIKV_MEMORY"), (False, "give it more memory")])
def test_out_of_memory_comes_before_any_words(in_container: bool, mend: str) -> None:
    cause = cause_of(tikv("No space left on device", signal=9, is_oom=True, in_container=in_container))
    assert cause is not None
    assert cause.name == "out-of-memory"
    assert cause.text == "tikv1 was ended by the kernel: it used all the memory it may"
    assert mend in cause.mend


@pytest.mark.parametrize(
    "ended",
    [
        tikv("cluster ID mismatch", is_asked=True),
        tikv(signal=9, is_asked=True),
        tikv(signal=9, is_asked=True, is_oom=True),
    ],
    ids=["words", "a signal", "out of memory"],
)
def test_an_end_that_was_asked_for_has_no_cause(ended: Ended) -> None:
    assert cause_of(ended) is None


@pytest.mark.parametrize(
    "ended",
    [
        tikv(),
        tikv(code=0),
        tikv(code=None),
        tikv('[INFO] [server.rs:1] ["TiKV is ready to serve"]', "thread panicked at 'index out of bounds'"),
        tikv(note="its policy will start it again"),
        tikv('[INFO] ["cluster already bootstrapped"] [cluster_id=7]', '[INFO] ["get timestamp from PD"]'),
    ],
    ids=["no words", "ended well", "code unknown", "other words", "a note", "words of health"],
)
def test_what_fits_nothing_has_no_cause(ended: Ended) -> None:
    assert cause_of(ended) is None


RACE = 'failed to get timestamp from PD: Other("Timestamp channel is dropped")'
FULL = "IO error: No space left on device"
TAKEN, UNRUN = "listen tcp 0.0.0.0:2379: bind: address already in use", "cannot run /opt/tikv-server: it ended"
MISMATCH = "cluster ID mismatch, local 7 != remote 9"


@pytest.mark.parametrize(
    ("lines", "name"),
    [
        ((FULL, RACE), "disk-full"),
        ((RACE, FULL), "disk-full"),
        ((RACE, MISMATCH, FULL), "cluster-id-mismatch"),
        ((MISMATCH, RACE), "cluster-id-mismatch"),
        ((TAKEN, UNRUN), "port-taken"),
        ((UNRUN, TAKEN), "port-taken"),
    ],
)
def test_a_root_is_named_before_what_follows_from_it(lines: tuple[str, ...], name: str) -> None:
    """Wherever in the log either stands."""
    cause = cause_of(tikv(*lines))
    assert cause is not None
    assert cause.name == name


def test_words_come_before_a_signal() -> None:
    cause = cause_of(tikv(MISMATCH, signal=6))
    assert cause is not None
    assert cause.name == "cluster-id-mismatch"


def test_the_newest_line_that_fits_is_quoted() -> None:
    cause = cause_of(tikv(MISMATCH, "something else", "cluster ID mismatch, local 7 != remote 8", "the end"))
    assert cause is not None
    assert cause.text.endswith("cluster ID mismatch, local 7 != remote 8")


@pytest.mark.parametrize("welcome", ["Welcome to TiKV", "Welcome to Placement Driver (PD)"])
def test_what_an_earlier_run_died_of_is_no_cause_of_this_end(welcome: str) -> None:
    """A container's log goes on through its runs; a server introduces itself at the beginning of each."""
    hello = f'{STAMP} [INFO] [lib.rs:92] ["{welcome}"]'
    assert cause_of(tikv(hello, MISMATCH, hello, "something else")) is None
    cause = cause_of(tikv(hello, MISMATCH, hello, RACE))
    assert cause is not None
    assert cause.name == "timestamp-race", "though the mismatch comes first in the catalogue"
    note = cause_of(tikv(MISMATCH, hello, note="could not be started: just now"))
    assert note is not None
    assert note.name == "cannot-run"


def test_the_runtimes_own_word_is_quoted_before_the_log() -> None:
    cause = cause_of(tikv("could not be started: long ago", note="could not be started: just now"))
    assert cause is not None
    assert cause.text == "tikv1 could not be started: just now"


def test_a_brace_in_a_servers_words_stays_a_brace() -> None:
    cause = cause_of(pd("unknown flag: --x={member}"))
    assert cause is not None
    assert cause.text == "pd1 refuses a flag: unknown flag: --x={member}"
