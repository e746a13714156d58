"""HTML by elements: whatever is put into one is redacted and escaped there, so no text of others can be forgotten.

Rules: a page is one file, without scripts and without anything from elsewhere; its content policy forbids both. It is
read in light and dark, on a phone and on paper. Pure.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterable

from drillyard.flows.redaction import redact

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_CONTROL = {code: 0x2400 + code for code in range(32) if chr(code) not in "\t\n"}  # as their pictures
_CONTROL[127] = 0x2421


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def text(content: object) -> Html:
    """Any text as HTML: without secrets, without control characters, escaped."""
    if isinstance(content, Html):
        return content
    plain = _ANSI.sub("", str(content)).encode("utf-8", "replace").decode().translate(_CONTROL)
    return Html(html.escape(redact(plain).text))


def el(name: str, *inner: object, **attributes: str) -> Html:
    """One element. Attributes of Python's words end in an underscore; empty ones are left out."""
    told = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"' for key, value in attributes.items() if value
    )
    return Html(f"<{name}{told}>{''.join(text(one) for one in inner)}</{name}>")


def link(to: str, *inner: object) -> Html:
    return el("a", *inner, href=to)


def code(content: object) -> Html:
    return el("code", content)


def section(title: str, id_: str, *inner: object) -> Html:
    return el("section", el("h2", title, id=id_), *inner)


def table(heads: Iterable[str], rows: Iterable[Iterable[object]], class_: str = "") -> Html:
    """A table. Where it is wider than the page it scrolls by itself, or its cells stack up (class `stack`)."""
    named = tuple(heads)
    head = el("thead", el("tr", *(el("th", one) for one in named))) if any(named) else ""
    body = [row if isinstance(row, Html) else el("tr", *(el("td", cell) for cell in row)) for row in rows]
    return el("div", el("table", head, el("tbody", *body), class_=class_), class_="wide")


def facts(pairs: Iterable[tuple[str, object]]) -> Html:
    """Names and values; those without a value are left out."""
    rows = [el("tr", el("th", name), el("td", value)) for name, value in pairs if value not in ("", None)]
    return el("div", el("table", *rows, class_="facts"), class_="wide")


def page(title: str, *body: object) -> str:
    """The whole document."""
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'
    )
    shown = "".join(text(one) for one in body)
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}<title>{text(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body>{shown}</body></html>\n"
    )


STYLE = """
:root{--ground:#fff;--ink:#1b1f24;--soft:#59636e;--line:#d8dee4;--panel:#f5f7f9;--link:#0757ba;
--bad:#b3261e;--bad-ground:#fdecea;--warn:#8a5300;--warn-ground:#fff4dc;--good:#1a6b37;--good-ground:#e5f6ea;
--tell:#6b3fa0;--tell-ground:#f3ebfd;--tag-l:91%;--tag-ink:22%}
@media(prefers-color-scheme:dark){:root{--ground:#12161b;--ink:#dfe5eb;--soft:#97a3af;--line:#2d353e;--panel:#1a2027;
--link:#79b4ff;--bad:#ff938a;--bad-ground:#3b1917;--warn:#f0bd62;--warn-ground:#352709;--good:#7cd398;
--good-ground:#12301d;--tell:#cfaeff;--tell-ground:#2b1d42;--tag-l:22%;--tag-ink:84%}}
*{box-sizing:border-box}
html{scroll-padding-top:.75rem}
body{margin:0 auto;max-width:76rem;padding:1rem clamp(.75rem,3vw,2rem) 3rem;background:var(--ground);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif;overflow-wrap:anywhere}
a{color:var(--link);text-decoration-thickness:1px;text-underline-offset:2px}
code,pre,.num,.log,td.time{font-family:ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace;font-size:13px}
h1{font-size:1.35rem;line-height:1.3;margin:.25rem 0 .5rem}
h2{font-size:1.05rem;margin:2.25rem 0 .6rem;padding-bottom:.25rem;border-bottom:1px solid var(--line)}
h3{font-size:.95rem;margin:1.25rem 0 .4rem}
p{margin:.4rem 0}
.soft,.foot{color:var(--soft)}
.foot{margin-top:3rem;padding-top:.75rem;border-top:1px solid var(--line);font-size:.87rem}
nav{display:flex;flex-wrap:wrap;gap:.25rem 1rem;margin:.75rem 0;font-size:.92rem}
.head{border-left:6px solid var(--bad);background:var(--bad-ground);padding:.8rem 1rem;border-radius:0 6px 6px 0}
.head.good{border-color:var(--good);background:var(--good-ground)}
.head.warn{border-color:var(--warn);background:var(--warn-ground)}
.head .kind{font-weight:600;font-size:.85rem;color:var(--bad)}
.head.good .kind{color:var(--good)}.head.warn .kind{color:var(--warn)}
.steps{display:grid;grid-template-columns:max-content 1fr;gap:.35rem .9rem;margin:.6rem 0 0}
.steps dt{font-weight:600;color:var(--soft)}.steps dd{margin:0}
.steps pre,.words{margin:0;white-space:pre-wrap}
.wide{overflow-x:auto;max-width:100%}
table{border-collapse:collapse;width:100%;font-size:.92rem;overflow-wrap:normal}
th,td{text-align:left;vertical-align:top;padding:.3rem .9rem .3rem 0;border-bottom:1px solid var(--line)}
thead th{font-weight:600;color:var(--soft);white-space:nowrap}
.facts{width:auto}.facts th{font-weight:500;color:var(--soft);white-space:nowrap;padding-right:1.25rem}
.facts td{overflow-wrap:anywhere;min-width:12rem}
td.time,.num{white-space:nowrap;font-variant-numeric:tabular-nums}
.stack td.time,.stack .num{width:1%}.readings td:nth-child(2){white-space:nowrap}
td.say{min-width:14rem;overflow-wrap:anywhere}
.tag{display:inline-block;padding:0 .45em;border-radius:.7em;font-size:.86rem;white-space:nowrap;text-decoration:none;
background:hsl(var(--hue) 70% var(--tag-l));color:hsl(var(--hue) 75% var(--tag-ink))}
a.tag{text-decoration:underline;text-decoration-thickness:1px;text-underline-offset:2px}
.mark{display:inline-block;font-weight:600;white-space:nowrap}
.bad{color:var(--bad)}.warn{color:var(--warn)}.good{color:var(--good)}.tell{color:var(--tell)}
tr.bad td,tr.bad th{background:var(--bad-ground);color:inherit}
tr.warn td{background:var(--warn-ground);color:inherit}
tr.bad,tr.warn,tr.good{color:inherit}
ul.plain{list-style:none;margin:0;padding:0}
ul.plain li+li{margin-top:.2rem}
details{margin:.4rem 0}
summary{cursor:pointer}
pre.block{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.6rem .75rem;margin:.4rem 0;
white-space:pre-wrap;overflow-wrap:anywhere}
.log{background:var(--panel);border:1px solid var(--line);border-radius:6px;padding:.4rem 0;margin:.4rem 0;
line-height:1.45}
.log div{padding:.05rem .75rem .05rem 4.25rem;text-indent:-3.5rem;white-space:pre-wrap;overflow-wrap:anywhere;
border-left:4px solid transparent}
.log i{display:inline-block;width:3rem;margin-right:.5rem;text-indent:0;text-align:right;font-style:normal;
color:var(--soft);user-select:none;opacity:.75}
.log .fatal,.log .error,.words .fatal,.words .error{border-left-color:var(--bad);background:var(--bad-ground)}
.log .fatal{font-weight:600}
.log .warn{border-left-color:var(--warn);background:var(--warn-ground);color:inherit}
.log .telling{border-left-color:var(--tell);background:var(--tell-ground)}
.log .gap{color:var(--soft);font-style:italic}
.log div:target{outline:2px solid var(--link);outline-offset:-2px}
td .lv{font-weight:600}
@media(max-width:40rem){.stack thead{display:none}
.stack tr{display:flex;flex-wrap:wrap;gap:.1rem .75rem;padding:.35rem 0;border-bottom:1px solid var(--line)}
.stack td{border:0;padding:0;min-width:0}.stack td:empty{display:none}.stack td.time,.stack .num{width:auto}
.stack td.say{flex-basis:100%;order:1}
.stack tr.bad{background:var(--bad-ground)}.stack tr.warn{background:var(--warn-ground)}
.steps{grid-template-columns:1fr;gap:.1rem}.steps dt{margin-top:.4rem}
.log div{padding-left:3.4rem;text-indent:-3rem}.log i{width:2.4rem}}
@media print{nav{display:none}body{max-width:none}}
"""
