"""Take the secrets out of a text: passwords, tokens, keys, wherever a log, a configuration or a command line has them.

Rules: a value is a secret because of the name that it has (`password`, `api-key`, `AUTH_TOKEN` …: the name must end in
such a word, so that `max-token-count` and `password-file` are none), or because of its own shape (a PEM block of a
private key, the password in a URL, a bearer token). It is replaced by `[redacted]`, its name stays. In doubt more is
taken out than needed; what is left alone on purpose is what a diagnosis needs and what gives nothing away: switches,
numbers of tokens, references such as `${PASSWORD}`. Keys and values of users are no secrets here: nobody can tell
them apart, and a region's keys are what one looks for.

Pure. Whoever shows or writes a text decides what to do with the count.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

MARK = "[redacted]"

_KEYS = r"(?:api|access|secret|private|account|shared|signing|encryption)[_.\- ]?key(?:[_.-]?id)?"
_HEADERS = r"authorization|cookie"
_NAMES = rf"password|passwd|passphrase|[_.-]pwd|secret|token|credential|{_KEYS}|{_HEADERS}"
# The end of a name that gives its value away. The words are looked for at the end alone, for speed, and because what
# comes behind one (`-count`, `_file`, `.ttl`) makes it the name of something else.
_NAMED = re.compile(rf"(?P<word>{_NAMES})(?P<many>s?)\d*(?![.-]*\w)", re.IGNORECASE)
_WORTH = ("passw", "passphrase", "pwd", "secret", "token", "credential", "key", "authorization", "cookie")

_PUBLIC = re.compile(r"-{0,2}initial[_-]?cluster[_-]?token", re.IGNORECASE)  # etcd's name of a cluster
_NAME_BEFORE = re.compile(r"[\w.-]*\Z")
_LONGEST_NAME = 80
_ASSIGNED = re.compile(r"[ \t]*(?:=>|:=|[:=])[ \t]*")
_NEXT_ARGUMENT = re.compile(r"[ \t]+(?!\\)|[ \t]*\\\n\s*|\s*,\s*(?=\\*[\"'])|\s*\n\s*-\s+")
_WRAPPED = re.compile(r"(?:\w+\(|b)(?=\\*[\"'])")  # Some("…"), b'…'
_QUOTE = re.compile(r"\\*[\"']")
_BARE = re.compile(r"[^\s,;&\"'\\\])}<>]+")
_HEADER = re.compile(r"[^\r\n\"'\]\\]+")
_LINE_REST = re.compile(r"[^\r\n]*")
_LIST = re.compile(r"\[([^\[\]{}]{0,4096})\]")
_ALONE = re.compile(r"(?:^|\n)[ \t]*(?:export |-[ \t]+)?\Z")
_LONGEST_VALUE = 64 << 10

_NOTHING = re.compile(
    r"|true|false|null|none|nil|\[redacted\]|[*.•]+|x{3,}"  # a switch, nothing, or masked already
    r"|\$\{?\w+\}?|\{\{.*\}\}|%\w+%|<[\w -]+>"  # a reference to what stands elsewhere
    r"|[\w./~-]+\.(?:pem|key|crt|cert|p12|pfx|jks)",  # the name of a file
    re.IGNORECASE,
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?")
_PROSE = re.compile(r"[A-Za-z]{1,15}")  # "invalid token: expected a name"

_SHAPES = (  # each with what must be in the text, in lower case, for the pattern to be worth a look
    ("-----begin", r"-----BEGIN [A-Z ]*PRIVATE KEY-----(?P<v>(?s:.*?))(?:-----END |(?![\w+/=\s\\:,-]))"),
    ("://", r"://[^\s/:@\"'<>\\]*:(?P<v>[^\s/?#\"'<>\\]+)@"),
    ("@tcp(", r"\b[\w.-]{1,64}:(?P<v>[^\s:@/\"']+)@tcp\("),
    ("bearer", r"(?i:bearer)\s+(?P<v>[\w+/=.~-]{12,})"),
    ("eyj", r"\b(?P<v>eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"),
    ("akia", r"\b(?P<v>AKIA[A-Z0-9]{16})\b"),
    ("asia", r"\b(?P<v>ASIA[A-Z0-9]{16})\b"),
)
_SHAPED = tuple((needs, re.compile(pattern)) for needs, pattern in _SHAPES)
_PEM_END = re.compile(r"-----END [A-Z ]*PRIVATE KEY-----")
_PEM_BODY_REVERSED = re.compile(r"(?:[A-Za-z0-9+/=\r\n]|n\\)*")


@dataclass(frozen=True, slots=True)
class Redacted:
    """The text without its secrets, and how many there were."""

    text: str
    count: int


@dataclass(frozen=True, slots=True)
class _Span:
    begin: int
    end: int
    instead: str = MARK


def redact(text: str) -> Redacted:
    """Take every secret out. What is redacted already is left and not counted again."""
    lowered = text.lower()
    spans = [*_shaped(text, lowered), *_cut_keys(text)]
    if any(word in lowered for word in _WORTH):
        spans += _named(text)
    parts, at, count = [], 0, 0
    for span in sorted(spans, key=lambda span: (span.begin, -span.end)):
        if span.begin < at:  # two rules overlap: what either takes goes
            at = max(at, span.end)
            continue
        parts += [text[at : span.begin], span.instead]
        at, count = span.end, count + 1
    return Redacted("".join([*parts, text[at:]]), count)


def _shaped(text: str, lowered: str) -> Iterator[_Span]:
    for needs, shape in _SHAPED:
        if needs in lowered:
            for found in shape.finditer(text):
                if not _NOTHING.fullmatch(found["v"].strip()):
                    yield _Span(*found.span("v"))


def _cut_keys(text: str) -> Iterator[_Span]:
    """What is left of a private key whose beginning was cut away: the lines before its end."""
    for end in _PEM_END.finditer(text):
        before = text[max(0, end.start() - _LONGEST_VALUE) : end.start()]
        body = _PEM_BODY_REVERSED.match(before[::-1])
        if body is not None and body[0].strip():
            yield _Span(end.start() - len(body[0].rstrip()), end.start())


def _named(text: str) -> Iterator[_Span]:
    for found in _NAMED.finditer(text):
        before = _NAME_BEFORE.search(text, max(0, found.start() - _LONGEST_NAME), found.start())
        if before is not None and _PUBLIC.fullmatch(text, before.start(), found.end()):
            continue
        name = _Name.of(text, before.start() if before else found.start(), found)
        span = _value_of(text, name)
        if span is not None and not _is_no_secret(name, text[span.begin : span.end]):
            yield span


@dataclass(frozen=True, slots=True)
class _Name:
    """A name as it stands in the text: where it begins and ends, and the quotes that it stands in, if any."""

    begin: int
    end: int  # behind its closing quote
    word: str
    quote: str = ""  # opened directly before it
    is_closed: bool = False  # and closed directly behind it: `"name": …`, not `"name=…"`
    is_flag: bool = False

    @classmethod
    def of(cls, text: str, begin: int, found: re.Match[str]) -> _Name:
        end = found.end()
        quote = ""
        if begin and text[begin - 1] in "\"'":
            first = begin - 1
            while first and text[first - 1] == "\\":
                first -= 1
            quote = text[first:begin]
        is_closed = bool(quote) and text.startswith(quote, end)
        word = found["word"].lower()
        if is_closed:
            end += len(quote)
        return cls(begin, end, word, quote, is_closed, text.startswith("-", begin))

    @property
    def is_header(self) -> bool:
        return self.word in _HEADERS.split("|")

    @property
    def is_of_a_token(self) -> bool:
        """Whether its value has letters and digits: there are other things that are called so."""
        return self.word in ("token", "credential", "cookie")


def _value_of(text: str, name: _Name) -> _Span | None:
    """Where the value of a name stands, without its quotes."""
    sign = _ASSIGNED.match(text, name.end)
    if sign is None:
        following = _NEXT_ARGUMENT.match(text, name.end) if name.is_flag else None
        if following is None or text.startswith(("-", MARK), following.end()):
            return None
        return _quoted(text, following.end()) or _span_of(_BARE.match(text, following.end()))
    at = sign.end()
    if text.startswith(MARK, at):
        return None
    if name.quote and not name.is_closed:  # "NAME=a value with spaces"
        return _until(text, at, name.quote)
    wrapped = _WRAPPED.match(text, at)
    at = wrapped.end() if wrapped is not None else at
    quoted = _quoted(text, at)
    if quoted is not None:
        return quoted
    listed = _LIST.match(text, at)
    if listed is not None:
        quote = _QUOTE.search(listed[1])
        return _Span(*listed.span(1), f"{quote[0]}{MARK}{quote[0]}" if quote else MARK)
    if text.startswith(("{", "["), at):
        return None  # what is in it has names of its own
    if name.is_header:
        return _span_of(_HEADER.match(text, at))
    if name.is_closed:
        bare = _span_of(_BARE.match(text, at))
        return None if bare is None else _Span(bare.begin, bare.end, f"{name.quote}{MARK}{name.quote}")
    if not name.is_flag and _ALONE.search(text, max(0, name.begin - _LONGEST_NAME), name.begin):
        return _span_of(_LINE_REST.match(text, at))
    bare = _span_of(_BARE.match(text, at))
    if bare is not None and name.is_of_a_token and ":" in sign[0] and _PROSE.fullmatch(text, bare.begin, bare.end):
        return None
    return bare


def _quoted(text: str, at: int) -> _Span | None:
    for fence in ('"""', "'''"):
        if text.startswith(fence, at):
            return _until(text, at + 3, fence)
    quote = _QUOTE.match(text, at)
    return _until(text, quote.end(), quote[0]) if quote is not None else None


def _until(text: str, begin: int, quote: str) -> _Span:
    """From `begin` to the same quote; one that is escaped belongs to the value. Without an end: the line."""
    at = begin
    while True:
        at = text.find(quote, at, begin + _LONGEST_VALUE)
        if at < 0:
            line = _LINE_REST.match(text, begin)
            return _Span(begin, line.end() if line is not None else begin)
        escapes = 0
        while at - escapes > begin and text[at - escapes - 1] == "\\":
            escapes += 1
        if escapes % 2 == 0:
            return _Span(begin, at)
        at += 1


def _span_of(found: re.Match[str] | None) -> _Span | None:
    return None if found is None else _Span(*found.span())


def _is_no_secret(name: _Name, value: str) -> bool:
    value = value.strip()
    if _NOTHING.fullmatch(value.strip("\"'")):
        return True
    return name.is_of_a_token and _NUMBER.fullmatch(value) is not None
