"""Plays a conversation between Raft nodes that is written as text, and says everything that happens.

A transcript is a text file. Lines that begin with `> ` are commands; what follows a command, indented, is what
happened then, and is compared word for word. All other lines are prose for the reader. A term and an index are written
`term/index`.

    > group 1 2 3 [learners 4] [log 1 1 2] [commit 2]   nodes with equal logs, given as the terms of the entries
    > group ... [keep-bytes N] [window N]               limits: the size of one append, appends in flight
    > node 4 [log ...] [commit N] [term N] [vote N]     one more node, or one with another past, outside the membership
    > campaign 1          > tick 1 [times]              > propose 1 text ...           > read 1 name
    > change 1 +4 -2 ~3   membership: + voter, - removed, ~ learner; no change at all leaves a joint configuration
    > transfer 1 2        > compact 1 index             > unreachable 1 2
    > deliver             until nothing is under way;   > deliver 1            only what is under way to node 1
    > drop [1]            what is under way (to node 1) > cut 1 [2]            node 1 (and 2) off from the rest;  > mend
    > hold 1              its disk gets slow: nothing is durable before         > sync 1   or   > free 1   (fast again)
    > crash 1             keeps only what was durable   > restart 1            > show

Messages are delivered in the order in which they were sent. What is sent across a cut is lost.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator

from msgspec.structs import replace

from drillyard.emulator.raft import (
    Change,
    ChangeKind,
    Configuration,
    ConfigurationChange,
    Entry,
    HardState,
    Message,
    MessageKind,
    Options,
    ProposalDropped,
    Raft,
    Ready,
    Restored,
    Role,
)

_SIGNS = {"+": ChangeKind.ADD_VOTER, "-": ChangeKind.REMOVE, "~": ChangeKind.ADD_LEARNER}


def replay(text: str) -> str:
    """The transcript as it is today: the same prose and commands, with what happens now."""
    conversation = Conversation()
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            lines.append(line)
            lines.extend("  " + said for said in conversation.obey(line[2:]))
        elif not line.startswith("  "):
            lines.append(line)
    return "\n".join(lines) + "\n"


class Peer:
    """A node with its disk: `durable` is what a crash leaves."""

    def __init__(self, number: int, durable: Restored, options: Options) -> None:
        self.number = number
        self.durable = durable
        self.options = options
        self.is_slow = False
        self.start()

    def start(self) -> None:
        self.raft: Raft | None = Raft(self.number, self.durable, self.options, lambda n: (self.number - 1) * 2 % n)
        self.unsynced: list[Ready] = []
        self.told = (Role.FOLLOWER, 0, self.raft.term)

    def settle(self, ready: Ready) -> None:
        durable = self.durable
        entries, before, before_term = durable.entries, durable.snapshot_index, durable.snapshot_term
        if ready.snapshot is not None:
            entries, before, before_term = (), ready.snapshot.index, ready.snapshot.term
            durable = replace(durable, configuration=ready.snapshot.configuration, applied=before)
        if ready.entries:
            entries = entries[: ready.entries[0].index - before - 1] + ready.entries
        self.durable = replace(
            durable,
            hard_state=ready.hard_state or durable.hard_state,
            entries=entries,
            snapshot_index=before,
            snapshot_term=before_term,
        )


class Conversation:
    """The nodes, what is under way between them, and what has been said since the last command."""

    def __init__(self) -> None:
        self._peers: dict[int, Peer] = {}
        self._under_way: deque[Message] = deque()
        self._side: set[int] = set()  # cut off from the others
        self._said: list[str] = []
        self._options = Options()

    def obey(self, command: str) -> list[str]:
        self._said = []
        name, *words = command.split()
        doing: Callable[[list[str]], None] = getattr(self, f"_do_{name.replace('-', '_')}")
        doing(words)
        for number in sorted(self._peers):
            self._pump(self._peers[number])
        return self._said

    # ---- commands ----------------------------------------------------------------------------------------------

    def _do_group(self, words: list[str]) -> None:
        parts = _parts(words, "voters")
        voters, learners = parts["voters"], parts.get("learners", [])
        self._options = Options(
            max_append_bytes=parts.get("keep-bytes", [1 << 20])[0], max_inflight=parts.get("window", [256])[0]
        )
        for number in voters + learners:
            self._add(number, Configuration(frozenset(voters), frozenset(learners)), parts)

    def _do_node(self, words: list[str]) -> None:
        parts = _parts(words, "number")
        number = parts["number"][0]
        old = self._peers.get(number)
        self._add(number, old.durable.configuration if old else Configuration(), parts)

    def _add(self, number: int, configuration: Configuration, parts: dict[str, list[int]]) -> None:
        terms = parts.get("log", [])
        entries = tuple(Entry(term, index, b"old") for index, term in enumerate(terms, 1))
        term = parts.get("term", [max(terms, default=0)])[0]
        commit = parts.get("commit", [0])[0]
        state = HardState(term, parts.get("vote", [0])[0], commit)
        restored = Restored(configuration, state, entries=entries, applied=commit)
        self._peers[number] = Peer(number, restored, self._options)

    def _do_campaign(self, words: list[str]) -> None:
        self._raft(words[0]).campaign()

    def _do_tick(self, words: list[str]) -> None:
        for _ in range(int(words[1]) if len(words) > 1 else 1):
            self._raft(words[0]).tick()
            self._pump(self._peers[int(words[0])])

    def _do_propose(self, words: list[str]) -> None:
        for text in words[1:]:
            self._attempt(words[0], lambda text=text: self._raft(words[0]).propose(text.encode()))  # type: ignore[misc]

    def _do_change(self, words: list[str]) -> None:
        changes = tuple(Change(_SIGNS[word[0]], int(word[1:])) for word in words[1:])
        self._attempt(words[0], lambda: self._raft(words[0]).propose_change(ConfigurationChange(changes)))

    def _do_read(self, words: list[str]) -> None:
        self._attempt(words[0], lambda: self._raft(words[0]).read_index(words[1].encode()))

    def _do_transfer(self, words: list[str]) -> None:
        self._attempt(words[0], lambda: self._raft(words[0]).transfer_leader(int(words[1])))

    def _do_compact(self, words: list[str]) -> None:
        peer, raft = self._peers[int(words[0])], self._raft(words[0])
        index = int(words[1])
        before, term = peer.durable.snapshot_index, raft.term_at(index) or 0
        raft.compact(index)
        entries = peer.durable.entries[index - before :]
        peer.durable = replace(peer.durable, entries=entries, snapshot_index=index, snapshot_term=term)

    def _do_unreachable(self, words: list[str]) -> None:
        self._raft(words[0]).report_unreachable(int(words[1]))

    def _do_deliver(self, words: list[str]) -> None:
        to = int(words[0]) if words else 0
        while True:
            for number in sorted(self._peers):
                self._pump(self._peers[number])
            message = next((one for one in self._under_way if to in (0, one.to)), None)
            if message is None:
                return
            self._under_way.remove(message)
            self._deliver(message)
            if to and not any(one.to == to for one in self._under_way):
                return

    def _do_drop(self, words: list[str]) -> None:
        to = int(words[0]) if words else 0
        for message in [one for one in self._under_way if to in (0, one.to)]:
            self._under_way.remove(message)
            self._lose(message)

    def _lose(self, message: Message) -> None:
        self._say(f"lost: {message.kind.name} {message.sender} → {message.to}")
        sender = self._peers[message.sender].raft
        if message.kind is MessageKind.SNAPSHOT and sender is not None:
            sender.report_snapshot(message.to, False)

    def _do_cut(self, words: list[str]) -> None:
        self._side = {int(word) for word in words}

    def _do_mend(self, words: list[str]) -> None:
        self._side = set()

    def _do_hold(self, words: list[str]) -> None:
        self._peers[int(words[0])].is_slow = True

    def _do_sync(self, words: list[str]) -> None:
        self._sync(self._peers[int(words[0])])

    def _do_free(self, words: list[str]) -> None:
        self._peers[int(words[0])].is_slow = False
        self._sync(self._peers[int(words[0])])

    def _do_crash(self, words: list[str]) -> None:
        self._peers[int(words[0])].raft = None

    def _do_restart(self, words: list[str]) -> None:
        self._peers[int(words[0])].start()
        self._say(f"{words[0]} is back in term {self._raft(words[0]).term}")

    def _do_show(self, words: list[str]) -> None:
        for number, peer in sorted(self._peers.items()):
            raft = peer.raft
            if raft is None:
                self._say(f"{number} is down")
                continue
            terms = [raft.term_at(index) for index in range(raft.first_index, raft.last_index + 1)]
            self._say(
                f"{number} {raft.role.value} term {raft.term} leader {raft.leader} commit {raft.commit} "
                f"applied {raft.applied} log {raft.first_index}..{raft.last_index} of terms {terms}"
            )
            for progress in raft.progress().values():
                if progress.node != number:
                    state = f"match {progress.match} next {progress.next} {progress.state.value}"
                    self._say(f"  {progress.node}: {state}")

    # ---- carrying out ------------------------------------------------------------------------------------------

    def _raft(self, number: str) -> Raft:
        raft = self._peers[int(number)].raft
        assert raft is not None, f"{number} is down"
        return raft

    def _attempt(self, who: str, wish: Callable[[], object]) -> None:
        try:
            wish()
        except ProposalDropped as refusal:
            self._say(f"{who} refuses: {refusal}")

    def _say(self, text: str) -> None:
        self._said.append(text)

    def _deliver(self, message: Message) -> None:
        peer = self._peers.get(message.to)
        if peer is None or peer.raft is None:
            self._lose(message)
            return
        self._say(f"{message.to} gets {message.kind.name} from {message.sender}")
        peer.raft.step(message)
        self._pump(peer)
        if message.kind is MessageKind.SNAPSHOT:
            sender = self._peers[message.sender].raft
            if sender is not None:
                sender.report_snapshot(message.to, True)

    def _pump(self, peer: Peer) -> None:
        while peer.raft is not None and peer.raft.has_ready():
            self._carry_out(peer, peer.raft, peer.raft.ready())

    def _carry_out(self, peer: Peer, raft: Raft, ready: Ready) -> None:
        told = (ready.role, ready.leader, raft.term)
        if told != peer.told:
            peer.told = told
            following = f" of {ready.leader}" if ready.role is Role.FOLLOWER and ready.leader else ""
            self._say(f"{peer.number} is {ready.role.value}{following} in term {raft.term}")
        for written in _written(ready):
            self._say(f"{peer.number} writes {written}")
        for message in ready.messages:
            self._send(message)
        peer.unsynced.append(ready)
        if not peer.is_slow:
            self._sync(peer)
        self._apply(peer, raft, ready)
        for read in ready.reads:
            self._say(f"{peer.number} may answer read {read.context.decode()} once {read.index} is applied")
        for context in ready.aborted_reads:
            self._say(f"{peer.number} gives up read {context.decode()}")

    def _sync(self, peer: Peer) -> None:
        waiting, peer.unsynced = peer.unsynced, []
        for ready in waiting:
            peer.settle(ready)
        if waiting and peer.raft is not None:
            if peer.is_slow:
                self._say(f"{peer.number} has synced")
            peer.raft.persisted(waiting[-1].number)
            for ready in waiting:
                for message in ready.deferred:
                    self._send(message)

    def _apply(self, peer: Peer, raft: Raft, ready: Ready) -> None:
        for entry in ready.committed:
            self._say(f"{peer.number} applies {_entry(entry)}")
            if entry.change is not None:
                configuration = raft.apply_change(entry.change)
                self._say(f"{peer.number} has {_configuration(configuration)}")
                peer.durable = replace(peer.durable, configuration=configuration)
            raft.applied_to(entry.index)
            peer.durable = replace(peer.durable, applied=entry.index)

    def _send(self, message: Message) -> None:
        if message.kind is MessageKind.SNAPSHOT:
            sender = self._raft(str(message.sender))
            message = replace(message, snapshot=sender.snapshot_meta())
        is_lost = (message.sender in self._side) != (message.to in self._side)
        self._say(f"{message.sender} → {message.to} {_message(message)}{' (lost)' if is_lost else ''}")
        if not is_lost:
            self._under_way.append(message)


# ---- words -----------------------------------------------------------------------------------------------------


def _parts(words: list[str], first: str) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {first: []}
    name = first
    for word in words:
        if word.isdigit():
            parts[name].append(int(word))
        else:
            name = word
            parts[name] = []
    return parts


def _entry(entry: Entry) -> str:
    what = entry.data.decode() or "mark of the new leader"
    if entry.change is not None:
        signs = {kind: sign for sign, kind in _SIGNS.items()}
        what = " ".join(f"{signs[one.kind]}{one.node}" for one in entry.change.changes) or "leave joint"
    return f"{entry.term}/{entry.index} ({what})"


def _configuration(configuration: Configuration) -> str:
    said = f"voters {sorted(configuration.voters)}"
    for name in ("outgoing", "learners", "learners_next"):
        nodes = getattr(configuration, name)
        if nodes:
            said += f" {name.replace('_', ' ')} {sorted(nodes)}"
    return said


def _written(ready: Ready) -> Iterator[str]:
    if ready.hard_state is not None:
        state = ready.hard_state
        yield f"term {state.term}, vote {state.vote or 'for nobody'}, commit {state.commit}"
    if ready.snapshot is not None:
        yield f"snapshot {ready.snapshot.term}/{ready.snapshot.index}, {_configuration(ready.snapshot.configuration)}"
    for entry in ready.entries:
        yield _entry(entry)


def _message(message: Message) -> str:
    words = [message.kind.name, f"term {message.term}"]
    if message.kind in (MessageKind.PRE_VOTE, MessageKind.VOTE):
        words.append(f"log ends {message.log_term}/{message.index}")
        words.extend(["forced"] if message.forced else [])
    elif message.kind is MessageKind.APPEND:
        words.append(f"after {message.log_term}/{message.index} commit {message.commit}")
        words.append("[" + ", ".join(map(_entry, message.entries)) + "]")
    elif message.kind is MessageKind.APPEND_REPLY and message.reject:
        words.append(f"refused after {message.index}, perhaps {message.hint_term}/{message.hint_index}")
    elif message.kind is MessageKind.APPEND_REPLY:
        words.append(f"holds {message.index}")
    elif message.kind is MessageKind.SNAPSHOT and message.snapshot is not None:
        words.append(f"up to {message.snapshot.term}/{message.snapshot.index}")
    elif message.kind in (MessageKind.PRE_VOTE_REPLY, MessageKind.VOTE_REPLY):
        words.append("refused" if message.reject else "granted")
        words.extend([f"{message.log_term}/{message.commit} is committed"] if message.commit else [])
    elif message.kind is MessageKind.HEARTBEAT:
        words.append(f"commit {message.commit}")
    if message.context:
        words.append(f"reads {int.from_bytes(message.context, 'big')}")
    return " ".join(words)
