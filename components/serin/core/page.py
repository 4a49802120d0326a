"""The shell of every page that people read: one HTML file of its own, in one look, light, dark and printed.

A page is a kind ("Evaluation"), a title that says what came out, a verdict, and sections.  Nothing is fetched and no
script is needed to read it: folding is ``<details>``, pictures are inline SVG (``serin.core.pictures``,
``serin.core.flow``) that take their colours from the stylesheet (``serin.core.palette``) and keep their text at its
size whatever the width.  Wide tables become lists of cards on a phone.  Headings come in order, tables have headers,
focus is visible, and every picture is named::

    page("Release 3f2a9c0d1b7e passes the gate", kind="Evaluation", sections=[
        Section("Verdict", verdict(Tone.GOOD, "Passes", ["Better than the baseline by 0.12."])),
        Section("Latency", line_chart("Median latency", [Line("candidate", points, Tone.CANDIDATE)])),
    ])

Arguments named ``text`` or ``title`` are plain text and are escaped here; ``html``, cells and bodies are HTML already,
so callers escape what goes into them (``html.escape``).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from serin.core.palette import Tone, variables

SIGNS = {Tone.GOOD: "✓", Tone.BAD: "✗", Tone.WARN: "!", Tone.PLAIN: "–"}
DIGEST_CHARS = 12


@dataclass(frozen=True)
class Section:
    """A part of a page with a heading (level 2)."""

    title: str
    html: str
    note: str = ""
    """A sentence below the heading: how to read what follows."""
    listed: bool = True
    """Whether the page's list of contents names it."""

    @property
    def id(self) -> str:
        """What links lead to."""
        return re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")


@dataclass(frozen=True)
class Tile:
    """A figure that is worth a large type."""

    label: str
    value: str
    note: str = ""
    tone: Tone = Tone.INK


def page(title: str, *, kind: str, sections: Sequence[Section], facts: Mapping[str, str] | None = None) -> str:
    """A whole page.

    Args:
        title: what came out, in a sentence; heading of level 1.
        kind: what the page is about, above the title.
        sections: in order; empty ones are left out, and three or more listed ones get a list of contents.
        facts: name to HTML, in small type at the end.
    """
    shown = [section for section in sections if section.html]
    listed = [section for section in shown if section.listed]
    links = "".join(f'<li><a href="#{one.id}">{escape(one.title)}</a></li>' for one in listed)
    contents = f'<nav aria-label="Contents"><ul>{links}</ul></nav>' if len(listed) >= 3 else ""
    foot = f"<footer>{facts_list(facts)}</footer>" if facts else ""
    body = "".join(map(_section, shown))
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f"<title>{escape(title)}</title><style>{stylesheet()}</style></head>"
        f'<body onclick="{escape(_JUMP)}">'
        '<a class="skip" href="#main">Skip to the content</a>'
        f'<header><p class="kind"><span class="beak" aria-hidden="true"></span>Serin · {escape(kind)}</p>'
        f'<h1>{escape(title)}</h1>{contents}</header><main id="main" tabindex="-1">{body}</main>'
        f"{foot}</body></html>\n"
    )


def verdict(tone: Tone, text: str, reasons: Sequence[str] = (), html: str = "") -> str:
    """The outcome as a banner: its sign, a word, the weightiest reason at once and the others folded."""
    first = f"<p>{escape(reasons[0])}</p>" if reasons else ""
    others = "".join(f"<li>{escape(reason)}</li>" for reason in reasons[1:])
    more = fold(f"{len(reasons) - 1} more reasons", f"<ul>{others}</ul>") if len(reasons) > 2 else ""
    more = f"<p>{escape(reasons[1])}</p>" if len(reasons) == 2 else more
    sign = f'<span class="sign tone-{tone}" aria-hidden="true">{SIGNS.get(tone, "–")}</span>'
    return (
        f'<div class="verdict soft-{tone}">{sign}'
        f'<div><p class="word tone-{tone}">{escape(text)}</p>{first}{more}{html}</div></div>'
    )


def badge(tone: Tone, text: str) -> str:
    """An outcome in a table: a sign and a word in its colour."""
    sign = SIGNS.get(tone)
    shown = f'<span aria-hidden="true">{sign} </span>' if sign else ""
    return f'<span class="badge soft-{tone} tone-{tone}">{shown}{escape(text)}</span>'


def tiles(values: Sequence[Tile]) -> str:
    """Figures side by side."""
    items = "".join(
        f'<div class="tile"><dt>{escape(one.label)}</dt><dd><span class="figure tone-{one.tone}">{escape(one.value)}'
        f"</span>{f'<span class=note>{escape(one.note)}</span>' if one.note else ''}</dd></div>"
        for one in values
    )
    return f'<dl class="tiles">{items}</dl>' if values else ""


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    caption: str = "",
    numbers: Sequence[int] = (),
    widths: Sequence[str] = (),
) -> str:
    """A table; on a narrow page each row becomes a card whose cells carry their column's name.

    Args:
        head: the columns' names, plain text.
        rows: cells as HTML; the first cell of a row is its header.
        caption: plain text above it.
        numbers: columns whose cells are figures.
        widths: CSS widths of the columns ("30%"), where the contents should not decide.
    """
    columns = "".join(f'<col style="width:{width}">' for width in widths)
    group = f"<colgroup>{columns}</colgroup>" if widths else ""
    fixed = ' class="fixed"' if widths else ""
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    top = "".join(
        f'<th scope="col" role="columnheader"{_class(i, numbers)}>{escape(name)}</th>' for i, name in enumerate(head)
    )
    body = "".join(f'<tr role="row">{_cells(head, row, numbers)}</tr>' for row in rows)
    # narrow pages lay rows out as blocks, which takes a table's meaning from it unless roles say it
    return (
        f'<table role="table"{fixed}>{above}{group}<thead role="rowgroup"><tr role="row">{top}</tr></thead>'
        f'<tbody role="rowgroup">{body}</tbody></table>'
    )


def fold(text: str, html: str, *, is_open: bool = False) -> str:
    """Something that opens on a click or a key."""
    return f"<details{' open' if is_open else ''}><summary>{escape(text)}</summary>{html}</details>"


def facts_list(facts: Mapping[str, str]) -> str:
    """Names and values (HTML) in small type."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{html}</dd></div>" for name, html in facts.items())
    return f'<dl class="facts">{items}</dl>'


def side_by_side(*columns: str) -> str:
    """HTML in columns, which stand below each other on a narrow page."""
    return f'<div class="columns">{"".join(f"<div>{html}</div>" for html in columns)}</div>'


def digest(value: str, *, whole: bool = False) -> str:
    """A digest for people: its first 12 digits, or all of them, breaking where it must."""
    return f'<code class="digest">{escape(value if whole else value[:DIGEST_CHARS])}</code>'


def stylesheet() -> str:
    """The one stylesheet."""
    return (
        f":root{{color-scheme:light dark;{variables(False)}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{variables(True)}}}}}"
        + "".join(f".tone-{tone}{{color:var(--{tone})}}" for tone in Tone)
        + "".join(f".soft-{tone}{{background:var(--{tone}-soft)}}" for tone in SIGNS)
        + re.sub(r"\s*\n\s*", "", _STYLE)
    )


def _section(section: Section) -> str:
    note = f'<p class="note">{escape(section.note)}</p>' if section.note else ""
    head = f'<h2 id="{section.id}-title">{escape(section.title)}</h2>{note}'
    return (
        f'<section id="{section.id}" tabindex="-1" aria-labelledby="{section.id}-title">{head}{section.html}</section>'
    )


def _cells(head: Sequence[str], row: Sequence[str], numbers: Sequence[int]) -> str:
    first = f'<th scope="row" role="rowheader"{_class(0, numbers)}>{row[0]}</th>'
    return first + "".join(
        f'<td role="cell"{_class(i, numbers)} data-name="{escape(head[i])}">{cell}</td>'
        for i, cell in enumerate(row[1:], start=1)
    )


def _class(column: int, numbers: Sequence[int]) -> str:
    return ' class="number"' if column in numbers else ""


# Viewers that show a page inside theirs (KFP's and MLflow's, by srcdoc) take its links for links of their own page.
# With this they work there too, and where scripts are off they are plain links.
_JUMP = (
    """var a=event.target.closest('a[href^="#"]');"""
    "if(a){document.querySelector(a.getAttribute('href')).focus();event.preventDefault()}"
)
_STYLE = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;scroll-behavior:smooth}
body{margin:0 auto;padding:0 1.5rem 3rem;max-width:72rem;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
header{padding:1.6rem 0 0}
.kind{margin:0;color:var(--muted);font-size:.82rem;font-weight:600;letter-spacing:.06em;text-transform:uppercase}
.beak{display:inline-block;width:.62rem;height:.62rem;margin-right:.5rem;border-radius:50% 50% 50% 0;
background:var(--brand)}
h1{margin:.2rem 0 1rem;font-size:clamp(1.5rem,1.1rem + 1.8vw,2.3rem);line-height:1.15;letter-spacing:-.015em;
text-wrap:balance;overflow-wrap:anywhere}
h2{margin:0 0 .3rem;font-size:1.3rem;line-height:1.25;letter-spacing:-.01em}
h3{margin:1.8rem 0 .5rem;font-size:1.02rem}
h4{margin:0 0 .3rem;font-size:.9rem}
p{margin:.4rem 0}ul{margin:.4rem 0;padding-left:1.2rem}
section{margin-top:2.6rem;padding-top:1.2rem;border-top:1px solid var(--line);scroll-margin-top:1rem}
main>section:first-child{margin-top:.6rem;padding-top:0;border:0}
main>section:first-child>h2{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
.note,caption,figcaption{color:var(--muted);font-size:.9rem}.note{max-width:52rem}
a{color:var(--candidate)}
:focus-visible{outline:3px solid var(--candidate);outline-offset:3px;border-radius:3px}
main:focus,section:focus{outline:none}.skip{position:absolute;left:-99rem}
.skip:focus{left:1rem;top:.5rem;background:var(--paper);padding:.4rem .8rem}
nav ul{display:flex;flex-wrap:wrap;gap:.1rem 1.1rem;margin:0 0 1.2rem;padding:0;list-style:none;font-size:.9rem}
nav a{display:inline-block;padding:.15rem 0;color:var(--muted);text-underline-offset:.25em;
text-decoration-color:var(--line)}nav a:hover{color:var(--ink)}
.verdict{display:flex;gap:1.1rem;padding:1.2rem 1.4rem;border-radius:.9rem}
.verdict .sign{flex:none;display:grid;place-items:center;width:3rem;height:3rem;border-radius:50%;
border:2.5px solid;font-size:1.5rem;font-weight:700;line-height:1}
.verdict .word{margin:0;font-size:1.2rem;font-weight:700;line-height:1.3}.verdict p{max-width:56rem}
.badge{display:inline-block;padding:.05rem .55rem;border-radius:1rem;font-size:.82rem;font-weight:600;
white-space:nowrap}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(10.5rem,1fr));gap:.8rem;margin:1rem 0}
.tile{min-width:0;max-width:24rem;overflow-wrap:anywhere;
padding:.8rem 1rem;border:1px solid var(--line);border-radius:.7rem}
.tile dt{color:var(--muted);font-size:.85rem}.tile dd{margin:0}
.tile .figure{display:block;font-size:1.65rem;font-weight:650;line-height:1.25;letter-spacing:-.02em;
font-variant-numeric:tabular-nums}.tile .note{display:block;font-size:.82rem;line-height:1.35}
table{width:100%;border-collapse:collapse;margin:.6rem 0;font-size:.92rem}
table.fixed{table-layout:fixed}
caption{text-align:left;padding:0 0 .4rem}
th,td{padding:.5rem .9rem .5rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
th:last-child,td:last-child{padding-right:0}
thead th{color:var(--muted);font-size:.82rem;font-weight:600;vertical-align:bottom}
tbody th{font-weight:600}tbody th .note{display:block;font-weight:400;font-size:.82rem}
.number{text-align:right;font-variant-numeric:tabular-nums}td.number{white-space:nowrap}
code{font-family:ui-monospace,"SF Mono",Menlo,Consolas,monospace;font-size:.88em}
.digest{overflow-wrap:anywhere}
details{margin:.4rem 0}summary{cursor:pointer;color:var(--muted);font-size:.9rem;width:fit-content}
summary:hover{color:var(--ink)}details[open]>summary{margin-bottom:.3rem}
.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(17rem,1fr));gap:.4rem 1.5rem;margin:.6rem 0;
font-size:.85rem}.facts dt{color:var(--muted)}.facts dd{margin:0;overflow-wrap:anywhere}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,19rem),1fr));gap:.9rem;margin:.6rem 0}
.columns>div{min-width:0}
.card{padding:.8rem 1rem;border:1px solid var(--line);border-radius:.7rem}
.said{margin:.2rem 0;white-space:pre-wrap;overflow-wrap:anywhere}
mark{background:var(--marked);color:var(--ink);border-radius:.2rem;padding:0 .1em}
figure{margin:.8rem 0}figcaption{margin-bottom:.3rem}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1.2rem;margin:.3rem 0;padding:0;list-style:none;color:var(--muted);
font-size:.85rem}.legend svg{vertical-align:-.15em;margin-right:.35rem}
svg{display:block;overflow:visible}.legend svg{display:inline-block}
svg text{fill:var(--muted);font-size:11px;font-variant-numeric:tabular-nums;paint-order:stroke;
stroke:var(--paper);stroke-width:3px;stroke-linejoin:round}
svg .box~text{stroke:none}svg .strong{fill:var(--ink);font-size:13px;font-weight:600}
svg .zero{stroke:var(--muted);stroke-width:1}svg .grid{stroke:var(--line);stroke-width:1}
svg .limit{stroke:var(--ink);stroke-width:1.5;stroke-dasharray:4 3}
svg .field{fill:var(--raised)}svg .allowed{fill:var(--good-soft)}
svg .span{stroke:currentColor;stroke-width:4;stroke-linecap:round;opacity:.55}
svg .mark{fill:currentColor;stroke:var(--paper);stroke-width:1.5}
svg .curve{fill:none;stroke:currentColor;stroke-width:2;stroke-linejoin:round;vector-effect:non-scaling-stroke}
svg .band{fill:currentColor;opacity:.16}svg .bar{fill:currentColor}
svg .box{fill:var(--paper);stroke:currentColor;stroke-width:1.5}svg .edge{fill:none;stroke:var(--muted);
stroke-width:1.3}svg .tip{fill:var(--muted)}
.plot{display:grid;grid-template-columns:minmax(3.4rem,auto) minmax(0,1fr);gap:0 .8rem;align-items:start}
.plot ul{margin:0;padding:0;list-style:none;font-size:.85rem;line-height:20px;font-variant-numeric:tabular-nums;
white-space:nowrap}.plot li{height:20px}
.only-narrow{display:none}
.timeline{margin:.8rem 0;padding:0;list-style:none}
.timeline li{position:relative;padding:0 0 1rem 1.8rem}
.timeline li::before{content:"";position:absolute;left:.31rem;top:.6rem;bottom:-.6rem;width:2px;
background:var(--line)}.timeline li:last-child::before{display:none}
.timeline .dot{position:absolute;left:0;top:.4rem;width:.75rem;height:.75rem;border-radius:50%;
background:currentColor;box-shadow:0 0 0 3px var(--paper)}
.timeline .when{color:var(--muted);font-size:.85rem;margin-left:.6rem;font-variant-numeric:tabular-nums}
footer{margin-top:3rem;padding-top:1rem;border-top:1px solid var(--line)}
@media (max-width:44rem){
body{padding:0 1rem 2rem;font-size:15px}
.verdict{flex-direction:column;gap:.6rem;padding:1rem}.verdict .sign{width:2.4rem;height:2.4rem;font-size:1.2rem}
.tiles{grid-template-columns:repeat(2,minmax(0,1fr))}
table,tbody,tr,th,td,caption{display:block;width:auto}thead{position:absolute;clip-path:inset(50%);height:1px;
width:1px;overflow:hidden}
tbody tr{padding:.6rem 0;border-bottom:1px solid var(--line)}
tbody th,td{padding:.12rem 0;border:0}
td[data-name]::before{content:attr(data-name);display:block;color:var(--muted);font-size:.8rem}
td.number[data-name]{display:flex;justify-content:space-between;text-align:right}
td.number[data-name]::before{text-align:left}td:empty{display:none}
.only-wide{display:none}.only-narrow{display:block}
}
@media print{
body{max-width:none;padding:0;font-size:10.5pt}nav,.skip{display:none}
section,.tile,.card,tr,.verdict{break-inside:avoid}section{break-inside:auto}h2,h3{break-after:avoid}
details::details-content{content-visibility:visible;block-size:auto}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}
}
@media (prefers-reduced-motion:reduce){html{scroll-behavior:auto}}
"""
