"""Cut documents into chunks: at headings, then blank lines, then sentences; never inside a code fence if it fits.

Chunks are slices of the document, in order, and together they hold all of its text.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from serin.core.digests import digest_of, digest_of_text
from serin.core.records import Document
from serin.core.retrieval import access_labels
from serin.index.config import IndexConfig

_HEADING = re.compile(r"(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
_FENCE = re.compile(r"[ \t]{0,3}(```+|~~~+)")
_SENTENCE_END = re.compile(r"(?<=[.!?…])[\"'»)]*\s+|\n")


@dataclass(frozen=True)
class Chunk:
    """A piece of a document, as it is embedded and returned."""

    id: str
    document_id: str
    ordinal: int
    """Position in the document, from 0."""
    title: str
    """The document's title and the headings above, joined by ' > '."""
    text: str
    language: str
    valid_from: str
    """ISO date, or empty."""
    valid_until: str
    """ISO date (the last valid day), or empty."""
    access: tuple[str, ...] = ()
    """Access labels: who is to find it must have one of them; none: everybody may."""

    @property
    def search_text(self) -> str:
        """What is embedded and indexed: the text below its headings, which are not said twice."""
        path = [part for part in self.title.split(" > ") if part not in self.text.partition("\n")[0]]
        return "\n".join([" > ".join(path), self.text]) if path else self.text


@dataclass(frozen=True)
class Section:
    """A slice of a document below one heading."""

    start: int
    end: int
    headings: tuple[str, ...]


def chunk_document(document: Document, config: IndexConfig) -> list[Chunk]:
    """The chunks of a document; a short document is one chunk.

    A chunk's id is H(document id, chunk digest, ordinal), so an unchanged chunk keeps its id.
    """
    text = document.text
    if len(text) <= config.max_chars:
        pieces = [Section(0, len(text), _first_heading(text))]
    else:
        whole = _joined(sections(text), config.min_chars, config.max_chars)
        pieces = [part for section in whole for part in _split(text, section, config.max_chars)]
    kept = [piece for piece in pieces if text[piece.start : piece.end].strip()]
    return [_chunk(document, ordinal, piece) for ordinal, piece in enumerate(kept)]


def sections(text: str) -> list[Section]:
    """Slices that each begin at a Markdown heading (outside code fences), with the headings above them."""
    starts: list[tuple[int, tuple[str, ...]]] = [(0, ())]
    path: dict[int, str] = {}
    for offset, line in _open_lines(text):
        if heading := _HEADING.match(line.rstrip()):
            level = len(heading[1])
            path = {above: title for above, title in path.items() if above < level} | {level: heading[2]}
            starts.append((offset, tuple(path.values())))
    ends = [offset for offset, _ in starts[1:]] + [len(text)]
    return [Section(start, end, headings) for (start, headings), end in zip(starts, ends, strict=True) if end > start]


def _first_heading(text: str) -> tuple[str, ...]:
    heading = _HEADING.match(text.lstrip().partition("\n")[0])
    return (heading[2],) if heading else ()


def _open_lines(text: str) -> Iterator[tuple[int, str]]:
    """Offset and text of each line outside code fences."""
    offset, fence = 0, ""
    for line in text.splitlines(keepends=True):
        mark = _FENCE.match(line)
        if mark and not fence:
            fence = mark[1]
        elif mark and mark[1].startswith(fence):
            fence = ""
        elif not fence:
            yield offset, line
        offset += len(line)


def _joined(found: list[Section], min_chars: int, max_chars: int) -> list[Section]:
    """Let a section that is too short (often a heading alone) be the beginning of the next one."""
    joined: list[Section] = []
    for section in found:
        last = joined[-1] if joined else None
        if last and last.end - last.start < min_chars and section.end - last.start <= max_chars:
            joined[-1] = Section(last.start, section.end, section.headings)
        else:
            joined.append(section)
    return joined


def _split(text: str, section: Section, max_chars: int) -> list[Section]:
    """Pack a section's paragraphs into slices of at most ``max_chars``."""
    if section.end - section.start <= max_chars:
        return [section]
    parts: list[Section] = []
    start = section.start
    for end in _cuts(text, section, max_chars):
        parts.append(Section(start, end, section.headings))
        start = end
    return parts


def _cuts(text: str, section: Section, max_chars: int) -> Iterator[int]:
    """Where slices end: as late as they may, at a blank line, else a sentence, else a space, else anywhere."""
    start = section.start
    blanks = _blank_lines(text[section.start : section.end], section.start)
    while section.end - start > max_chars:
        limit = start + max_chars
        end = max((cut for cut in blanks if start < cut <= limit), default=0) or _last_cut(text, start, limit)
        yield end
        start = end
    yield section.end


def _blank_lines(text: str, base: int) -> list[int]:
    """Offsets just after blank lines outside code fences."""
    return [base + offset + len(line) for offset, line in _open_lines(text) if not line.strip()]


def _last_cut(text: str, start: int, limit: int) -> int:
    window = text[start:limit]
    ends = [match.end() for match in _SENTENCE_END.finditer(window)]
    if ends and ends[-1] >= len(window) // 3:
        return start + ends[-1]
    space = window.rfind(" ")
    return start + space + 1 if space > 0 else limit


def _chunk(document: Document, ordinal: int, piece: Section) -> Chunk:
    text = document.text[piece.start : piece.end].strip()
    path = [part for part in (document.title, *piece.headings) if part]
    title = " > ".join(dict.fromkeys(path))
    return Chunk(
        id=digest_of([document.id, digest_of_text(f"{title}\n{text}"), ordinal])[:32],
        document_id=document.id,
        ordinal=ordinal,
        title=title,
        text=text,
        language=document.language,
        valid_from=document.metadata.get("valid_from", ""),
        valid_until=document.metadata.get("valid_until", ""),
        access=access_labels(document.metadata.get("access", "")),
    )
