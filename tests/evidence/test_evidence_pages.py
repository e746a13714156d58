"""The pages as text: what is on them, in which order, and that nothing of others gets through as HTML."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from evidence_scenes import AT, BOX, HOSTILE, KILLED, LOG, deployment, exhibits

from drillyard.flows.exhibits import Exhibits, PdAnswer, Scene
from drillyard.flows.pages.index import pages_of
from drillyard.flows.pages.log_marks import HEAD_LINES, Mark, mark_of, marked
from drillyard.flows.pages.markup import el, text
from drillyard.flows.pages.parts import bytes_text, time_line
from drillyard.flows.report import Entry
from drillyard.runtimes.abilities import Exit

VOID = {"meta"}


class Page(HTMLParser):
    """A page taken apart; an element that is not closed, or closed twice, fails."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html = html
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []
        ids = self.all("id")
        assert len(ids) == len(set(ids)), "an id is unique"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data if "style" not in self.open else ""

    def all(self, attribute: str) -> list[str]:
        return [found[attribute] for _, found in self.elements if attribute in found]


def pages(made: Exhibits) -> dict[str, Page]:
    return {path: Page(html) for path, html in pages_of(made)}


def in_order(text: str, *parts: str) -> None:
    at = 0
    for part in parts:
        found = text.find(part, at)
        assert found >= 0, f"{part!r} is not there, or not behind the others"
        at = found + len(part)


def test_the_index_tells_first_what_is_wrong_and_what_to_do() -> None:
    made = pages(exhibits())
    assert sorted(made) == ["index.html", "members/pd0.html", "members/tikv0.html", "members/tikv1.html"]
    in_order(
        made["index.html"].text,
        "member exited",
        "x lost tikv1 (SIGKILL, unexpected)",
        "and one more thing",
        "tikv1 was ended by somebody (killed)",
        "its data is safe",
        "drillyard start tikv1",
        "drillyard logs tikv1 --name x",
        "its last words",
        "Time line",
        *("2023-11-14 UTC", "22:12:20.250", "started", "gate processes is open", "22:13:15.250", "SIGKILL, unexpected"),
        "gate pd-quorum is closed",
        "Gates",
        *("processes", "✗ closed", "pd-quorum", "data-path", "? unknown"),
        "Members",
        *("emulated TiKV", "exited", "1 FATAL", "1 known cause", "1 ERROR", "1 WARN"),
        "Readings",
        *("pd-self", "healthy false", "500 ms", "store-self", "no answer: nothing listens"),
        "What PD says",
        *("healthy", "Stores", "tikv0", "Up"),
        "Configuration",
        *("replicas of a region", "server", "--name=pd0"),
        *("Versions", "1.2.3", "Host", "Linux 6.1 x86_64", "8.0 GiB", "1.0 GiB of 1.0 TiB free"),
        *("Files", "logs/tikv1.log", "100 B left out"),
        "2 secrets were taken out",
        "Keys of users",
    )


def test_the_page_of_a_member_tells_its_end_and_leads_to_the_lines_that_matter() -> None:
    page = pages(exhibits())["members/tikv1.html"]
    in_order(
        page.text,
        *("Lines that matter", "1 FATAL, 1 known cause, 1 ERROR, 1 WARN", "giving up"),
        *("State", "exited", "exit code", "none", "SIGKILL (9)", "out of memory", "no", "asked for", "no"),
        *("127.0.0.1:10020", "Time line", "Readings", "Command line", "server", "logs/tikv1.log", "Welcome to TiKV"),
    )
    targets = [href[1:] for href in page.all("href") if href.startswith("#")]
    assert targets == ["log-2", "log-3", "log-4", "log-5"]
    assert set(targets) <= set(page.all("id"))
    classes = {found["id"]: found.get("class", "") for _, found in page.elements if "id" in found}
    assert [classes[f"log-{at}"] for at in range(1, 6)] == ["", "warn", "error", "telling", "fatal"]


def test_links_lead_to_pages_and_files_of_the_bundle() -> None:
    made = pages(exhibits())
    there = {*made, "logs/tikv1.log", "timeline.txt", "pd/pd0.txt"}
    for path, page in made.items():
        root = "../" if "/" in path else ""
        for href in page.all("href"):
            local, _, anchor = href.partition("#")
            assert not local or local.startswith(root)
            assert not local or local.removeprefix(root) in there, href
            assert not anchor or anchor in page.all("id"), href


CONTAINER = {**KILLED, "container": BOX, "files": None, "restarts": 2, "exit": Exit(137, None, False, AT - 5, "", True)}
OTHERS: list[tuple[str, Exhibits]] = [
    ("a container", exhibits(tikv1=CONTAINER)),
    ("nobody looked", replace(exhibits(), scene=Scene("block-failed", deployment()), pd={})),
    ("no logs", exhibits({})),
    ("PD is gone", replace(exhibits(), pd={"pd0": (PdAnswer("/health", failure=f"refused {HOSTILE}"),)})),
    ("PD says odd things", replace(exhibits(), pd={"pd0": tuple(PdAnswer(path, 200, body) for path, body in [
        ("/health", "[]"), ("/pd/api/v1/health", f'[3, {{"name": "{HOSTILE}"}}]'), ("/pd/api/v1/members", "null"),
        ("/pd/api/v1/stores", f'{{"stores": [1, null, {{"store": 2}}, {{"store": {{"id": "{HOSTILE}"}}}}]}}'),
        ("/pd/api/v1/regions/count", "no JSON")])})),
]  # fmt: skip


@pytest.mark.parametrize(
    "made", [exhibits(), *(made for _, made in OTHERS)], ids=["usual", *(name for name, _ in OTHERS)]
)
def test_nothing_of_others_gets_through_as_html_and_nothing_comes_from_elsewhere(made: Exhibits) -> None:
    for page in pages(made).values():
        assert not [tag for tag, _ in page.elements if tag in ("script", "img", "iframe", "link", "object", "form")]
        assert not [key for _, found in page.elements for key in found if key.startswith("on") or key == "src"]
        assert not re.search(r"https?://|url\(|@import", page.html)
        assert "default-src 'none'" in page.html
        assert "hunter2" not in page.html, "a secret"
    everything = "".join(page.text for page in pages(made).values())
    assert HOSTILE in everything, "as text it is there"


def test_a_container_tells_its_health_and_restarts() -> None:
    page = pages(exhibits(tikv1=CONTAINER))["members/tikv1.html"]
    in_order(page.text, "exit code", "137", "yes: ended by the kernel", "pingcap/tikv:v8.5.5", "unhealthy", "curl: (7)")
    assert "1, 2 by its policy" in page.text


def test_what_is_not_known_is_said_to_be() -> None:
    page = pages(OTHERS[1][1])["index.html"]
    assert "3 of 3 members run" in page.text
    assert "nobody looked at the cluster from outside" in page.text
    assert "PD was not asked" in page.text
    assert "There is no log of it" in pages(exhibits({}))["members/pd0.html"].text


@pytest.mark.parametrize(
    ("line", "mark"),
    [
        ('[2024/05/01 12:00:00.123 +00:00] [FATAL] [server.rs:1] ["x"]', Mark.FATAL),
        ('[2024/05/01 12:00:00.123 +00:00] [ERROR] [server.rs:1] ["x"]', Mark.ERROR),
        ('[2024/05/01 12:00:00.123 +00:00] [WARN] [server.rs:1] ["x"]', Mark.WARN),
        ('[2024/05/01 12:00:00.123 +00:00] [INFO] [server.rs:1] ["an ERROR of somebody"]', None),
        ('[2024/05/01 12:00:00.123 +00:00] [INFO] [x.rs:1] ["no space left on device"]', Mark.TELLING),
        ('[2024/05/01 12:00:00.123 +00:00] [FATAL] [x.rs:1] ["cluster ID mismatch"]', Mark.FATAL),
        ('{"level":"warn","ts":"2024-05-01","msg":"x"}', Mark.WARN),
        ('{"level":"fatal","msg":"x"}', Mark.FATAL),
        ("panic: runtime error: index out of range", Mark.FATAL),
        ("thread 'main' panicked at src/lib.rs:1:", Mark.FATAL),
        ("Traceback (most recent call last):", Mark.FATAL),
        ("ValueError: x", Mark.ERROR),
        ("error: Found argument '--x' which wasn't expected", Mark.TELLING),
        ("", None),
    ],
)
def test_marks(line: str, mark: Mark | None) -> None:
    assert mark_of(line) is mark


def test_of_a_long_log_the_ends_are_shown_and_what_matters_between_them() -> None:
    lines = [f'[INFO] ["line {at}"]' for at in range(1, 10_001)]
    lines[4_999] = '[ERROR] ["in the middle"]'
    found = marked("\n".join(lines), 100)
    numbers = [line.number for line in found.lines]
    assert numbers == [*range(1, HEAD_LINES + 1), 5000, *range(9_901, 10_001)]
    assert ([line.number for line in found.listed], found.total) == ([5000], 10_000)
    page = pages(exhibits({"logs/tikv1.log": "\n".join(lines)}))["members/tikv1.html"]
    assert f"{4_999 - HEAD_LINES} lines are not shown here" in page.text


@pytest.mark.parametrize(
    "log", ["[ERROR] x\n" * 200_000, f"[INFO] {'<' * 3_000_000}", "\0\x1b[31mred\x1b[0m\x07 \udcff"]
)
def test_a_page_is_bounded_and_readable_whatever_the_log_holds(log: str) -> None:
    page = pages(exhibits({"logs/tikv1.log": log}))["members/tikv1.html"]
    assert len(page.html) < 2_000_000
    assert not re.search(r"[\0\x07\x1b\udcff]", page.html)


def test_a_long_time_line_keeps_both_ends() -> None:
    made = exhibits()
    entries = tuple(Entry(AT + at, f"entry {at}.") for at in range(2_000))
    page = pages(replace(made, scene=replace(made.scene, timeline=entries)))["index.html"]
    assert "entry 0." in page.text
    assert "entry 1999." in page.text
    assert "entry 1000." not in page.text
    assert "entries are left out here; timeline.txt has all" in page.text


def test_the_time_line_is_in_order_and_tells_nothing_twice() -> None:
    there = deployment(tikv1=KILLED)
    heard = (
        Entry(AT - 4.9, "tikv1 ended: SIGKILL, unexpected", "tikv1"),
        Entry(AT - 90, "tikv1 ended: SIGKILL, unexpected", "tikv1"),
    )
    told = time_line(Scene("x", there, timeline=heard))
    assert [round(entry.at - AT, 1) for entry in told if "ended" in entry.text] == [-90.0, -4.9]
    assert [entry.at for entry in told] == sorted(entry.at for entry in told)
    assert sum("started" in entry.text for entry in told) == 3


@pytest.mark.parametrize(
    ("content", "html"),
    [
        ("a<b>&\"'", "a&lt;b&gt;&amp;&quot;&#x27;"),
        ("password=x", "password=[redacted]"),
        (el("b", "<"), "<b>&lt;</b>"),
        (el("a", "x", href='"><script>', class_=""), '<a href="&quot;&gt;&lt;script&gt;">x</a>'),
        (3, "3"),
    ],
)
def test_text_becomes_html_in_one_place(content: Any, html: str) -> None:
    assert text(content) == html


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (150 << 30, "150 GiB"), (5 << 40, "5.0 TiB")]
)
def test_sizes_in_words(count: int, words: str) -> None:
    assert bytes_text(count) == words


def test_the_log_of_the_scene_has_one_line_of_each_mark() -> None:
    assert {mark_of(line) for line in LOG.splitlines()} == {None, *Mark}
