"""HTML to Markdown by tag rules: headings, paragraphs, lists, tables and code; menus and scripts are dropped."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from selectolax.lexbor import LexborNode

DROPPED = ("script", "style", "nav", "footer", "aside", "noscript", "template", "form", "iframe", "svg", "button")
HEADINGS = {f"h{level}": "#" * level for level in range(1, 7)}
BLOCKS = {
    *("address", "article", "blockquote", "body", "dd", "details", "div", "dl", "dt", "figcaption", "figure"),
    *("header", "main", "p", "section", "summary"),
}
META = ("valid_from", "valid_until", "access")


@dataclass(frozen=True)
class Page:
    """What a page says."""

    title: str
    language: str
    """ISO 639-1 from the html element, or empty."""
    text: str
    """Markdown."""
    metadata: dict[str, str]
    """``valid_from``, ``valid_until`` and ``access`` of meta elements."""


def read_page(html: str) -> Page:
    """The readable part of a page: its ``main`` or only ``article``, else the body."""
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(html)
    root = tree.root
    if root is None:
        return Page("", "", "", {})
    title = tree.css_first("title")
    metadata = {name: node.attributes.get("content") for name in META if (node := tree.css_first(f"meta[name={name}]"))}
    language = (root.attributes.get("lang") or "")[:2].lower()
    tree.strip_tags(list(DROPPED))
    articles = tree.css("article")
    body = tree.css_first("main") or (articles[0] if len(articles) == 1 else None) or tree.body
    return Page(
        title=" ".join(title.text().split()) if title else "",
        language=language,
        text=_markdown(body) if body is not None else "",
        metadata={name: value for name, value in metadata.items() if value},
    )


def _markdown(root: "LexborNode") -> str:
    blocks: list[str] = []
    _walk(root, blocks, "")
    return "\n\n".join(block for block in blocks if block.strip())


def _walk(node: "LexborNode", blocks: list[str], bullet: str) -> None:
    """Append the blocks below a node; text between block elements makes a block of its own."""
    inline: list[str] = []

    def flush() -> None:
        if text := " ".join("".join(inline).split()):
            blocks.append(bullet + text)
        inline.clear()

    child = node.child
    while child is not None:
        tag = child.tag or ""
        if tag in HEADINGS or tag in BLOCKS or tag in ("ul", "ol", "table", "pre", "br", "hr"):
            flush()
            _block(child, tag, blocks)
        else:
            inline.append(child.text() if tag != "-text" else child.text_content or "")
        child = child.next
    flush()


def _block(node: "LexborNode", tag: str, blocks: list[str]) -> None:
    if tag in HEADINGS:
        if text := " ".join(node.text().split()):
            blocks.append(f"{HEADINGS[tag]} {text}")
    elif tag in ("ul", "ol"):
        blocks.append(_items(node, tag))
    elif tag == "table":
        rows = [[" ".join(cell.text().split()) for cell in row.css("th, td")] for row in node.css("tr")]
        blocks.append("\n".join(f"| {' | '.join(cells)} |" for cells in rows if any(cells)))
    elif tag == "pre":
        blocks.append(f"```\n{node.text().strip()}\n```")
    elif tag in BLOCKS:
        _walk(node, blocks, "")


def _items(node: "LexborNode", tag: str) -> str:
    lines = []
    for number, item in enumerate((child for child in node.iter() if child.tag == "li"), start=1):
        parts: list[str] = []
        _walk(item, parts, "")
        if parts:
            mark = f"{number}." if tag == "ol" else "-"
            lines.append(f"{mark} " + "\n".join(parts).replace("\n", "\n  "))
    return "\n".join(lines)
